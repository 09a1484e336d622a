package export

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/s2"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/otlp"
	"github.com/dnstrail/dnstrail/link/otlpenv"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// DefaultQueueBytes is how much memory the spans that wait take at most, in bytes.
const DefaultQueueBytes = 64 << 20

// Options say what is exported.
type Options struct {
	// Sample is the share of traces kept.
	Sample link.Ratio
	// Slow is the duration from which a lookup is kept whatever Sample says; 0 keeps none for that. Lookups that failed
	// are always kept.
	Slow time.Duration
	// Guard is how far apart this host's clock and CoreDNS's may be.
	Guard time.Duration
	// Node is the name of the node that this tracer runs on, and Host of the host; for spans of clients out of its sight.
	Node, Host string
	// Owner tells whose a network namespace is: the zero value where nobody knows. Nil knows none. It is asked of lookups
	// that failed only.
	Owner func(netns uint32) verdict.Owner
	// Index tells whose addresses are whose: see [Exporter.mayDerive]. Nil knows nobody.
	Index *identity.Index
	// Version is the program's.
	Version string
	// Batch is the number of spans that are sent at once, and Interval the longest that a span waits for them.
	Batch    int
	Interval time.Duration
	// Queue bounds the batches that wait to be sent, and QueueBytes the memory that they take.
	Queue      int
	QueueBytes int
	// Timeout is how long sending a batch may take.
	Timeout time.Duration
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
	if o.QueueBytes == 0 {
		o.QueueBytes = DefaultQueueBytes
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
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

// Exporter makes spans and sends them. Add and Tick are for one goroutine and never wait; what cannot be queued is
// dropped and counted.
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
	twins     []link.TraceID
	queue     chan batch
	packing   []byte       // memory to pack in
	queued    atomic.Int64 // bytes that the batches take which are not sent yet
	done      chan struct{}
	stop      context.CancelFunc
	ctx       context.Context
	closeOnce sync.Once

	made, sent, dropped, failed, unsampled, copies atomic.Uint64
	lastError                                      atomic.Pointer[error]
}

// maxResources bounds the resources that are kept for further spans: a client's address is its own choice.
const maxResources = 4096

type resourceKey struct {
	origin *origin.Origin
	own    bool
}

// group is the spans of one resource in a batch.
type group struct {
	otlp.Spans
	resource *resourcepb.Resource
	packed   bool // its bytes are compressed
}

type batch struct {
	spans  int
	bytes  int64 // of memory
	groups []*group
}

// bytesOfResource is roughly what a resource takes in memory, in bytes.
const bytesOfResource = 2 << 10

// newBatch takes groups together.
func newBatch(spans int, groups []*group) batch {
	b := batch{spans: spans, groups: groups}
	for _, g := range groups {
		b.bytes += int64(g.Room()) + bytesOfResource
	}
	return b
}

// groups are groups that have been sent or dropped, and keep their memory for others.
var groups = sync.Pool{New: func() any { return new(group) }}

// pack makes a batch that is to wait smaller: spans repeat each other in most of what they say. room is memory for it,
// which it gives back.
func (b *batch) pack(room []byte) []byte {
	b.bytes = 0
	for _, g := range b.groups {
		raw := g.Swap(nil)
		room = s2.Encode(room[:cap(room)], raw)
		g.Swap(slices.Clone(room))
		g.packed = true
		b.bytes += int64(g.Room()) + bytesOfResource
		spare := groups.New().(*group) // the memory is kept for spans to come
		spare.Swap(raw[:0])
		groups.Put(spare)
	}
	return room
}

// unpack undoes pack.
func (b *batch) unpack() error {
	for _, g := range b.groups {
		if !g.packed {
			continue
		}
		raw, err := s2.Decode(nil, g.Swap(nil))
		if err != nil {
			return fmt.Errorf("unpacking spans that waited: %w", err)
		}
		g.Swap(raw)
		g.packed = false
	}
	return nil
}

func (b batch) free() {
	for _, g := range b.groups {
		g.Cut(otlp.Mark{})
		g.resource, g.packed = nil, false
		groups.Put(g)
	}
}

// nowhere is the client of an exporter that makes no spans.
type nowhere struct{}

func (nowhere) Start(context.Context) error                                  { return nil }
func (nowhere) Stop(context.Context) error                                   { return nil }
func (nowhere) UploadTraces(context.Context, []*tracepb.ResourceSpans) error { return nil }

// New makes an exporter and starts its sender. Without a client (nil) spans go nowhere, and none are made.
func New(client otlptrace.Client, o Options) (*Exporter, error) {
	o.setDefaults()
	ctx, stop := context.WithCancel(context.Background())
	if client == nil {
		client = nowhere{}
	}
	if err := client.Start(ctx); err != nil {
		stop()
		return nil, fmt.Errorf("starting the OTLP exporter: %w", err)
	}
	e := &Exporter{
		o: o, client: client, builder: newBuilder(o.Owner), flushed: time.Now(),
		pending:   make(map[resourceKey]*group),
		resources: make(map[*origin.Origin]*resourcepb.Resource),
		scope:     &commonpb.InstrumentationScope{Name: semconv.ScopeTracer, Version: o.Version},
		queue:     make(chan batch, o.Queue),
		done:      make(chan struct{}), stop: stop, ctx: ctx,
	}
	go e.send()
	return e, nil
}

// Add makes the spans of a lookup that has ended for good and puts them into the next batch. It gives the trace ID
// under which they go first, "" if none is kept.
func (e *Exporter) Add(l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, o *origin.Origin) string {
	return e.add(l, v, j, o, false)
}

// Asked is [Exporter.Add] of a lookup that is kept whatever the share: somebody asked about it, for a reason in a word,
// and its spans say so; or, without a reason, it is a query that serves one that was kept.
func (e *Exporter) Asked(l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, o *origin.Origin,
	reason string) string {
	e.builder.asked = reason
	defer func() { e.builder.asked = "" }()
	return e.add(l, v, j, o, true)
}

// Sends says whether spans go anywhere.
func (e *Exporter) Sends() bool { return e.client != (nowhere{}) }

func (e *Exporter) add(l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, o *origin.Origin, asked bool) string {
	if !l.Final || !e.Sends() {
		return ""
	}
	keep := asked || v.Where != verdict.Answered || l.FinalBefore && !l.Again ||
		(e.o.Slow > 0 && time.Duration(l.End()-l.Start()) >= e.o.Slow)
	if l.Serves != nil {
		return e.served(l, v, j, o, keep)
	}
	if l.Connect && len(l.Related) > 0 {
		// No server has seen it: it stands under the lookup whose answer was truncated.
		r := l.Related[0]
		if keep || e.o.Sample.Holds(r.TraceID) {
			e.put(l, v, j, o, trace{traceID: r.TraceID, parent: r.SpanID, handshake: true, late: l.FinalBefore})
			return r.TraceID.String()
		}
		e.unsampled.Add(1)
		return ""
	}
	first := e.derived(l, v, j, o, keep, false)
	if first == "" {
		e.unsampled.Add(1)
	}
	return first
}

// served puts what is known of a server's own query into the trace of the lookup that it was made to answer, and gives
// that trace's ID, "" if it is not kept. Where the server asked may derive a trace ID of the query, it goes into that
// trace, too: the other server's span lies there, as the child of this query's.
func (e *Exporter) served(l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, o *origin.Origin, keep bool) string {
	own := !l.Connect && e.mayDerive(l)
	t := trace{traceID: l.Serves.TraceID, parent: l.Serves.SpanID, upstream: true, late: l.FinalBefore}
	kept := keep || e.o.Sample.Holds(t.traceID)
	if kept {
		if own {
			t.own = primary(l)
		}
		e.put(l, v, j, o, t)
	}
	own = own && e.derived(l, v, j, o, keep, kept) != ""
	if kept {
		return t.traceID.String()
	}
	if !own {
		e.unsampled.Add(1)
	}
	return ""
}

// mayDerive tells whether the server asked may derive a trace ID of the query: one behind a service address, or one
// that is a pod or a node of the cluster. Where nobody knows whose the address is, it may if it is a private one. An
// upstream outside has no part in the cluster's traces: a trace for each query to it would tell nothing that the trace
// of the lookup served does not.
func (e *Exporter) mayDerive(l *lookup.Lookup) bool {
	for i := range l.Hops {
		if h := &l.Hops[i]; !h.Answer && h.Kind != hop.Unreachable && h.Dst != l.Server {
			return true
		}
	}
	a := l.Server.AddrPort().Addr()
	switch e.o.Index.Lookup(a).Kind() {
	case identity.External:
		return false
	case identity.Unknown:
		return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast()
	}
	return true
}

// primary gives the trace ID that the server asked derives of a lookup, most likely.
func primary(l *lookup.Lookup) link.TraceID {
	k := l.Key()
	var scratch [4]link.Epoch
	return k.TraceID(l.Epochs(scratch[:0], 0)[0])
}

// derived puts the spans of a lookup into the traces that the server asked may derive of it, and gives the ID of the
// first, "" if none is kept. With bare, the trace of the lookup served has the segments already.
func (e *Exporter) derived(
	l *lookup.Lookup, v *verdict.Verdict, j *verdict.Judge, o *origin.Origin, keep, bare bool,
) string {
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
		t := trace{
			traceID: key.TraceID(epoch), epoch: epoch, isCopy: i > 0, late: i < len(e.before),
			beside: l.Beside, bare: bare,
			// A server's own query is seen where it begins, though the kernel may send a TCP segment without a process.
			root: l.ClientNetNS != 0 || l.Serves != nil,
		}
		if l.Again && !l.Exported {
			t.late = false // nothing was sent of what went before
		}
		if !keep && !e.o.Sample.Holds(t.traceID) && (!bare || i > 0) {
			continue
		}
		if !t.root || t.late || t.beside {
			t.parent = t.traceID.ClientSpanID()
		}
		if len(e.scratch) > 1 {
			e.twins = appendTwins(e.twins[:0], &key, e.scratch, epoch)
			t.twins = e.twins
		}
		e.put(l, v, j, o, t)
		if kept == 0 {
			first = t.traceID.String()
		}
		kept++
	}
	l.Exported = l.Exported || kept > 0
	if kept > 1 {
		e.copies.Add(1)
	}
	return first
}

