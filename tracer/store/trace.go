package store

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// Trace is the spans of one trace ID, joined.
type Trace struct {
	ID link.TraceID
	// Spans are all of them, by start time.
	Spans []*Span
	// Roots are the spans without a parent, and those whose parent did not come (see Missing).
	Roots []*Node
}

// Node is a span with the spans below it, by start time.
type Node struct {
	Span     *Span
	Children []*Node
}

// NewTrace joins spans, which must be of one trace and at least one. It does not keep or change the slice.
func NewTrace(spans []*Span) *Trace {
	t := &Trace{ID: spans[0].TraceID, Spans: slices.Clone(spans)}
	slices.SortStableFunc(t.Spans, func(a, b *Span) int {
		// Of spans that start together the longer one is drawn first: it holds the other.
		return cmp.Or(a.Start.Compare(b.Start), b.End.Compare(a.End))
	})
	nodes := make(map[link.SpanID]*Node, len(t.Spans))
	for _, s := range t.Spans {
		if have := nodes[s.SpanID]; have == nil || better(s, have.Span) {
			nodes[s.SpanID] = &Node{Span: s} // two agents may both send the derived client span
		}
	}
	for _, s := range t.Spans {
		n := nodes[s.SpanID]
		if n.Span != s {
			continue
		}
		if up := nodes[s.Parent]; up != nil && up != n && !under(up, n, nodes) {
			up.Children = append(up.Children, n)
		} else {
			t.Roots = append(t.Roots, n)
		}
	}
	return t
}

// better tells which of two spans with one ID stands for both: the one that knows the process, so the one of the client's own node.
func better(a, b *Span) bool {
	return a.Get(semconv.ProcessPID) != nil && b.Get(semconv.ProcessPID) == nil
}

// under tells whether n hangs below up by parents: then up must not hang below n. What is received need not be a tree.
func under(up, n *Node, nodes map[link.SpanID]*Node) bool {
	for range nodes {
		if up = nodes[up.Span.Parent]; up == nil {
			return false
		}
		if up == n {
			return true
		}
	}
	return true
}

// Get gives the value of an attribute of the span, or else of its resource; nil if neither has it.
func (s *Span) Get(key string) any {
	if v := s.Attributes.Get(key); v != nil {
		return v
	}
	if s.Resource != nil {
		return s.Resource.Attributes.Get(key)
	}
	return nil
}

// String gives the string under key in the span, or else in its resource; "" if neither has it.
func (s *Span) String(key string) string { v, _ := s.Get(key).(string); return v }

// Int gives the integer under key in the span, or else in its resource; 0 if neither has it.
func (s *Span) Int(key string) int64 { v, _ := s.Get(key).(int64); return v }

// SameSender tells whether both spans were made by the same scope for the same resource, as far as these tell.
func (s *Span) SameSender(other *Span) bool {
	if s.Resource == other.Resource && s.Scope == other.Scope {
		return true
	}
	if s.Resource == nil || other.Resource == nil || s.Scope == nil || other.Scope == nil || s.Scope.Name != other.Scope.Name {
		return false
	}
	for _, key := range []string{semconv.ServiceName, semconv.K8SNodeName, semconv.K8SPodName, semconv.K8SPodUID, semconv.HostName} {
		if s.Resource.Attributes.Get(key) != other.Resource.Attributes.Get(key) {
			return false
		}
	}
	return true
}

// From tells whether the span was made by the program with that instrumentation scope: see [semconv.ScopeTracer].
func (s *Span) From(scope string) bool { return s.Scope != nil && s.Scope.Name == scope }

// Client gives the tracer's CLIENT span: what the pod saw; nil if there is none.
func (t *Trace) Client() *Span {
	want := t.ID.ClientSpanID()
	var found *Span
	for _, s := range t.Spans {
		if s.Kind == KindClient && s.SpanID == want && s.From(semconv.ScopeTracer) && (found == nil || better(s, found)) {
			found = s
		}
	}
	return found
}

// Servers gives the plugin's SERVER spans by start time: one, or more where the client repeated its query or one CoreDNS asked another.
func (t *Trace) Servers() []*Span {
	var found []*Span
	for _, s := range t.Spans {
		if s.Kind == KindServer && s.From(semconv.ScopePlugin) {
			found = append(found, s)
		}
	}
	return found
}

// Server gives the SERVER span that hangs below the client's, or else the first; nil if there is none.
func (t *Trace) Server() *Span {
	servers := t.Servers()
	for _, s := range servers {
		if s.Parent == t.ID.ClientSpanID() {
			return s
		}
	}
	if len(servers) > 0 {
		return servers[0]
	}
	return nil
}

