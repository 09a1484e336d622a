package identity

import (
	"context"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// askAgain is how long to wait before asking again for what is not allowed.
const askAgain = 5 * time.Minute

// afterPanic is how long a watch rests after a panic.
const afterPanic = 10 * time.Second

// WatchStatus is the state of one of the watches on the API.
type WatchStatus struct {
	Resource  string    // "pods", "nodes", "replicasets" or "jobs"
	Synced    bool      // whether a whole list has been read
	Forbidden bool      // whether the API refused: the source does without
	Errors    int64     // failed lists and watches
	LastEvent time.Time // last event, list or bookmark (the API sends one a minute); zero if there was none
}

// store is what a watch feeds.
type store interface {
	transform(obj any) (any, error)
	put(obj any, now time.Time)
	delete(obj any, now time.Time)
	replace(objs []any, now time.Time)
}

// watchState is a watch on one kind of object. It is the store of client-go's reflector, which does the rest: list,
// watch, resume, back off.
type watchState struct {
	resource string
	required bool // asked for again and again, whatever the API says
	lw       *listWatch
	example  runtime.Object
	store    store
	heard    func(time.Time)

	synced    chan struct{} // closed after the first list
	isSynced  atomic.Bool
	forbidden atomic.Bool
	errors    atomic.Int64
	lastEvent atomic.Int64
}

// listWatch reads one kind of object.
type listWatch struct {
	list   func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch  func(context.Context, metav1.ListOptions) (watch.Interface, error)
	client any
}

func lister[L runtime.Object](
	list func(context.Context, metav1.ListOptions) (L, error),
	watcher func(context.Context, metav1.ListOptions) (watch.Interface, error),
	fields string, client any,
) *listWatch {
	return &listWatch{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fields
			return list(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fields
			return watcher(ctx, o)
		},
		client: client,
	}
}

func (k *Kubernetes) watch(_ context.Context, resource string, lw *listWatch, example runtime.Object, required bool,
	s store) *watchState {
	w := &watchState{
		resource: resource, required: required, lw: lw, example: example, store: s, heard: k.index.heard,
		synced: make(chan struct{}),
	}
	k.watches[resource] = w
	return w
}

// run follows the objects until ctx is done.
func (w *watchState) run(ctx context.Context) {
	for !w.required && !w.allowed(ctx) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(askAgain):
		}
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l, err := w.lw.list(ctx, o)
			return l, w.seen(err)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			i, err := w.lw.watch(ctx, o)
			return i, w.seen(err)
		},
	}
	for ctx.Err() == nil {
		w.follow(ctx, lw)
	}
}

// follow runs a reflector. An object that we fail at in the worst way is counted, and must not take the process with
// it.
func (w *watchState) follow(ctx context.Context, lw *cache.ListWatch) {
	defer func() {
		if r := recover(); r != nil {
			w.errors.Add(1)
			klog.FromContext(ctx).Error(nil, "dnstrail: panic in a watch", "resource", w.resource, "panic", r)
			select {
			case <-ctx.Done():
			case <-time.After(afterPanic):
			}
		}
	}()
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, w.lw.client), w.example, w,
		cache.ReflectorOptions{Name: "dnstrail " + w.resource}).RunWithContext(ctx)
}

// allowed asks for one object, to learn whether the API lets us read them. Every failure but a refusal counts as yes:
// the reflector deals with it.
func (w *watchState) allowed(ctx context.Context) bool {
	_, err := w.lw.list(ctx, metav1.ListOptions{Limit: 1})
	return !apierrors.IsForbidden(w.seen(err))
}

// seen counts an error.
func (w *watchState) seen(err error) error {
	w.forbidden.Store(apierrors.IsForbidden(err))
	// these two are how the API asks for a new list
	if err != nil && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		w.errors.Add(1)
	}
	return err
}

// wait waits until the objects have been read once, are refused, or the time is over.
func (w *watchState) wait(ctx context.Context, limit time.Duration) {
	deadline := time.After(limit)
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for !w.forbidden.Load() {
		select {
		case <-ctx.Done():
			return
		case <-deadline:
			return
		case <-w.synced:
			return
		case <-poll.C:
		}
	}
}

func (w *watchState) event() time.Time {
	now := time.Now()
	w.lastEvent.Store(now.UnixNano())
	w.heard(now)
	return now
}

func (w *watchState) status() WatchStatus {
	s := WatchStatus{Resource: w.resource, Synced: w.isSynced.Load(), Forbidden: w.forbidden.Load(),
		Errors: w.errors.Load()}
	if ns := w.lastEvent.Load(); ns != 0 {
		s.LastEvent = time.Unix(0, ns)
	}
	return s
}

// Add implements [cache.ReflectorStore].
func (w *watchState) Add(obj any) error { w.store.put(obj, w.event()); return nil }

// Update implements [cache.ReflectorStore].
func (w *watchState) Update(obj any) error { w.store.put(obj, w.event()); return nil }

// Delete implements [cache.ReflectorStore].
func (w *watchState) Delete(obj any) error { w.store.delete(obj, w.event()); return nil }

// Replace implements [cache.ReflectorStore].
func (w *watchState) Replace(objs []any, _ string) error {
	w.store.replace(objs, w.event())
	if !w.isSynced.Swap(true) {
		close(w.synced)
	}
	return nil
}

// Resync implements [cache.ReflectorStore]; there is nothing to resync.
func (w *watchState) Resync() error { return nil }

// Bookmark implements [cache.ReflectorBookmarkStore]: the API is there, though nothing happens.
func (w *watchState) Bookmark(string) error { w.event(); return nil }

// Transformer implements [cache.TransformingStore].
func (w *watchState) Transformer() cache.TransformFunc { return w.store.transform }

// Watches tells the state of each watch, in order of their resources.
func (k *Kubernetes) Watches() []WatchStatus {
	var out []WatchStatus
	for _, r := range []string{"jobs", "nodes", "pods", "replicasets"} {
		if w := k.watches[r]; w != nil {
			out = append(out, w.status())
		}
	}
	return out
}