// appendTwins appends the trace IDs that a lookup has in epochs other than one.
func appendTwins(dst []link.TraceID, key *link.Key, epochs []link.Epoch, one link.Epoch) []link.TraceID {
	for _, epoch := range epochs {
		if id := key.TraceID(epoch); epoch != one && !slices.Contains(dst, id) {
			dst = append(dst, id)
		}
	}
	return dst
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
	e.builder.client = o.From(l.Client.AddrPort())
	e.builder.spans(&g.Spans, l, v, j, t)
	e.spans += g.Len() - n
	e.bytes += g.Size() - size
	e.made.Add(uint64(g.Len() - n))
	if e.spans >= e.o.Batch || e.bytes+len(e.batch)*bytesOfResource >= otlpenv.MaxBatchBytes {
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
	b := newBatch(e.spans, e.batch)
	if !e.enqueue(b) {
		e.dropped.Add(uint64(e.spans))
		b.free()
	}
	e.batch, e.spans, e.bytes = nil, 0, 0
	clear(e.pending)
	if len(e.resources) > maxResources {
		clear(e.resources)
	}
}

// packFrom is the part of the memory for spans that wait, as its divisor, from which on they are packed.
const packFrom = 2

// enqueue queues a batch; false where there is no room. One alone always has some.
func (e *Exporter) enqueue(b batch) bool {
	if q := e.queued.Load(); q > int64(e.o.QueueBytes/packFrom) {
		e.packing = b.pack(e.packing)
	}
	if q := e.queued.Load(); q > 0 && q+b.bytes > int64(e.o.QueueBytes) {
		return false
	}
	select {
	case e.queue <- b:
		e.queued.Add(b.bytes)
		return true
	default:
		return false
	}
}

func (e *Exporter) send() {
	defer close(e.done)
	for b := range e.queue {
		if err := b.unpack(); err != nil {
			e.failed.Add(uint64(b.spans))
			e.lastError.Store(&err)
			e.queued.Add(-b.bytes)
			b.free()
			continue
		}
		rs := make([]*tracepb.ResourceSpans, len(b.groups))
		for i, g := range b.groups {
			rs[i] = g.Message(g.resource, e.scope, semconv.SchemaURL)
		}
		if err := e.upload(rs); err != nil {
			e.failed.Add(uint64(b.spans))
			e.lastError.Store(&err)
		} else {
			e.sent.Add(uint64(b.spans))
		}
		e.queued.Add(-b.bytes)
		b.free()
	}
}

func (e *Exporter) upload(rs []*tracepb.ResourceSpans) error {
	ctx, cancel := context.WithTimeout(e.ctx, e.o.Timeout)
	defer cancel()
	return e.client.UploadTraces(ctx, rs)
}

// Stats gives the counts. It may be called from any goroutine.
func (e *Exporter) Stats() Stats {
	return Stats{Made: e.made.Load(), Sent: e.sent.Load(), Dropped: e.dropped.Load(), Failed: e.failed.Load(),
		Unsampled: e.unsampled.Load(), Copies: e.copies.Load()}
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
