package identity

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
)

// DefaultGrace is how long a deleted pod is still found: its last queries may be answered, and its spans finished,
// after it is gone.
const DefaultGrace = time.Minute

// forgetNodes is how often nodes that no pod is on any more are forgotten.
const forgetNodes = 10 * time.Minute

// KubernetesOptions say what is read from the Kubernetes API.
type KubernetesOptions struct {
	// Core reads pods (list and watch are needed) and nodes (where allowed; else nodes are known by their pods).
	Core typedcorev1.CoreV1Interface
	// Metadata reads who owns ReplicaSets and Jobs, where allowed; nil, or where it is not allowed, goes by their names.
	Metadata metadata.Interface
	// Node, if not empty, restricts all to that node and its pods, for an agent that runs on each: every other address is
	// Unknown.
	Node string
	// Local is the name of the node that this process is on: loopback and link-local addresses are told as it. Empty: they
	// are Unknown.
	Local string
	// Labels are the keys of the pod labels to keep. Each set of values that differs makes a group of its own in memory.
	Labels []string
	// Grace is how long a deleted pod is still found; 0 means DefaultGrace.
	Grace time.Duration
}

// Kubernetes is a source: it follows the pods of a cluster, and keeps what it knows when the API cannot be reached.
type Kubernetes struct {
	index *Index
	opts  KubernetesOptions

	// Under index.mu:
	owners  owners
	deleted []deletion // in order of time
	statics map[*Client]uid
	nodes   map[string]*Client // those that the API told
	hosts   map[unique.Handle[host]]*hosted
	former  []*Client                 // nodes that the API told and took back
	podNets map[string][]netip.Prefix // by node
	tidied  time.Time

	watches map[string]*watchState
	stop    context.CancelFunc
	done    sync.WaitGroup
}

type deletion struct {
	client *Client
	until  time.Time
}

// hosted is a node at the addresses that its pods tell.
type hosted struct {
	client *Client
	pods   int // those that tell it so
}

// NewKubernetes starts following a cluster's pods. It does not wait for them: see [Index.Synced]. Stop it with Close.
func NewKubernetes(o KubernetesOptions) *Kubernetes {
	k := newKubernetes(o)
	ctx, cancel := context.WithCancel(context.Background())
	k.stop = cancel
	k.start(ctx)
	return k
}

// newKubernetes makes a source that nothing feeds yet.
func newKubernetes(o KubernetesOptions) *Kubernetes {
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	o.Labels = slices.Compact(slices.Sorted(slices.Values(o.Labels)))
	k := &Kubernetes{
		index:   NewIndex(),
		opts:    o,
		owners:  owners{},
		statics: map[*Client]uid{},
		nodes:   map[string]*Client{},
		hosts:   map[unique.Handle[host]]*hosted{},
		podNets: map[string][]netip.Prefix{},
		watches: map[string]*watchState{},
		tidied:  time.Now(),
	}
	if o.Local != "" {
		k.index.local.Store(NewClient(Description{Kind: Node, Node: o.Local}))
	}
	return k
}

// Index is what is known of the cluster.
func (k *Kubernetes) Index() *Index { return k.index }

// Close stops following. The index stays as it is.
func (k *Kubernetes) Close() {
	k.stop()
	k.done.Wait()
}

// start starts a watch for each kind of object, and the clock.
func (k *Kubernetes) start(ctx context.Context) {
	pods := k.opts.Core.Pods(metav1.NamespaceAll)
	podFields := "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed)
	nodeFields := ""
	if k.opts.Node != "" {
		podFields += ",spec.nodeName=" + k.opts.Node
		nodeFields = "metadata.name=" + k.opts.Node
	}
	podWatch := k.watch(ctx, "pods", lister(pods.List, pods.Watch, podFields, k.opts.Core), &corev1.Pod{}, true,
		&podStore{k})

	nodes := k.opts.Core.Nodes()
	k.watch(ctx, "nodes", lister(nodes.List, nodes.Watch, nodeFields, k.opts.Core), &corev1.Node{}, false, &nodeStore{k})

	var ownerWatches []*watchState
	if k.opts.Metadata != nil {
		for _, r := range []struct {
			kind     string
			resource schema.GroupVersionResource
		}{
			{"ReplicaSet", schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}},
			{"Job", schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}},
		} {
			m := k.opts.Metadata.Resource(r.resource)
			ownerWatches = append(ownerWatches, k.watch(ctx, r.resource.Resource, lister(m.List, m.Watch, "", k.opts.Metadata),
				&metav1.PartialObjectMetadata{}, false,
				&ownerStore{k: k, kind: r.kind}))
		}
	}
	// Pods come after their owners, where these can be read, so that few have to be told again.
	for _, w := range k.watches {
		if w != podWatch {
			k.done.Go(func() { w.run(ctx) })
		}
	}
	k.done.Go(func() {
		for _, w := range ownerWatches {
			w.wait(ctx, 10*time.Second)
		}
		podWatch.run(ctx)
	})
	k.done.Go(func() { k.tick(ctx) })
}