// Linked tells whether both sides are there and joined: the tracer's CLIENT is a root, the plugin's SERVER its child.
func (t *Trace) Linked() bool {
	c, s := t.Client(), t.Server()
	return c != nil && s != nil && c.Parent == (link.SpanID{}) && s.Parent == c.SpanID
}

// Missing gives the spans whose parent did not come.
func (t *Trace) Missing() []*Span {
	have := make(map[link.SpanID]bool, len(t.Spans))
	for _, s := range t.Spans {
		have[s.SpanID] = true
	}
	var orphans []*Span
	for _, s := range t.Spans {
		if s.Parent != (link.SpanID{}) && !have[s.Parent] {
			orphans = append(orphans, s)
		}
	}
	return orphans
}

// Copy tells whether the tracer's spans are marked as the second sending of a lookup at an epoch boundary.
func (t *Trace) Copy() bool {
	c := t.Client()
	if c == nil {
		return false
	}
	marked, _ := c.Attributes.Bool(semconv.LinkCopy)
	return marked
}

// Twin is what the original and the copy of a lookup at an epoch boundary have in common.
type Twin struct {
	start   int64
	address string
	port    int64
	id      int64
	name    string
	qtype   string
}

// Twin gives the zero Twin if the tracer sent nothing.
func (t *Trace) Twin() Twin {
	c := t.Client()
	if c == nil {
		return Twin{}
	}
	return Twin{
		c.Start.UnixNano(), c.String(semconv.ClientAddress), c.Int(semconv.ClientPort), c.Int(semconv.DNSID),
		c.String(semconv.QuestionName), c.String(semconv.QuestionType),
	}
}

// Shadows gives those of the traces that are the unlinked one of an original and its copy: CoreDNS's spans are in the
// other. They are no lookups of their own.
func Shadows(traces []*Trace) map[link.TraceID]bool {
	byTwin := map[Twin][]*Trace{}
	for _, t := range traces {
		if k := t.Twin(); k != (Twin{}) {
			byTwin[k] = append(byTwin[k], t)
		}
	}
	shadows := map[link.TraceID]bool{}
	for _, pair := range byTwin {
		if len(pair) < 2 {
			continue
		}
		// One stays: the linked one; of a lost lookup, which nobody linked, the one that is not marked.
		keep := slices.MinFunc(pair, func(a, b *Trace) int { return cmp.Compare(rank(a), rank(b)) })
		for _, t := range pair {
			if t != keep {
				shadows[t.ID] = true
			}
		}
	}
	return shadows
}

func rank(t *Trace) int {
	switch {
	case t.Linked():
		return 0
	case !t.Copy():
		return 1
	}
	return 2
}

// first gives the first non-nil span: the client's view comes before the server's.
func (t *Trace) first() *Span {
	if c := t.Client(); c != nil {
		return c
	}
	if s := t.Server(); s != nil {
		return s
	}
	return t.Roots[0].Span
}

// Start gives when the lookup began, by the side that saw it first.
func (t *Trace) Start() time.Time { return t.first().Start }

// Duration gives how long the lookup took for the client, or for CoreDNS where no tracer saw the client.
func (t *Trace) Duration() time.Duration { return t.first().Duration() }

// Name gives the name asked, in presentation form; "" if no span has it.
func (t *Trace) Name() string { return t.either(semconv.QuestionName) }

// Type gives the type asked: "A", ...
func (t *Trace) Type() string { return t.either(semconv.QuestionType) }

// Transport gives "udp" or "tcp".
func (t *Trace) Transport() string { return t.either(semconv.NetworkTransport) }

// Rcode gives the rcode that the client got, or else the one that CoreDNS sent: "NOERROR", ...; "" if neither is known.
func (t *Trace) Rcode() string { return t.either(semconv.ResponseCode) }

func (t *Trace) either(key string) string {
	for _, s := range []*Span{t.Client(), t.Server()} {
		if s != nil {
			if v := s.String(key); v != "" {
				return v
			}
		}
	}
	return ""
}

// Party is one end of a lookup.
type Party struct {
	Namespace, Pod, Node string
	// Workload is "Deployment/cart", or "".
	Workload string
	// Kind is what the client is: "pod", "node", ...; "" if not known.
	Kind string
	// Process and PID are of the process that asked; "" and 0 if not known.
	Process string
	PID     int64
	// Address is where the query came from, or, of a server, where it went; invalid if not known.
	Address netip.AddrPort
}

