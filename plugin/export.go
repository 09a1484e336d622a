package dnstrail

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// exporter sends finished queries. Queries wait in a bounded queue as they are; the one goroutine behind it makes them spans and gives these to the SDK's
// exporter in batches. The SDK's own batch processor holds spans, not queries: it can drop the half of a trace, and does not tell how many it dropped.
type exporter struct {
	sink     sdktrace.SpanExporter
	resource *resource.Resource
	batching

	pending chan *finished
	waiting atomic.Int64 // spans in the queue
	flushes chan chan struct{}
	stop    chan struct{} // closed to stop
	stopped chan struct{} // closed when it has
	closed  atomic.Bool   // nothing is taken any more
	once    sync.Once

	quiet time.Time // when the last failure was logged
}

// batching are the sizes and times of OpenTelemetry's batch span processor, in its units.
type batching struct {
	queue   int           // spans that may wait
	batch   int           // spans in a batch, about: a query is not divided
	delay   time.Duration // how long a span waits for its batch to fill
	timeout time.Duration // how long sending a batch may take
}

func newExporter(sink sdktrace.SpanExporter, res *resource.Resource, b batching) *exporter {
	e := &exporter{
		sink: sink, resource: res, batching: b,
		pending: make(chan *finished, b.queue),
		flushes: make(chan chan struct{}),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	go e.run()
	return e
}

// offer takes a query to be sent, or counts it as dropped; it never blocks. It says whether the query was taken.
func (e *exporter) offer(q *query, rec *recorder) bool {
	n := rec.shown()
	if !q.d.keep.allow(q.begun, q.kept, n) {
		tracesLimited.Inc()
		spansLimited.Add(float64(n))
		return false
	}
	if e.closed.Load() || e.waiting.Add(int64(n)) > int64(e.queue) {
		return e.full(n)
	}
	select {
	case e.pending <- newFinished(q, rec):
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
	var batch []sdktrace.ReadOnlySpan
	timer := time.NewTimer(e.delay)
	defer timer.Stop()
	add := func(f *finished) {
		batch = e.spansOf(batch, f)
		if len(batch) >= e.batch {
			batch = e.send(batch)
		}
	}
	drain := func() {
		for {
			select {
			case f := <-e.pending:
				add(f)
			default:
				batch = e.send(batch)
				return
			}
		}
	}
	for {
		select {
		case f := <-e.pending:
			add(f)
		case <-timer.C:
			batch = e.send(batch)
			timer.Reset(e.delay)
		case done := <-e.flushes:
			drain()
			close(done)
		case <-e.stop:
			drain()
			return // what comes now was let in a moment before; it stays in the queue, and is dropped with it
		}
	}
}

// spansOf makes the spans of a query. A panic costs that query's spans.
func (e *exporter) spansOf(batch []sdktrace.ReadOnlySpan, f *finished) (with []sdktrace.ReadOnlySpan) {
	n := f.rec.shown()
	defer func() {
		e.waiting.Add(-int64(n))
		if p := recover(); p != nil {
			ownPanic("making spans", p)
			spansFailed.Add(float64(n))
			with = batch
		}
	}()
	return f.appendSpans(batch, e.resource)
}

// send sends a batch and gives it back empty.
func (e *exporter) send(batch []sdktrace.ReadOnlySpan) []sdktrace.ReadOnlySpan {
	queueSpans.Set(float64(e.waiting.Load()))
	if len(batch) == 0 {
		return batch
	}
	ctx, cancel := context.WithTimeout(context.Background(), e.timeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil { // a goroutine of ours must not end the process
			ownPanic("exporting", p)
			spansFailed.Add(float64(len(batch)))
		}
	}()
	start := time.Now()
	err := e.sink.ExportSpans(ctx, batch)
	exportDuration.Observe(time.Since(start).Seconds())
	if err != nil {
		spansFailed.Add(float64(len(batch)))
		if now := time.Now(); now.Sub(e.quiet) > time.Minute {
			e.quiet = now
			log.Warningf("spans could not be exported, %d are lost (said once a minute; coredns_dnstrail_spans_total counts them): %v", len(batch), err)
		}
	} else {
		spansExported.Add(float64(len(batch)))
	}
	clear(batch)
	return batch[:0]
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
	if err := e.sink.Shutdown(ctx); err != nil {
		log.Warningf("stopping the exporter: %v", err)
	}
}