// tick forgets what has been gone for long enough.
func (k *Kubernetes) tick(ctx context.Context) {
	t := time.NewTicker(max(k.opts.Grace/4, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			k.index.mu.Lock()
			k.forget(now)
			k.index.mu.Unlock()
		}
	}
}

// put takes in a pod as it is now. Callers hold index.mu.
func (k *Kubernetes) put(r *record, now time.Time) {
	x, c := k.index, r.client
	old := x.uids.get(keyOf(c.uid))
	if r.ended {
		if old != nil {
			k.deletePod(old, now)
		}
		return
	}
	if old != nil && old.same(c) {
		x.back(old)
		c = old
	} else {
		k.host(old, c)
		x.put(old, c)
		delete(k.statics, old)
	}
	if r.static != (uid{}) && r.static != c.uid {
		x.uids.put(keyOf(r.static), c)
		k.statics[c] = r.static
	}
}

// host takes in what a pod tells of its node: c in place of old, either of which may be nil. Callers hold index.mu.
func (k *Kubernetes) host(old, c *Client) {
	if old != nil && c != nil && old.node == c.node {
		return
	}
	x, moved := k.index, false
	if c != nil {
		if addrs := unpack(c.node.Value().addrs); len(addrs) > 0 && c.Node() != "" {
			moved = old != nil && old.node.Value().addrs != ""
			h := k.hosts[c.node]
			if h == nil {
				h = &hosted{client: newClient(Description{Kind: Node, Node: c.Node(), Addrs: addrs}, c.start)}
				k.hosts[c.node] = h
				for _, a := range addrs {
					x.claim(h.client, keyOf(a.As16()), moved)
				}
			}
			h.pods++
			x.back(h.client)
		}
	}
	if old == nil {
		return
	}
	h := k.hosts[old.node]
	if h == nil {
		return
	}
	if h.pods--; h.pods > 0 {
		return
	}
	if moved { // the node has other addresses now
		delete(k.hosts, old.node)
		x.drop(h.client)
		return
	}
	x.gone[h.client] = time.Time{} // until it is tidied away
	x.depart(h.client)
}

// deletePod marks a pod as gone; it is found until its grace is over or its address is another's. Callers hold
// index.mu.
func (k *Kubernetes) deletePod(c *Client, now time.Time) {
	if _, already := k.index.gone[c]; already {
		return
	}
	until := now.Add(k.opts.Grace)
	k.index.gone[c] = until
	k.deleted = append(k.deleted, deletion{c, until})
	k.index.depart(c)
}

// forget drops pods whose grace is over, and now and then nodes without pods. Callers hold index.mu.
func (k *Kubernetes) forget(now time.Time) {
	x, n := k.index, 0
	for n < len(k.deleted) && now.After(k.deleted[n].until) {
		d := k.deleted[n]
		n++
		if until, gone := x.gone[d.client]; gone && until.Equal(d.until) { // else it came back, or was replaced
			k.drop(d.client)
		}
	}
	if n == len(k.deleted) {
		k.deleted = nil
	} else {
		k.deleted = k.deleted[n:]
	}
	if now.Sub(k.tidied) < forgetNodes || !x.Synced() {
		return
	}
	k.tidied = now
	for name, h := range k.hosts {
		if h.pods == 0 {
			delete(k.hosts, name)
			x.drop(h.client)
		}
	}
	for _, c := range k.former {
		x.drop(c)
	}
	k.former = nil
}

// drop forgets a pod. Callers hold index.mu.
func (k *Kubernetes) drop(c *Client) {
	if s, ok := k.statics[c]; ok {
		k.index.uids.remove(keyOf(s), c)
		delete(k.statics, c)
	}
	k.index.drop(c)
	k.host(c, nil)
}

// podStore takes in pods from client-go's reflector.
type podStore struct{ k *Kubernetes }

// read makes a record of what the reflector gives: a pod as it came, or what transform made of it.
func (s *podStore) read(obj any) *record {
	switch o := obj.(type) {
	case *record:
		return o
	case *corev1.Pod:
		s.k.index.mu.Lock()
		defer s.k.index.mu.Unlock()
		return describePod(o, s.k.opts.Labels, s.k.owners)
	}
	return nil
}

// transform is applied to the pods of the first list as they arrive, so that they are not all held whole.
func (s *podStore) transform(obj any) (any, error) {
	if r := s.read(obj); r != nil {
		return r, nil
	}
	return obj, nil
}

func (s *podStore) put(obj any, now time.Time) {
	r := s.read(obj)
	if r == nil {
		return
	}
	s.k.index.mu.Lock()
	defer s.k.index.mu.Unlock()
	s.k.put(r, now)
}

