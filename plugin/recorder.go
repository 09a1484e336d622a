package dnstrail

import (
	"slices"
	"sync"
	"time"

	ot "github.com/opentracing/opentracing-go"
	otlog "github.com/opentracing/opentracing-go/log"

	"github.com/dnstrail/dnstrail/link"
)

// maxNodes bounds the spans of one query. What goes beyond is counted, not recorded.
const maxNodes = 128

// recorder notes the plugins and the upstream attempts that a query passes. CoreDNS takes its nodes for opentracing
// spans. It is safe for concurrent use, and what comes after close is left out: the exporter owns it from then on.
type recorder struct {
	q      *query
	anchor *node // what a plugin is told the active span is, if it asks the query itself

	mu      sync.Mutex
	closed  bool
	omitted int  // nodes over maxNodes
	ahead   int  // plugins of the chain that the query had passed before: spans stand for them, nodes do not
	seen    seen // of a query that is kept
	nodes   []*node

	// Room for a cached answer's nodes, and for pointers to a few more.
	first [5]node
	order [8]*node
}

// nodeKind says what a node stands for.
type nodeKind uint8

const (
	serverNode  nodeKind = iota // the query itself
	pluginNode                  // a plugin passed
	attemptNode                 // an upstream attempt
	lookupNode                  // a look-up that a plugin makes through the server
	hiddenNode                  // a probe of ours: not shown
)

// node is one step of a query: a span, its opentracing context, and the tracer that starts its children.
type node struct {
	rec    *recorder
	inner  ot.Span // the span of plugin trace that stands for the same step, or nil
	parent *node
	name   string
	id     link.SpanID
	from   int64 // ns since the query began
	to     int64 // 0 while it is open
	kind   nodeKind
	nested bool // it belongs to a look-up that a plugin made
	att    *attempt
	fwd    *forwarding
	look   *lookup
}

func newRecorder(q *query, inner ot.Span) *recorder {
	rec := &recorder{q: q}
	rec.nodes = rec.order[:1]
	root := &rec.first[0]
	*root = node{rec: rec, inner: inner, id: q.spanID, kind: serverNode}
	rec.nodes[0] = root
	rec.anchor = root
	return rec
}

func (rec *recorder) root() *node { return &rec.first[0] }

// now gives the time since the query began, in ns, never 0.
func (rec *recorder) now() int64 { return max(1, int64(time.Since(rec.q.begun))) }

// start opens a node. It is never nil; once the recorder is full or closed, the node is in no list and ends nowhere.
func (rec *recorder) start(parent *node, name string, kind nodeKind) *node {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	var n *node
	switch {
	case rec.closed:
		countLate()
		return &node{rec: rec, parent: parent, name: name, kind: hiddenNode}
	case len(rec.nodes) >= maxNodes:
		rec.omitted++
		return &node{rec: rec, parent: parent, name: name, kind: hiddenNode, nested: parent.nested}
	case len(rec.nodes) < len(rec.first):
		n = &rec.first[len(rec.nodes)]
	default:
		n = new(node)
	}
	n.rec, n.parent, n.name, n.kind = rec, parent, name, kind
	n.nested = parent.nested || kind == lookupNode
	n.id = newSpanID()
	n.from = rec.now()
	rec.nodes = append(rec.nodes, n)
	return n
}

// end closes a node now.
func (rec *recorder) end(n *node) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.closed {
		return
	}
	if n.att != nil && n.att.retry != nil {
		n = n.att.retry
	}
	if n.to == 0 {
		n.to = rec.now()
	}
}

// innermost gives the name of the plugin that was entered last and has not returned.
func (rec *recorder) innermost() string {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for _, n := range slices.Backward(rec.nodes) {
		if n.kind == pluginNode && n.to == 0 && !n.nested {
			return n.name
		}
	}
	return ""
}

// deepest gives the name of the plugin that was entered last.
func (rec *recorder) deepest() string {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for _, n := range slices.Backward(rec.nodes) {
		if n.kind == pluginNode && !n.nested {
			return n.name
		}
	}
	return ""
}

// close ends what is still open and adds up what the result wants to know. Nothing changes a node afterwards.
func (rec *recorder) close(res *result) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.closed = true
	end := int64(res.total)
	for _, n := range rec.nodes {
		if n.to == 0 {
			n.to = end
		}
	}
	for _, n := range rec.nodes {
		switch {
		case n.kind == attemptNode:
			res.attempts++
			res.upstream += time.Duration(n.to - n.from)
		case n.fwd != nil && n.fwd.probed && n.took(rec.nodes):
			res.forward += time.Duration(n.to - n.from)
		}
	}
}

// passed gives nodes for the plugins that were passed before the recorder began, in the order in which they were. Each
// is the next one's parent, and the last one that of what the recorder has below its root. When the query came back to
// them was not noted: they end with it.
func (rec *recorder) passed() []node {
	if rec.ahead == 0 {
		return nil
	}
	nodes := make([]node, 0, rec.ahead)
	from := int64(0)
	for i := range rec.ahead {
		hop := &rec.q.d.chain.hops[i]
		from = max(from, rec.q.entered.at(i))
		if hop.probe() {
			continue
		}
		nodes = append(nodes, node{rec: rec, name: hop.name, id: newSpanID(), from: from, to: int64(rec.q.total),
			kind: pluginNode})
	}
	return nodes
}

