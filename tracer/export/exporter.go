package export

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/otlp"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

var errRatio = errors.New("not a number from 0 to 1")

// Options say what is exported.
type Options struct {
	// Sample is the share of traces kept.
	Sample Ratio
	// Slow is the duration from which a lookup is kept whatever Sample says; 0 keeps none for that. Lost lookups are always kept.
	Slow time.Duration
	// Guard is how far apart this host's clock and CoreDNS's may be.
	Guard time.Duration
	// Node is the name of the node that this tracer runs on, and Host of the host; for spans of clients out of its sight.
	Node, Host string
	// Version is the program's.
	Version string
	// Batch is the number of spans that are sent at once, and Interval the longest that a span waits for them.
	Batch    int
	Interval time.Duration
	// Queue bounds the batches that wait to be sent.
	Queue int
}

func (o *Options) setDefaults() {
	if o.Batch == 0 {
		o.Batch = 2048
	}
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	if o.Queue == 0 {
		o.Queue = 64
	}
}

// Stats are counts of spans since the start.
type Stats struct {
	Made      uint64 // put into batches
	Sent      uint64 // accepted by the collector
	Dropped   uint64 // no room in the queue
	Failed    uint64 // the collector could not be reached, or refused them
	Unsampled uint64 // lookups, not spans: not kept
	Copies    uint64 // lookups sent under a second trace ID
}

// Exporter makes spans and sends them. Add and Tick are for one goroutine and never wait; what cannot be queued is dropped and counted.
type Exporter struct {
	o       Options
	client  otlptrace.Client
	builder *builder

	pending   map[resourceKey]*group
	batch     []*group
	spans     int
	bytes     int
	flushed   time.Time
	resources map[*origin.Origin]*resourcepb.Resource
	scope     *commonpb.InstrumentationScope
	scratch   []link.Epoch
	before    []link.Epoch
	queue     chan batch
	done      chan struct{}
	stop      context.CancelFunc
	ctx       context.Context
	closeOnce sync.Once

	made, sent, dropped, failed, unsampled, copies atomic.Uint64
	lastError                                      atomic.Pointer[error]
}

type resourceKey struct {
	origin *origin.Origin
	own    bool
}

// group is the spans of one resource in a batch.
type group struct {
	otlp.Spans
	resource *resourcepb.Resource
}

type batch struct {
	spans  int
	groups []*group
}

// maxBatchBytes is the size at which a batch is sent though it has fewer spans: gRPC servers take 4 MiB if not told otherwise.
const maxBatchBytes = 2 << 20

// groups are groups that have been sent or dropped, and keep their memory for others.
var groups = sync.Pool{New: func() any { return new(group) }}

func (b batch) free() {
	for _, g := range b.groups {
		g.Cut(otlp.Mark{})
		g.resource = nil
		groups.Put(g)
	}
}

// NewClient makes the OTLP client that the environment asks for: OTEL_EXPORTER_OTLP_(TRACES_)PROTOCOL grpc (default here) or http/protobuf, and all other
// OTEL_EXPORTER_OTLP_* as OpenTelemetry's exporters read them. endpoint, if not empty, is a URL that goes before the environment's.
func NewClient(endpoint string) (otlptrace.Client, error) {
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	switch protocol {
	case "", "grpc":
		var o []otlptracegrpc.Option
		if endpoint != "" {
			o = append(o, otlptracegrpc.WithEndpointURL(endpoint))
		}
		return otlptracegrpc.NewClient(o...), nil
	case "http/protobuf":
		var o []otlptracehttp.Option
		if endpoint != "" {
			o = append(o, otlptracehttp.WithEndpointURL(endpoint))
		}
		return otlptracehttp.NewClient(o...), nil
	}
	return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q, want grpc or http/protobuf", protocol)
}

// New makes an exporter and starts its sender.
func New(client otlptrace.Client, o Options) (*Exporter, error) {
	o.setDefaults()
	ctx, stop := context.WithCancel(context.Background())
	if err := client.Start(ctx); err != nil {
		stop()
		return nil, fmt.Errorf("starting the OTLP exporter: %w", err)
	}
	e := &Exporter{
		o: o, client: client, builder: newBuilder(), flushed: time.Now(),
		pending:   make(map[resourceKey]*group),
		resources: make(map[*origin.Origin]*resourcepb.Resource),
		scope:     &commonpb.InstrumentationScope{Name: semconv.ScopeTracer, Version: o.Version},
		queue:     make(chan batch, o.Queue),
		done:      make(chan struct{}), stop: stop, ctx: ctx,
	}
	go e.send()
	return e, nil
}