func (s *podStore) delete(obj any, now time.Time) {
	r := s.read(obj)
	if r == nil {
		return
	}
	s.k.index.mu.Lock()
	defer s.k.index.mu.Unlock()
	if c := s.k.index.uids.get(keyOf(r.client.uid)); c != nil {
		s.k.deletePod(c, now)
	}
}

// replace takes in a whole list: pods that are not in it have gone meanwhile.
func (s *podStore) replace(objs []any, now time.Time) {
	listed := make(map[uid]struct{}, len(objs))
	records := make([]*record, 0, len(objs))
	for i, obj := range objs {
		if r := s.read(obj); r != nil {
			listed[r.client.uid] = struct{}{}
			records = append(records, r)
		}
		objs[i] = nil
	}
	// A list is in order of names. What two pods came by since the last one is the later one's.
	slices.SortStableFunc(records, func(a, b *record) int { return cmp.Compare(a.client.start, b.client.start) })
	for _, r := range records {
		s.put(r, now)
	}
	s.k.index.mu.Lock()
	defer s.k.index.mu.Unlock()
	var missing []*Client
	s.k.index.uids.all(func(_ key, c *Client) bool {
		if _, ok := listed[c.uid]; !ok {
			missing = append(missing, c)
		}
		return true
	})
	for _, c := range missing {
		s.k.deletePod(c, now)
	}
	s.k.index.synced(s.k.opts.Node == "")
}

// nodeStore takes in nodes.
type nodeStore struct{ k *Kubernetes }

func (s *nodeStore) transform(obj any) (any, error) { return obj, nil }

func (s *nodeStore) put(obj any, _ time.Time) {
	s.k.index.mu.Lock()
	defer s.k.index.mu.Unlock()
	if n, ok := obj.(*corev1.Node); ok && s.add(n) {
		s.k.index.pods.Store(newPrefixes(s.k.podNets))
	}
}

// add takes in a node and says whether its pods' networks are news. Callers hold index.mu.
func (s *nodeStore) add(n *corev1.Node) bool {
	var addrs []netip.Addr
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			addrs = appendAddr(addrs, a.Address)
		}
	}
	c := newClient(Description{Kind: Node, Node: n.Name, Addrs: addrs}, seconds(n.CreationTimestamp))
	if old := s.k.nodes[n.Name]; old == nil || !old.same(c) {
		s.k.nodes[n.Name] = c
		s.k.index.put(old, c)
	}
	var nets []netip.Prefix
	for _, cidr := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(cidr); err == nil {
			nets = append(nets, p)
		}
	}
	if slices.Equal(nets, s.k.podNets[n.Name]) {
		return false
	}
	s.k.podNets[n.Name] = nets
	return true
}

func (s *nodeStore) delete(obj any, _ time.Time) {
	if n, ok := obj.(*corev1.Node); ok {
		s.k.index.mu.Lock()
		defer s.k.index.mu.Unlock()
		s.remove(n.Name)
		s.k.index.pods.Store(newPrefixes(s.k.podNets))
	}
}

// remove forgets a node that the API does not tell any more: soon, or once no pod is on it. Callers hold index.mu.
func (s *nodeStore) remove(name string) {
	delete(s.k.podNets, name)
	c := s.k.nodes[name]
	if c == nil {
		return
	}
	delete(s.k.nodes, name)
	s.k.former = append(s.k.former, c)
	s.k.index.gone[c] = time.Time{}
	s.k.index.depart(c)
}

func (s *nodeStore) replace(objs []any, _ time.Time) {
	s.k.index.mu.Lock()
	defer s.k.index.mu.Unlock()
	listed := map[string]bool{}
	for _, obj := range objs {
		if n, ok := obj.(*corev1.Node); ok {
			listed[n.Name] = true
			s.add(n)
		}
	}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(s.k.nodes)), slices.Collect(maps.Keys(s.k.podNets))) {
		if !listed[name] {
			s.remove(name)
		}
	}
	s.k.index.pods.Store(newPrefixes(s.k.podNets))
}

// ownerStore takes in the metadata of ReplicaSets or Jobs.
type ownerStore struct {
	k    *Kubernetes
	kind string
}

func (s *ownerStore) transform(obj any) (any, error) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return obj, nil
	}
	s.put(m, time.Time{})
	return &object{m.Namespace, m.Name}, nil
}

func (s *ownerStore) put(obj any, _ time.Time) {
	if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
		s.k.index.mu.Lock()
		defer s.k.index.mu.Unlock()
		s.k.owners.learn(s.kind, &m.ObjectMeta)
	}
}

func (s *ownerStore) delete(obj any, _ time.Time) {
	if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
		s.k.index.mu.Lock()
		defer s.k.index.mu.Unlock()
		delete(s.k.owners, m.UID)
	}
}

func (s *ownerStore) replace(objs []any, now time.Time) {
	for _, obj := range objs {
		s.put(obj, now) // nothing to do for what transform has seen
	}
	// What went away between two lists stays in owners: a few bytes for each exception to the rule of names.
}