// shown gives how many spans the recorder makes. It is for after close.
func (rec *recorder) shown() int {
	n := 0
	for i := range rec.ahead {
		if !rec.q.d.chain.hops[i].probe() {
			n++
		}
	}
	for _, node := range rec.nodes {
		if node.kind != hiddenNode {
			n++
		}
	}
	return n
}

// startChild opens a node below n, and the span of plugin trace that belongs to it.
func (n *node) startChild(name string) *node {
	kind := pluginNode
	switch name {
	case refreshName, upstreamName:
		kind = hiddenNode
	case "connect", "query", "request": // forward, grpc, and the external fanout call their attempts so
		kind = attemptNode
	}
	c := n.rec.start(n, name, kind)
	if kind == attemptNode {
		c.att = newAttempt(n)
	}
	if name == "forward" {
		c.fwd = n.nextForward()
	}
	if n.inner != nil {
		c.inner = n.inner.Tracer().StartSpan(name, ot.ChildOf(n.inner.Context()))
	}
	return c
}

// StartSpan implements opentracing.Tracer.
func (n *node) StartSpan(name string, opts ...ot.StartSpanOption) ot.Span {
	parent := n
	for _, o := range opts {
		if ref, ok := o.(ot.SpanReference); ok {
			if p, ok := ref.ReferencedContext.(*node); ok && p != nil {
				parent = p
			}
		}
	}
	return parent.startChild(name)
}

// Inject implements opentracing.Tracer.
func (n *node) Inject(sc ot.SpanContext, format, carrier any) error {
	if n.inner == nil {
		return ot.ErrUnsupportedFormat
	}
	return n.inner.Tracer().Inject(sc, format, carrier)
}

// Extract implements opentracing.Tracer.
func (n *node) Extract(format, carrier any) (ot.SpanContext, error) {
	if n.inner == nil {
		return nil, ot.ErrSpanContextNotFound
	}
	return n.inner.Tracer().Extract(format, carrier)
}

// Finish implements opentracing.Span.
func (n *node) Finish() {
	n.rec.end(n)
	if n.inner != nil && n.kind != serverNode { // the span of the whole query is plugin trace's to finish
		n.inner.Finish()
	}
}

// FinishWithOptions implements opentracing.Span.
func (n *node) FinishWithOptions(opts ot.FinishOptions) {
	n.rec.end(n)
	if n.inner != nil && n.kind != serverNode {
		n.inner.FinishWithOptions(opts)
	}
}

// Context implements opentracing.Span: the context of plugin trace's span if there is one, because its tracer knows no
// other.
func (n *node) Context() ot.SpanContext {
	if n.inner != nil {
		return n.inner.Context()
	}
	return n
}

// SetOperationName implements opentracing.Span.
func (n *node) SetOperationName(name string) ot.Span {
	if n.inner != nil {
		n.inner.SetOperationName(name)
	}
	return n
}

// SetTag implements opentracing.Span. Of the tags, only the address of an upstream is of use to us.
func (n *node) SetTag(key string, value any) ot.Span {
	if key == "peer.address" {
		if addr, ok := value.(string); ok {
			n.rec.setPeer(n, addr)
		}
	}
	if n.inner != nil {
		n.inner.SetTag(key, value)
	}
	return n
}

// LogFields implements opentracing.Span.
func (n *node) LogFields(fields ...otlog.Field) {
	if n.inner != nil {
		n.inner.LogFields(fields...)
	}
}

// LogKV implements opentracing.Span.
func (n *node) LogKV(keyValues ...any) {
	if n.inner != nil {
		n.inner.LogKV(keyValues...)
	}
}

// SetBaggageItem implements opentracing.Span.
func (n *node) SetBaggageItem(key, value string) ot.Span {
	if n.inner != nil {
		n.inner.SetBaggageItem(key, value)
	}
	return n
}

// BaggageItem implements opentracing.Span.
func (n *node) BaggageItem(key string) string {
	if n.inner != nil {
		return n.inner.BaggageItem(key)
	}
	return ""
}

// ForeachBaggageItem implements opentracing.SpanContext: there is none of ours.
func (n *node) ForeachBaggageItem(func(k, v string) bool) {}

// Tracer implements opentracing.Span.
func (n *node) Tracer() ot.Tracer { return n }

// LogEvent implements opentracing.Span.
//
// Deprecated: as in opentracing.
func (n *node) LogEvent(event string) { n.LogKV("event", event) }

// LogEventWithPayload implements opentracing.Span.
//
// Deprecated: as in opentracing.
func (n *node) LogEventWithPayload(event string, payload any) {
	n.LogKV("event", event, "payload", payload)
}

// Log implements opentracing.Span.
//
// Deprecated: as in opentracing.
func (n *node) Log(data ot.LogData) {
	if n.inner != nil {
		n.inner.Log(data)
	}
}
