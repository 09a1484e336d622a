package dnstrail

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link/otlp"
	"github.com/dnstrail/dnstrail/link/otlpenv"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// exporter sends finished queries. Queries wait in a bounded queue as they are; the one goroutine behind it writes
// their spans in OTLP's wire form (package link/otlp) and gives these to OpenTelemetry's client in batches. The SDK's
// own batch processor holds spans, not queries: it can drop the half of a trace, and does not tell how many it dropped.
type exporter struct {
	client   otlptrace.Client
	resource *resourcepb.Resource
	otlpenv.Batching

	pending chan *recorder
	waiting atomic.Int64 // spans in the queue
	flushes chan chan struct{}
	stop    chan struct{} // closed to stop
	stopped chan struct{} // closed when it has
	closed  atomic.Bool   // nothing is taken any more
	once    sync.Once

	quiet time.Time // when the last failure was logged
}

// scope is the instrumentation scope of all spans.
var scope = &commonpb.InstrumentationScope{Name: semconv.ScopePlugin, Version: Version}

// newExporter makes an exporter of a client that has been started.
func newExporter(client otlptrace.Client, res *resourcepb.Resource, b otlpenv.Batching) *exporter {
	e := &exporter{
		client: client, resource: res, Batching: b,
		pending: make(chan *recorder, b.Queue),
		flushes: make(chan chan struct{}),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	go e.run()
	return e
}

// offer takes a query to be sent, or counts it as dropped; it never blocks. It says whether the query was taken.
func (e *exporter) offer(q *query, rec *recorder) bool {
	taken, n := e.room(q, rec)
	if !taken {
		return false
	}
	rec.seen = q.look()
	return e.put(rec, n)
}

// give is offer of a query that was looked at when it was over.
func (e *exporter) give(q *query, rec *recorder) bool {
	taken, n := e.room(q, rec)
	return taken && e.put(rec, n)
}

// room takes room in the queue for the n spans of a query; false where there is none, which is counted.
func (e *exporter) room(q *query, rec *recorder) (taken bool, n int) {
	n = rec.shown()
	if !q.d.keep.allow(q.begun, q.kept, n) {
		tracesLimited.Inc()
		spansLimited.Add(float64(n))
		return false, n
	}
	if e.closed.Load() || e.waiting.Add(int64(n)) > int64(e.Queue) {
		return e.full(n), n
	}
	return true, n
}

// put queues a query, for which there is room.
func (e *exporter) put(rec *recorder, n int) bool {
	select {
	case e.pending <- rec:
		tracesKept.Inc()
		if rec.omitted > 0 {
			spansOmitted.Add(float64(rec.omitted))
		}
		return true
	default:
		return e.full(n)
	}
}

func (e *exporter) full(n int) bool {
	tracesQueueFull.Inc()
	if e.closed.Load() {
		spansShutdown.Add(float64(n))
		return false
	}
	e.waiting.Add(-int64(n))
	spansQueueFull.Add(float64(n))
	return false
}

func (e *exporter) run() {
	defer close(e.stopped)
	w := &spanWriter{clients: map[*identity.Client]otlp.Attributes{}, failed: failures{}}
	timer := time.NewTimer(e.Delay)
	defer timer.Stop()
	add := func(rec *recorder) {
		e.write(w, rec)
		if w.Len() >= e.Batch || w.Size() >= otlpenv.MaxBatchBytes {
			e.send(w)
		}
	}
	drain := func() {
		for {
			select {
			case rec := <-e.pending:
				add(rec)
			default:
				e.send(w)
				return
			}
		}
	}
	for {
		select {
		case rec := <-e.pending:
			add(rec)
			// Queries that can run go first. While they do, more of them end, and are taken at once: waking this goroutine for
			// each would cost more than its spans.
			runtime.Gosched()
			for range len(e.pending) {
				add(<-e.pending)
			}
		case <-timer.C:
			e.send(w)
			timer.Reset(e.Delay)
		case done := <-e.flushes:
			drain()
			close(done)
		case <-e.stop:
			drain()
			return // what comes now was let in a moment before; it stays in the queue, and is dropped with it
		}
	}
}

// write writes the spans of a query. A panic costs that query's spans.
func (e *exporter) write(w *spanWriter, rec *recorder) {
	n, before := rec.shown(), w.Mark()
	defer func() {
		e.waiting.Add(-int64(n))
		if p := recover(); p != nil {
			ownPanic("making spans", p)
			spansFailed.Add(float64(n))
			w.Cut(before)
		}
	}()
	w.write(rec)
}

// send sends the spans that are written, and empties w.
func (e *exporter) send(w *spanWriter) {
	queueSpans.Set(float64(e.waiting.Load()))
	n := w.Len()
	if n == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), e.Timeout)
	defer cancel()
	defer func() {
		w.Cut(otlp.Mark{})
		if p := recover(); p != nil { // a goroutine of ours must not end the process
			ownPanic("exporting", p)
			spansFailed.Add(float64(n))
		}
	}()
	start := time.Now()
	err := e.client.UploadTraces(ctx, []*tracepb.ResourceSpans{w.Message(e.resource, scope, semconv.SchemaURL)})
	exportDuration.Observe(time.Since(start).Seconds())
	if err != nil {
		spansFailed.Add(float64(n))
		if now := time.Now(); now.Sub(e.quiet) > time.Minute {
			e.quiet = now
			log.Warningf("spans could not be exported, %d are lost (said once a minute; coredns_dnstrail_spans_total counts "+
				"them): %v", n, err)
		}
	} else {
		spansExported.Add(float64(n))
	}
}

// flush sends what waits, or gives up when ctx is done.
func (e *exporter) flush(ctx context.Context) {
	done := make(chan struct{})
	select {
	case e.flushes <- done:
	case <-e.stopped:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// shutdown sends what waits and stops, or gives up when ctx is done: what is lost then is counted.
func (e *exporter) shutdown(ctx context.Context) {
	e.once.Do(func() {
		e.closed.Store(true)
		close(e.stop)
	})
	select {
	case <-e.stopped:
	case <-ctx.Done():
	}
	if err := e.client.Stop(ctx); err != nil {
		log.Warningf("stopping the exporter: %v", err)
	}
}