// String gives the shortest name that tells who it is: namespace/pod, else the node, else the address.
func (p Party) String() string {
	switch {
	case p.Pod != "" && p.Namespace != "":
		return p.Namespace + "/" + p.Pod
	case p.Pod != "":
		return p.Pod
	case p.Node != "":
		return "node " + p.Node
	case p.Address.IsValid():
		return p.Address.Addr().String()
	}
	return "unknown"
}

var workloads = []struct{ kind, key string }{
	{"Deployment", semconv.K8SDeploymentName}, {"StatefulSet", semconv.K8SStatefulSetName}, {"DaemonSet", semconv.K8SDaemonSetName},
	{"CronJob", semconv.K8SCronJobName}, {"Job", semconv.K8SJobName}, {"ReplicaSet", semconv.K8SReplicaSetName},
}

func podOf(s *Span) Party {
	p := Party{
		Namespace: s.String(semconv.K8SNamespaceName), Pod: s.String(semconv.K8SPodName), Node: s.String(semconv.K8SNodeName),
	}
	for _, w := range workloads {
		if name := s.String(w.key); name != "" {
			p.Workload = w.kind + "/" + name
			break
		}
	}
	return p
}

// Asker gives who asked: by the tracer, which knows the process, and by the plugin for what the tracer does not know.
func (t *Trace) Asker() Party {
	var p Party
	if c := t.Client(); c != nil {
		p = podOf(c)
		p.Kind = c.String(semconv.ClientKind)
		p.Process, p.PID = c.String(semconv.ProcessExecutableName), c.Int(semconv.ProcessPID)
		p.Address = endpoint(c, semconv.ClientAddress, semconv.ClientPort)
	}
	if s := t.Server(); s != nil {
		if p.Pod == "" {
			p.Pod, p.Namespace = s.String(semconv.ClientPodName), s.String(semconv.ClientNamespaceName)
		}
		p.Node = cmp.Or(p.Node, s.String(semconv.ClientNodeName))
		p.Kind = cmp.Or(p.Kind, s.String(semconv.ClientKind))
		if kind := s.String(semconv.ClientWorkloadKind); p.Workload == "" && kind != "" {
			p.Workload = kind + "/" + s.String(semconv.ClientWorkloadName)
		}
		if !p.Address.IsValid() {
			p.Address = endpoint(s, semconv.ClientAddress, semconv.ClientPort)
		}
	}
	return p
}

// Asked gives the address and port the client sent its query to, and the CoreDNS pod that took it where that is known.
func (t *Trace) Asked() Party {
	var p Party
	if s := t.Server(); s != nil {
		p = podOf(s)
		p.Address = endpoint(s, semconv.ServerAddress, semconv.ServerPort)
	}
	if c := t.Client(); c != nil {
		if a := endpoint(c, semconv.ServerAddress, semconv.ServerPort); a.IsValid() {
			p.Address = a
		}
	}
	return p
}

// Peer gives the address and port under network.peer.*: of an upstream attempt, the upstream.
func (s *Span) Peer() netip.AddrPort {
	return endpoint(s, semconv.NetworkPeerAddress, semconv.NetworkPeerPort)
}

func endpoint(s *Span, address, port string) netip.AddrPort {
	a, err := netip.ParseAddr(s.String(address))
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(s.Int(port)))
}

// ParseTraceID reads 32 hexadecimal digits of either case.
func ParseTraceID(text string) (link.TraceID, error) {
	var id link.TraceID
	if b, err := hex.DecodeString(strings.ToLower(text)); err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%q is no trace ID: want 32 hexadecimal digits", text)
	} else {
		copy(id[:], b)
	}
	if id == (link.TraceID{}) {
		return id, fmt.Errorf("%q is no trace ID: all zero", text)
	}
	return id, nil
}

// Self gives the part of a span's time that none of its children covers.
func (n *Node) Self() time.Duration {
	self := n.Span.Duration()
	covered := n.Span.Start
	for _, c := range n.Children { // by start time
		from, to := c.Span.Start, c.Span.End
		if from.Before(covered) {
			from = covered
		}
		if to.After(n.Span.End) {
			to = n.Span.End
		}
		if to.After(from) {
			self -= to.Sub(from)
			covered = to
		}
	}
	return self
}

// Translated gives the address and port that the query really went to: where the connection-tracking entry expects the reply from. Invalid if the tracer saw none.
func (t *Trace) Translated() netip.AddrPort {
	c := t.Client()
	if c == nil {
		return netip.AddrPort{}
	}
	server, _, _ := strings.Cut(c.String(semconv.ConntrackReply), ">")
	ap, err := netip.ParseAddrPort(server)
	if err != nil {
		return netip.AddrPort{}
	}
	return ap
}
