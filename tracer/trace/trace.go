// Package trace is the model of one lookup's spans: the spans themselves, the tree that they form, and the verdict over
// all programs that saw the lookup. It keeps nothing and knows no network.
//
// [New] joins spans of one trace ID, which come from several programs in no order. [Trace.Verdict] tells where the
// lookup ended, by whoever was there; [Trace.VerdictAmong] adds what other lookups' traces tell. [Trace.Nested] is the
// tree for a reader. [FromOTLP] and [ToOTLP] are the way in and out.
package trace

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

	client  *Span
	servers []*Span
	depth   int // how many queries of servers it is below the lookup that is judged
}

// Node is a span with the spans below it, by start time.
type Node struct {
	Span     *Span
	Children []*Node
}

// New joins spans, which must be of one trace and at least one. It does not keep or change the slice.
func New(spans []*Span) *Trace { return join(spans[0].TraceID, spans) }

func join(id link.TraceID, spans []*Span) *Trace {
	t := &Trace{ID: id, Spans: slices.Clone(spans)}
	slices.SortStableFunc(t.Spans, func(a, b *Span) int {
		// Of spans that start together the longer one is drawn first: it holds the other.
		return cmp.Or(a.Start.Compare(b.Start), b.End.Compare(a.End))
	})
	t.servers = t.findServers()
	home := t.home()
	nodes := make(map[link.SpanID]*Node, len(t.Spans))
	for _, s := range t.Spans {
		if have := nodes[s.SpanID]; have == nil || better(s, have.Span, home) {
			nodes[s.SpanID] = &Node{Span: s} // two agents may both send the derived client span
		}
	}
	way := make(map[*Node]wayUp, len(nodes))
	for _, s := range t.Spans {
		n := nodes[s.SpanID]
		if n.Span != s {
			continue
		}
		if up := nodes[s.Parent]; up != nil && ends(n, nodes, way) {
			up.Children = append(up.Children, n)
		} else {
			t.Roots = append(t.Roots, n)
		}
	}
	t.client = t.findClient(home)
	return t
}

// home gives the node that the client's pod runs on, as every DNS server with the plugin knows it from Kubernetes; ""
// if none does, or they differ. A client that is no pod may be known by the address of another node, which translated
// its own.
func (t *Trace) home() string {
	home := ""
	for _, s := range t.servers {
		node := s.Attributes.String(semconv.ClientNodeName)
		if node == "" || s.Attributes.String(semconv.ClientKind) != "pod" {
			continue
		}
		if home != "" && node != home {
			return ""
		}
		home = node
	}
	return home
}

// better tells which of two spans with one ID stands for both: the one from the node that the client runs on, where a
// DNS server told that ([Trace.home]); the one that knows the process, so the one of the client's own node; of two that
// do, the one that came to the store first, since what is forged can only follow.
func better(a, b *Span, home string) bool {
	if home != "" {
		if here := a.sentBy(home); here != b.sentBy(home) {
			return here
		}
	}
	if knows := a.Get(semconv.ProcessPID) != nil; knows != (b.Get(semconv.ProcessPID) != nil) {
		return knows
	}
	return !a.sameOrigin(b) && a.received() < b.received()
}

// sentBy tells whether the span is of that node. A store takes it only from one who may speak for the node.
func (s *Span) sentBy(node string) bool {
	return s.Resource != nil && s.Resource.Attributes.String(semconv.K8SNodeName) == node
}

// Sender gives who sent the span, as a store noted it: the subject of a credential, or else an address; "" if none did.
func (s *Span) Sender() string {
	if s.Resource == nil {
		return ""
	}
	a := s.Resource.Attributes
	return cmp.Or(a.String(semconv.SenderName), a.String(semconv.SenderAddress))
}

func (s *Span) received() int64 {
	if s.Resource == nil {
		return 0
	}
	return s.Resource.Attributes.Int(semconv.SenderTime)
}

// sameOrigin tells whether one program may have sent both, as far as a store noted that.
func (s *Span) sameOrigin(other *Span) bool {
	mine, others := s.Sender(), other.Sender()
	return mine == "" || others == "" || mine == others
}

// Contradicted gives the spans that say of themselves that they are the CLIENT span and tell of another end than that
// which [Trace.Client] gives, which another sender sent. The verdict does not heed them.
func (t *Trace) Contradicted() []*Span {
	c := t.Client()
	if c == nil {
		return nil
	}
	var found []*Span
	for _, s := range t.Spans {
		if s != c && s.Kind == KindClient && s.SpanID == c.SpanID && s.From(semconv.ScopeTracer) && !s.sameOrigin(c) &&
			s.Attributes.String(semconv.VerdictWhere) != c.Attributes.String(semconv.VerdictWhere) {
			found = append(found, s)
		}
	}
	return found
}

// wayUp is where a node's parents lead to.
type wayUp int8

const (
	unknownWay wayUp = iota
	onTheWay         // it is being followed
	endingWay        // to a root
	endlessWay       // in a circle: what is received need not be a tree
)

