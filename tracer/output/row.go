// Package output shows lookups and their verdicts: as rows of text and as JSON lines.
package output

import (
	"net/netip"
	"time"
	"unsafe"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// SchemaVersion is the version of the JSON form of [Row]; docs/jsonl.md describes it. A field that is added leaves it
// as it is, one that is removed or changes its meaning raises it.
const SchemaVersion = 1

// Row is one lookup as it is shown: plain values, safe to keep.
type Row struct {
	Schema int `json:"schema"`
	// Time is when the client sent the query first.
	Time time.Time `json:"time"`
	// Node is the node that the tracer ran on, where it was told.
	Node string `json:"node,omitempty"`

	Client    Client `json:"client"`
	Server    string `json:"server"`
	Transport string `json:"transport"`
	ID        uint16 `json:"id"`
	Name      string `json:"name"`
	Type      string `json:"type,omitempty"`
	Class     string `json:"class,omitempty"`
	// Opcode is the kind of query, where it is no standard one: NOTIFY, UPDATE, OPCODE6.
	Opcode string `json:"opcode,omitempty"`
	// Connect says that this is a TCP connection to a DNS port on which no query was sent.
	Connect bool `json:"connect,omitempty"`
	// Own says that a DNS server asked for itself: an upstream query.
	Own bool `json:"serverQuery,omitempty"`

	// Result is the rcode in words, LOST, or ANSWERED where an answer was read that was not seen.
	Result      string   `json:"result"`
	Answers     []string `json:"answers,omitempty"`
	AnsweredBy  string   `json:"answeredBy,omitempty"`
	Truncated   bool     `json:"truncated,omitempty"`
	ResponseLen int      `json:"responseBytes,omitempty"`

	// Instance is the DNS server that stands behind Server, Cache what its cache had (hit, miss, stale, prefetch), and
	// Upstreams whom it asked, in order of time: what CoreDNS tells, of a store's rows.
	Instance  *Instance  `json:"instance,omitempty"`
	Cache     string     `json:"cache,omitempty"`
	Upstreams []Upstream `json:"upstreams,omitempty"`
	// Stages are how long the lookup spent at each stage, as far as that was seen, of a store's rows.
	Stages []Stage `json:"stages,omitempty"`

	// Durations are in nanoseconds; absent where the part was not seen.
	Total    int64  `json:"totalNanos"`
	ToServer *int64 `json:"toServerNanos,omitempty"`
	AtServer *int64 `json:"serverNanos,omitempty"`
	Return   *int64 `json:"returnNanos,omitempty"`
	// ServerSeen is false where the server is out of sight: then AtServer includes the network between.
	ServerSeen bool `json:"serverSeen"`

	Attempts int     `json:"attempts"`
	Verdict  Verdict `json:"verdict"`
	Hops     []Hop   `json:"hops"`

	TraceID string `json:"traceID"`
	// Group is the trace ID of the first of the lookups that belong together; Related says what earlier ones are to this
	// one.
	Group   string    `json:"group,omitempty"`
	Related []Related `json:"related,omitempty"`
	// SearchStep counts the names of the search path asked before this one.
	SearchStep int `json:"searchStep,omitempty"`
	// Try is which try this is of those that asked the same from other ports or at other servers; absent on the first.
	Try int `json:"try,omitempty"`
	// Serves is the trace that this lookup was made for, where it is a server's own upstream query.
	Serves string `json:"serves,omitempty"`
	// Flood is how much more its client left unanswered a moment ago, where that is more than is told one by one.
	Flood *Flood `json:"flood,omitempty"`
	// OwnTraceID is the trace ID that the server asked derives of it, where Serves is set.
	OwnTraceID string `json:"ownTraceID,omitempty"`
	// Revision counts earlier rows of the same lookup: this one replaces them.
	Revision   int    `json:"revision"`
	EventsLost uint64 `json:"eventsLost,omitempty"`
}

// Client is who asked.
type Client struct {
	Address      string `json:"address,omitempty"`
	Namespace    string `json:"namespace,omitempty"`
	Pod          string `json:"pod,omitempty"`
	PodUID       string `json:"podUID,omitempty"`
	WorkloadKind string `json:"workloadKind,omitempty"`
	Workload     string `json:"workload,omitempty"`
	Node         string `json:"node,omitempty"`
	ContainerID  string `json:"containerID,omitempty"`
	Process      string `json:"process,omitempty"`
	PID          uint32 `json:"pid,omitempty"`
}

// Instance is one of the DNS servers behind a service.
type Instance struct {
	// Address is what Server was translated to, where that was seen.
	Address   string `json:"address,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	Node      string `json:"node,omitempty"`
}

// Stage is a stage of the way, as in a verdict's Where.
type Stage struct {
	Stage string `json:"stage"`
	Nanos int64  `json:"nanos"`
}

// Upstream is one attempt of a DNS server's at another.
type Upstream struct {
	Address   string `json:"address"`
	Transport string `json:"transport,omitempty"`
	Nanos     int64  `json:"nanos"`
	// Result is the response code in words, or the type of the error; Failed says that it was no use.
	Result string `json:"result"`
	Failed bool   `json:"failed,omitempty"`
}

// Flood is what a client that floods left unanswered.
type Flood struct {
	PerSecond int `json:"perSecond"`
	Untold    int `json:"untold"` // lookups that have no row
}

// Related is an earlier lookup that belongs to this one.
type Related struct {
	Kind    string `json:"kind"` // pair, retry, search, truncated
	TraceID string `json:"traceID"`
}

// Verdict is the verdict in words.
type Verdict struct {
	Where     string   `json:"where"`
	Cause     string   `json:"cause"`
	Text      string   `json:"text,omitempty"`
	Certainty string   `json:"certainty"`
	Drop      string   `json:"dropReason,omitempty"`
	DropOwner *Owner   `json:"dropOwner,omitempty"`
	Evidence  []string `json:"evidence,omitempty"`
	// Node is the node whose tracer's word it is, where that is another than the client's; Joined says that it follows
	// from spans of several programs.
	Node   string `json:"node,omitempty"`
	Joined bool   `json:"joined,omitempty"`
}

// Owner is whose the network namespace is in which the kernel dropped a packet.
type Owner struct {
	Kind string `json:"kind"` // pod, node, host, named, process
	Name string `json:"name"` // of a pod namespace/pod
}

// Hop is one hop.
type Hop struct {
	Nanos     int64  `json:"nanos"` // since Row.Time
	Kind      string `json:"kind"`  // out, in, drop, read
	Answer    bool   `json:"answer,omitempty"`
	Attempt   int    `json:"attempt,omitempty"` // from 1
	Node      string `json:"node,omitempty"`    // whose agent saw it, of a store's rows
	Device    string `json:"device,omitempty"`
	Tunnel    bool   `json:"tunnel,omitempty"`
	NetNS     uint32 `json:"netns,omitempty"`
	Src       string `json:"src,omitempty"`
	Dst       string `json:"dst,omitempty"`
	Conntrack string `json:"conntrack,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Process   string `json:"process,omitempty"`
	PID       uint32 `json:"pid,omitempty"`
}

// The results that are no response codes: of a lookup without an answer, and of one whose answer the client was handed
// by a way that is out of sight.
const (
	Lost     = "LOST"
	Answered = "ANSWERED"
)

// NewRow makes the row of a lookup. guard is that of the trace link.
func NewRow(l *lookup.Lookup, v *verdict.Verdict, o *origin.Origin, node string, guard time.Duration) *Row {
	r := &Row{
		Schema: SchemaVersion, Time: time.Unix(0, l.Start()).UTC(), Node: node,
		Client: Client{
			Address: text(o.From(l.Client.AddrPort())), Namespace: o.Namespace, Pod: o.Pod, PodUID: o.PodUID,
			WorkloadKind: o.WorkloadKind, Workload: o.Workload,
			Node: o.Node, ContainerID: o.ContainerID, Process: o.Process, PID: o.PID,
		},
		Server: l.Server.String(), Transport: l.Transport.String(), ID: l.ID,
		Name:   l.Question(),
		Result: Lost, Attempts: l.AttemptsBefore + l.Attempts, Connect: l.Connect, Own: l.Own,
		Verdict: Verdict{
			Where: string(v.Where), Cause: string(v.Cause), Text: v.Text, Certainty: v.Certainty(), Drop: v.Drop,
			Evidence: v.Evidence,
		},
		Revision: l.Revision, EventsLost: l.EventsLost,
	}
	if l.Flood != nil {
		r.Flood = &Flood{l.Flood.PerSecond(), l.Flood.Untold}
	}
	if o := v.DropAt.Owner; o.Kind != "" {
		r.Verdict.DropOwner = &Owner{string(o.Kind), o.Name}
	}
	if l.HasQuestion() {
		r.Type = dnswire.TypeString(l.Type)
		if l.Class != 1 {
			r.Class = dnswire.ClassString(l.Class)
		}
	}
	if l.Opcode != 0 {
		r.Opcode = dnswire.OpcodeString(l.Opcode)
	}
	switch {
	case v.Lost():
	case l.AnswerSeen:
		r.Result = dnswire.RcodeString(l.Body.Rcode)
	default:
		r.Result = Answered
	}
	if l.AnswerSeen {
		r.Answers, r.Truncated, r.ResponseLen = l.Answers(), l.Flags.Truncated(), l.AnswerSize
		r.AnsweredBy = l.AnsweredBy.String()
	}
	t := verdict.Times(l)
	r.Total, r.ServerSeen = t.Total, t.ServerSeen
	r.ToServer, r.AtServer, r.Return = part(t.ToServer), part(t.Server), part(t.Return)
	var scratch [4]link.Epoch
	key := l.Key()
	epochs := l.Epochs(scratch[:0], guard)
	if l.FirstEpoch != 0 {
		// A server that reads the query late derives another epoch than was known; the lookup keeps the trace it was told
		// under.
		epochs = append(scratch[:0], l.FirstEpoch)
	}
	if len(epochs) > 0 {
		r.TraceID = key.TraceID(epochs[0]).String()
	}
	if l.Connect && len(l.Related) > 0 {
		r.TraceID = l.Related[0].TraceID.String() // the server knows nothing of it
	}
	if l.Serves != nil {
		r.Serves = l.Serves.TraceID.String()
		if !l.Connect {
			r.OwnTraceID = r.TraceID
		}
		r.TraceID = r.Serves
	}
	if l.Group != (link.TraceID{}) {
		r.Group, r.SearchStep = l.Group.String(), l.SearchStep
		if l.AttemptOfGroup > 1 {
			r.Try = l.AttemptOfGroup
		}
	}
	for _, rel := range l.Related {
		r.Related = append(r.Related, Related{string(rel.Kind), rel.TraceID.String()})
	}
	r.Hops = make([]Hop, len(l.Hops))
	for i := range l.Hops {
		r.Hops[i] = newHop(&l.Hops[i], l.Start())
	}
	return r
}

func newHop(h *hop.Hop, start int64) Hop {
	out := Hop{
		Nanos: h.Time - start, Kind: h.Kind.String(), Answer: h.Answer, Attempt: int(h.Attempt) +
			1, Device: h.Device(), Tunnel: h.Tunnel, NetNS: h.NetNS,
		Src: h.Src.String(), Dst: h.Dst.String(), Reason: h.Reason.String(),
	}
	if h.Tracked {
		out.Conntrack = h.Conntrack.String()
	}
	if h.Process != nil {
		out.Process, out.PID = h.Process.Name, h.Process.PID
	}
	return out
}

// text gives an address and port, "" where it is not known.
func text(at netip.AddrPort) string {
	if !at.IsValid() {
		return ""
	}
	return at.String()
}

func part(ns int64) *int64 {
	if ns < 0 {
		return nil
	}
	return &ns
}

// Bytes gives about how much memory the row takes, in bytes: what it holds, counted as if it shared nothing.
func (r *Row) Bytes() int {
	n := int(unsafe.Sizeof(*r))
	for _, text := range []string{
		r.Node, r.Server, r.Transport, r.Name, r.Type, r.Class, r.Opcode, r.Result, r.AnsweredBy, r.Cache, r.TraceID, r.Group,
		r.Serves, r.OwnTraceID, r.Client.Address, r.Client.Namespace, r.Client.Pod, r.Client.PodUID, r.Client.WorkloadKind,
		r.Client.Workload, r.Client.Node, r.Client.ContainerID, r.Client.Process, r.Verdict.Where, r.Verdict.Cause,
		r.Verdict.Text, r.Verdict.Certainty, r.Verdict.Drop, r.Verdict.Node,
	} {
		n += len(text)
	}
	const header = int(unsafe.Sizeof(""))
	for _, list := range [][]string{r.Answers, r.Verdict.Evidence} {
		for _, text := range list {
			n += header + len(text)
		}
	}
	if i := r.Instance; i != nil {
		n += int(unsafe.Sizeof(*i)) + len(i.Address) + len(i.Namespace) + len(i.Pod) + len(i.Node)
	}
	if o := r.Verdict.DropOwner; o != nil {
		n += int(unsafe.Sizeof(*o)) + len(o.Kind) + len(o.Name)
	}
	for _, u := range r.Upstreams {
		n += int(unsafe.Sizeof(u)) + len(u.Address) + len(u.Transport) + len(u.Result)
	}
	for _, s := range r.Stages {
		n += int(unsafe.Sizeof(s)) + len(s.Stage)
	}
	for _, rel := range r.Related {
		n += int(unsafe.Sizeof(rel)) + len(rel.Kind) + len(rel.TraceID)
	}
	for i := range r.Hops {
		h := &r.Hops[i]
		n += int(unsafe.Sizeof(*h)) + len(h.Kind) + len(h.Node) + len(h.Device) + len(h.Src) + len(h.Dst) + len(h.Conntrack) +
			len(h.Reason) + len(h.Process)
	}
	const part = int(unsafe.Sizeof(int64(0)))
	return n + 3*part // ToServer, AtServer, Return
}
