// Package output shows lookups and their verdicts: as rows of text and as JSON lines.
package output

import (
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// SchemaVersion is the version of the JSON form of [Row]; docs/jsonl.md describes it. A field that is added leaves it as it is, one that is
// removed or changes its meaning raises it.
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
	Type      string `json:"type"`
	Class     string `json:"class,omitempty"`

	// Result is the rcode in words, or LOST.
	Result      string   `json:"result"`
	Answers     []string `json:"answers,omitempty"`
	AnsweredBy  string   `json:"answeredBy,omitempty"`
	Truncated   bool     `json:"truncated,omitempty"`
	ResponseLen int      `json:"responseBytes,omitempty"`

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
	// Group is the trace ID of the first of the lookups that belong together; Related says what earlier ones are to this one.
	Group   string    `json:"group,omitempty"`
	Related []Related `json:"related,omitempty"`
	// SearchStep counts the names of the search path asked before this one.
	SearchStep int `json:"searchStep,omitempty"`
	// Try is which try this is of those that asked the same from other ports or at other servers; absent on the first.
	Try int `json:"try,omitempty"`
	// Serves is the trace that this lookup was made for, where it is a server's own upstream query.
	Serves string `json:"serves,omitempty"`
	// Revision counts earlier rows of the same lookup: this one replaces them.
	Revision   int    `json:"revision"`
	EventsLost uint64 `json:"eventsLost,omitempty"`
}

// Client is who asked.
type Client struct {
	Address      string `json:"address"`
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
	Evidence  []string `json:"evidence,omitempty"`
	// Node is the node whose tracer's word it is, where that is another than the client's; Joined says that it follows from spans of several programs.
	Node   string `json:"node,omitempty"`
	Joined bool   `json:"joined,omitempty"`
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

// Lost is the result of a lookup without an answer.
const Lost = "LOST"

// NewRow makes the row of a lookup. guard is that of the trace link.
func NewRow(l *lookup.Lookup, v *verdict.Verdict, o *origin.Origin, node string, guard time.Duration) *Row {
	r := &Row{
		Schema: SchemaVersion, Time: time.Unix(0, l.Start()).UTC(), Node: node,
		Client: Client{
			Address: l.Client.String(), Namespace: o.Namespace, Pod: o.Pod, PodUID: o.PodUID, WorkloadKind: o.WorkloadKind, Workload: o.Workload,
			Node: o.Node, ContainerID: o.ContainerID, Process: o.Process, PID: o.PID,
		},
		Server: l.Server.String(), Transport: l.Transport.String(), ID: l.ID,
		Name: l.Question(), Type: dnswire.TypeString(l.Type),
		Result: Lost, Attempts: l.Attempts,
		Verdict: Verdict{
			Where: string(v.Where), Cause: string(v.Cause), Text: v.Text, Certainty: v.Certainty(), Drop: v.Drop, Evidence: v.Evidence,
		},
		Revision: l.Revision, EventsLost: l.EventsLost,
	}
	if l.Class != 1 {
		r.Class = dnswire.ClassString(l.Class)
	}
	if l.Ending == lookup.Answered && !v.Lost() {
		r.Result = dnswire.RcodeString(l.Body.Rcode)
	}
	if l.AnswerSeen {
		r.Answers, r.Truncated, r.ResponseLen = l.Body.Answers, l.Flags.Truncated(), l.AnswerSize
		r.AnsweredBy = l.AnsweredBy.String()
	}
	t := verdict.Times(l)
	r.Total, r.ServerSeen = t.Total, t.ServerSeen
	r.ToServer, r.AtServer, r.Return = part(t.ToServer), part(t.Server), part(t.Return)
	var scratch [4]link.Epoch
	key := l.Key()
	if epochs := l.Epochs(scratch[:0], guard); len(epochs) > 0 {
		r.TraceID = key.TraceID(epochs[0]).String()
	}
	if l.Handshake != 0 && len(l.Related) > 0 {
		r.TraceID = l.Related[0].TraceID.String() // the server knows nothing of it
	}
	if l.Serves != nil {
		r.Serves = l.Serves.TraceID.String()
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
		Nanos: h.Time - start, Kind: h.Kind.String(), Answer: h.Answer, Attempt: int(h.Attempt) + 1, Device: h.Device(), Tunnel: h.Tunnel, NetNS: h.NetNS,
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

func part(ns int64) *int64 {
	if ns < 0 {
		return nil
	}
	return &ns
}