// ends tells whether the parents of n lead to a root. Each node is followed once: way keeps what was found.
func ends(n *Node, nodes map[link.SpanID]*Node, way map[*Node]wayUp) bool {
	var path []*Node
	for n != nil && way[n] == unknownWay {
		way[n] = onTheWay
		path = append(path, n)
		n = nodes[n.Span.Parent]
	}
	found := endingWay
	if n != nil && way[n] != endingWay {
		found = endlessWay
	}
	for _, n := range path {
		way[n] = found
	}
	return found == endingWay
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
	if s.Resource == nil || other.Resource == nil || s.Scope == nil || other.Scope == nil ||
		s.Scope.Name != other.Scope.Name {
		return false
	}
	if !s.sameOrigin(other) {
		return false // whatever both say of themselves
	}
	for _, key := range []string{semconv.ServiceName, semconv.K8SNodeName, semconv.K8SPodName, semconv.K8SPodUID,
		semconv.HostName} {
		if s.Resource.Attributes.String(key) != other.Resource.Attributes.String(key) {
			return false
		}
	}
	return true
}

// From tells whether the span was made by the program with that instrumentation scope: see [semconv.ScopeTracer].
func (s *Span) From(scope string) bool { return s.Scope != nil && s.Scope.Name == scope }

// clientID gives the ID of the CLIENT span, whether or not the span is here.
func (t *Trace) clientID() link.SpanID {
	if t.client != nil {
		return t.client.SpanID
	}
	return t.ID.ClientSpanID()
}

// Client gives the tracer's CLIENT span: what the pod saw; nil if there is none.
func (t *Trace) Client() *Span { return t.client }

func (t *Trace) findClient(home string) *Span {
	want := t.ID.ClientSpanID()
	var found *Span
	for _, s := range t.Spans {
		if s.Kind == KindClient && s.SpanID == want && s.From(semconv.ScopeTracer) &&
			(found == nil || better(s, found, home)) {
			found = s
		}
	}
	return found
}

// Servers gives the plugin's SERVER spans by start time: one, or more where the client repeated its query or one
// CoreDNS asked another. The slice is not to be changed.
func (t *Trace) Servers() []*Span { return t.servers }

func (t *Trace) findServers() []*Span {
	var found []*Span
	for _, s := range t.Spans {
		if s.Kind == KindServer && s.From(semconv.ScopePlugin) && t.has(s) {
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
	server  netip.AddrPort
}

// Twin gives the zero Twin if the tracer sent nothing.
func (t *Trace) Twin() Twin {
	c := t.Client()
	if c == nil {
		return Twin{}
	}
	return Twin{
		c.Start.UnixNano(), c.String(semconv.ClientAddress), c.Int(semconv.ClientPort), c.Int(semconv.DNSID),
		c.String(semconv.QuestionName), c.String(semconv.QuestionType), asked(c),
	}
}

// maxCopies bounds the epochs that one lookup may lie in.
const maxCopies = 8

// Copies gives the trace IDs under which the same lookup was sent, too, because it lies at an epoch boundary.
func (t *Trace) Copies() []link.TraceID {
	c := t.Client()
	if c == nil {
		return nil
	}
	var ids []link.TraceID
	for _, l := range c.Links {
		if len(ids) == maxCopies {
			break
		}
		if marked, _ := l.Attributes.Bool(semconv.LinkCopy); marked && l.TraceID != t.ID {
			ids = append(ids, l.TraceID)
		}
	}
	return ids
}

// Shadows gives those of the lookups that are the unlinked one of an original and its copy: CoreDNS's spans are in the
// other. They are no lookups of their own. Each must be one lookup: see [Trace.Lookups].
func Shadows(lookups []*Trace) map[*Trace]bool {
	byTwin := map[Twin][]*Trace{}
	for _, t := range lookups {
		if k := t.Twin(); k != (Twin{}) {
			byTwin[k] = append(byTwin[k], t)
		}
	}
	shadows := map[*Trace]bool{}
	for _, pair := range byTwin {
		if len(pair) < 2 {
			continue
		}
		// One stays: the linked one; of a lost lookup, which nobody linked, the one that is not marked.
		keep := slices.MinFunc(pair, func(a, b *Trace) int { return cmp.Compare(rank(a), rank(b)) })
		for _, t := range pair {
			if t != keep {
				shadows[t] = true
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
func (t *Trace) Rcode() string {
	if c := t.Client(); c != nil {
		if late := t.correction(c); late != nil {
			if rcode := late.String(semconv.ResponseCode); rcode != "" {
				return rcode
			}
		}
	}
	return t.either(semconv.ResponseCode)
}

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
	{"Deployment", semconv.K8SDeploymentName}, {"StatefulSet", semconv.K8SStatefulSetName}, {"DaemonSet",
		semconv.K8SDaemonSetName},
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

// ParseID reads 32 hexadecimal digits of either case.
func ParseID(text string) (link.TraceID, error) {
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

// Translated gives the address and port that the query really went to: where the connection-tracking entry expects the
// reply from. Invalid if the client's agent saw none.
func (t *Trace) Translated() netip.AddrPort {
	c := t.Client()
	if c == nil {
		return netip.AddrPort{}
	}
	return c.Translated()
}