// Add makes the spans of a lookup that has ended for good and puts them into the next batch. It gives the trace ID under which they go first, "" if none is kept.
func (e *Exporter) Add(l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, o *origin.Origin) string {
	if !l.Final {
		return ""
	}
	keep := v.Lost() || l.FinalBefore || (e.o.Slow > 0 && time.Duration(l.End()-l.Start()) >= e.o.Slow)
	if l.Serves != nil {
		if !keep && !e.o.Sample.Keeps(l.Serves.TraceID) {
			e.unsampled.Add(1)
			return ""
		}
		e.put(l, v, j, o, trace{traceID: l.Serves.TraceID, parent: l.Serves.SpanID, upstream: true, late: l.FinalBefore})
		return l.Serves.TraceID.String()
	}
	if l.Handshake != 0 {
		// No server has seen it: it stands under the lookup whose answer was truncated.
		r := l.Related[0]
		if keep || e.o.Sample.Keeps(r.TraceID) {
			e.put(l, v, j, o, trace{traceID: r.TraceID, parent: r.SpanID, handshake: true, late: l.FinalBefore})
			return r.TraceID.String()
		}
		e.unsampled.Add(1)
		return ""
	}
	key := l.Key()
	e.before = e.before[:0]
	if l.FinalBefore {
		e.before = l.EpochsBefore(e.before, e.o.Guard)
	}
	e.scratch = append(e.scratch[:0], e.before...)
	e.scratch = l.Epochs(e.scratch, e.o.Guard)
	kept, first := 0, ""
	for i, epoch := range e.scratch {
		if i >= len(e.before) && slices.Contains(e.before, epoch) {
			continue
		}
		t := trace{traceID: key.TraceID(epoch), epoch: epoch, isCopy: i > 0, root: l.ClientNetNS != 0, late: i < len(e.before)}
		if !keep && !e.o.Sample.Keeps(t.traceID) {
			continue
		}
		if !t.root || t.late {
			t.parent = t.traceID.ClientSpanID()
		}
		e.put(l, v, j, o, t)
		if kept == 0 {
			first = t.traceID.String()
		}
		kept++
	}
	if kept == 0 {
		e.unsampled.Add(1)
	}
	if kept > 1 {
		e.copies.Add(1)
	}
	return first
}

func (e *Exporter) put(l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, o *origin.Origin, t trace) {
	k := resourceKey{origin: o, own: !t.root && !t.upstream && !t.handshake}
	if k.own {
		k.origin = nil
	}
	g := e.pending[k]
	if g == nil {
		g = groups.Get().(*group)
		g.resource = e.resource(k)
		e.pending[k] = g
		e.batch = append(e.batch, g)
	}
	n, size := g.Len(), g.Size()
	e.builder.spans(&g.Spans, l, v, j, t)
	e.spans += g.Len() - n
	e.bytes += g.Size() - size
	e.made.Add(uint64(g.Len() - n))
	if e.spans >= e.o.Batch || e.bytes >= maxBatchBytes {
		e.flush()
	}
}

// Tick queues what has waited long enough. Call it every now and then.
func (e *Exporter) Tick(now time.Time) {
	if e.spans > 0 && now.Sub(e.flushed) >= e.o.Interval {
		e.flush()
	}
}

func (e *Exporter) flush() {
	e.flushed = time.Now()
	if e.spans == 0 {
		return
	}
	b := batch{e.spans, e.batch}
	select {
	case e.queue <- b:
	default:
		e.dropped.Add(uint64(e.spans))
		b.free()
	}
	e.batch, e.spans, e.bytes = nil, 0, 0
	clear(e.pending)
	if len(e.resources) > 16384 {
		clear(e.resources)
	}
}

func (e *Exporter) send() {
	defer close(e.done)
	for b := range e.queue {
		rs := make([]*tracepb.ResourceSpans, len(b.groups))
		for i, g := range b.groups {
			rs[i] = g.Message(g.resource, e.scope, semconv.SchemaURL)
		}
		if err := e.client.UploadTraces(e.ctx, rs); err != nil {
			e.failed.Add(uint64(b.spans))
			e.lastError.Store(&err)
		} else {
			e.sent.Add(uint64(b.spans))
		}
		b.free()
	}
}

// Stats gives the counts. It may be called from any goroutine.
func (e *Exporter) Stats() Stats {
	return Stats{Made: e.made.Load(), Sent: e.sent.Load(), Dropped: e.dropped.Load(), Failed: e.failed.Load(), Unsampled: e.unsampled.Load(), Copies: e.copies.Load()}
}

// LastError gives the last failure to send, nil if there was none.
func (e *Exporter) LastError() error {
	if err := e.lastError.Load(); err != nil {
		return *err
	}
	return nil
}

// Close sends what is left, until ctx ends, and stops. Add and Tick must not be called any more.
func (e *Exporter) Close(ctx context.Context) error {
	var err error
	e.closeOnce.Do(func() {
		e.flush()
		close(e.queue)
		select {
		case <-e.done:
		case <-ctx.Done():
		}
		e.stop()
		<-e.done
		err = e.client.Stop(context.WithoutCancel(ctx))
	})
	return err
}
