// Package replay makes traces of the rows that an agent kept, so that what explains a trace explains the agent's past
// too, where no spans were collected.
package replay

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Traces gives the traces of rows: of the rows of one lookup the last counts, and a server's own query goes to the
// trace that it was made for. Rows without a trace ID are left out; an error names the row that cannot be read. A row
// without hops, of a query that never was a packet, is its CLIENT span alone.
func Traces(rows []*output.Row) ([]*trace.Trace, error) {
	spans := map[link.TraceID][]*trace.Span{}
	var order []link.TraceID
	first := map[string]*output.Row{} // of each trace, the row whose span has the derived ID
	for _, r := range last(rows) {
		if r.TraceID == "" {
			continue
		}
		below := r.Serves != "" || afterTruncation(r)
		if !below && first[r.TraceID] == nil {
			first[r.TraceID] = r
		}
		made, err := spansOf(r, !below && first[r.TraceID] != r)
		if err != nil {
			return nil, fmt.Errorf("lookup of %s at %s: %w", r.Name, r.Time.Format(time.RFC3339Nano), err)
		}
		id := made[0].TraceID
		if spans[id] == nil {
			order = append(order, id)
		}
		spans[id] = append(spans[id], made...)
	}
	traces := make([]*trace.Trace, len(order))
	for i, id := range order {
		traces[i] = trace.New(spans[id])
	}
	return traces, nil
}

// afterTruncation tells whether a row is of a TCP connection under the trace of the answer that had not fitted.
func afterTruncation(r *output.Row) bool { return r.Connect && len(r.Related) > 0 }

// last leaves out rows that a later one corrects.
func last(rows []*output.Row) []*output.Row {
	type key struct {
		start          time.Time
		client, server string
		id             uint16
		name, qtype    string
	}
	at := map[key]int{}
	var kept []*output.Row
	for _, r := range rows {
		k := key{r.Time, r.Client.Address, r.Server, r.ID, r.Name, r.Type}
		if i, ok := at[k]; ok {
			if r.Revision >= kept[i].Revision {
				kept[i] = r
			}
			continue
		}
		at[k] = len(kept)
		kept = append(kept, r)
	}
	return kept
}

// ids makes span IDs that are the same each time a row is replayed.
type ids struct {
	seed string
	n    int
}

func (i *ids) next() (id link.SpanID) {
	i.n++
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s/%d", i.seed, i.n) // never fails: package hash
	binary.BigEndian.PutUint64(id[:], h.Sum64()|1)
	return id
}

// spansOf makes the spans of a row. beside says that another one of the same trace, to another server, has the derived
// span ID.
func spansOf(r *output.Row, beside bool) ([]*trace.Span, error) {
	id, err := trace.ParseID(r.TraceID)
	if err != nil {
		return nil, err
	}
	l := &lookup.Lookup{Attempts: r.Attempts}
	if l.Server, err = endpoint(r.Server); err != nil {
		return nil, err
	}
	for i := range r.Hops {
		h, err := hopOf(&r.Hops[i], r.Time.UnixNano())
		if err != nil {
			return nil, err
		}
		l.Hops = append(l.Hops, h)
	}
	resource, scope := resourceOf(r), &trace.Scope{Name: semconv.ScopeTracer}
	spanIDs := &ids{seed: r.TraceID + r.Client.Address + r.Server + r.Time.String()}
	top := &trace.Span{
		TraceID: id, SpanID: id.ClientSpanID(), Name: "DNS " + r.Type, Kind: trace.KindClient,
		Start: r.Time, End: r.Time.Add(time.Duration(r.Total)), Resource: resource, Scope: scope, Attributes: attributes(r),
	}
	if r.Serves != "" {
		top.Parent, top.SpanID = id.ClientSpanID(), spanIDs.next()
		top.Name, top.Kind = "upstream on the network", trace.KindInternal
		top.Attributes = append(top.Attributes,
			trace.Attribute{Key: semconv.Inferred, Value: true}, trace.Attribute{Key: semconv.Segment,
				Value: string(verdict.Upstream)})
		if own, err := trace.ParseID(r.OwnTraceID); err == nil {
			top.Links = []trace.Link{{
				TraceID: own, SpanID: own.ClientSpanID(),
				Attributes: trace.Attributes{{Key: semconv.ServedRelation, Value: semconv.ServedBy}},
			}}
		}
	}
	if afterTruncation(r) {
		top.Parent, top.SpanID = id.ClientSpanID(), spanIDs.next()
		top.Name, top.Kind = "TCP after truncation", trace.KindInternal
		top.Attributes = append(top.Attributes, trace.Attribute{Key: semconv.Inferred, Value: true})
	}
	if beside {
		top.Parent, top.SpanID = id.ClientSpanID(), spanIDs.next()
	}
	if r.Result == output.Lost {
		top.Status, top.Message = trace.StatusError, r.Verdict.Text
	}
	spans := []*trace.Span{top}
	if len(l.Hops) == 0 {
		return spans, nil
	}
	if first := &l.Hops[0]; first.Process != nil && first.Kind == hop.Out {
		l.ClientNetNS = first.NetNS
	}
	var j verdict.Judge
	j.Of(l) // it learns which namespaces forward; the verdict is the row's
	for _, seg := range j.Segments(nil, l) {
		s := &trace.Span{
			TraceID: id, SpanID: spanIDs.next(), Parent: top.SpanID, Name: seg.Name, Kind: trace.KindInternal,
			Start: time.Unix(0, seg.From.Time).UTC(), End: time.Unix(0, seg.To.Time).UTC(), Resource: resource, Scope: scope,
			Attributes: trace.Attributes{
				{Key: semconv.Segment, Value: string(seg.Stage)},
				{Key: semconv.SegmentWay, Value: ways[seg.Way]},
			},
		}
		from, to := verdict.SpotOf(seg.From), verdict.SpotOf(seg.To)
		s.Attributes = append(s.Attributes,
			trace.Attribute{Key: semconv.SegmentFromDevice, Value: from.Device},
			trace.Attribute{Key: semconv.SegmentFromEvent, Value: from.Event},
			trace.Attribute{Key: semconv.SegmentFromNetNS, Value: int64(from.NetNS)},
			trace.Attribute{Key: semconv.SegmentToDevice, Value: to.Device},
			trace.Attribute{Key: semconv.SegmentToEvent, Value: to.Event},
			trace.Attribute{Key: semconv.SegmentToNetNS, Value: int64(to.NetNS)})
		if seg.To.Kind == hop.Drop {
			s.Status = trace.StatusError
			s.Attributes = append(s.Attributes, trace.Attribute{Key: semconv.DropReason, Value: seg.To.Reason.String()})
		}
		spans = append(spans, s)
	}
	if to := translated(r); to.IsValid() {
		for _, s := range spans {
			if s == top || s.Stage() == verdict.Service {
				s.Attributes = append(s.Attributes,
					trace.Attribute{Key: semconv.TranslatedAddress, Value: to.Addr().String()},
					trace.Attribute{Key: semconv.TranslatedPort, Value: int64(to.Port())})
			}
		}
	}
	return spans, nil
}

var ways = map[verdict.Way]string{
	verdict.OfQuery: semconv.WayQuery, verdict.OfAnswer: semconv.WayAnswer, verdict.OfTurn: semconv.WayTurn,
}

// translated gives where the query went on from the first hop at which it was for another address than it was sent to.
func translated(r *output.Row) netip.AddrPort {
	for _, h := range r.Hops {
		if !h.Answer && h.Dst != "" && h.Dst != r.Server {
			to, _ := netip.ParseAddrPort(h.Dst) // none where it cannot be read
			return to
		}
	}
	return netip.AddrPort{}
}

func endpoint(text string) (hop.Endpoint, error) {
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return hop.Endpoint{}, err
	}
	return hop.EndpointOf(ap), nil
}

// kinds are those of hops that a row may have, by what it calls them.
var kinds = func() map[string]hop.Kind {
	kinds := map[string]hop.Kind{}
	for k := hop.Out; k <= hop.LastKind; k++ {
		kinds[k.String()] = k
	}
	return kinds
}()

func hopOf(in *output.Hop, start int64) (hop.Hop, error) {
	h := hop.Hop{Time: start + in.Nanos, Answer: in.Answer, Attempt: uint8(max(0, in.Attempt-1)), NetNS: in.NetNS}
	var ok bool
	if h.Kind, ok = kinds[in.Kind]; !ok {
		return h, fmt.Errorf("hop of unknown kind %q", in.Kind)
	}
	copy(h.Dev[:], in.Device)
	// A row names the device and not its index: within a namespace a name is as good.
	index := fnv.New32a()
	_, _ = index.Write([]byte(in.Device)) // never fails: package hash
	h.IfIndex = index.Sum32()
	var err error
	if h.Src, err = endpoint(in.Src); err != nil {
		return h, err
	}
	if h.Dst, err = endpoint(in.Dst); err != nil {
		return h, err
	}
	if in.Reason != "" {
		h.Reason, _ = hop.ReasonByName(in.Reason) // of another kernel: then it has no name here
	}
	if in.Process != "" {
		h.Process, h.Local = &hop.Process{PID: in.PID, Name: in.Process}, in.Kind == "out"
	}
	return h, nil
}

var workloads = map[string]string{
	"Deployment": semconv.K8SDeploymentName, "StatefulSet": semconv.K8SStatefulSetName,
	"DaemonSet":  semconv.K8SDaemonSetName,
	"ReplicaSet": semconv.K8SReplicaSetName, "Job": semconv.K8SJobName, "CronJob": semconv.K8SCronJobName,
}

func resourceOf(r *output.Row) *trace.Resource {
	res := &trace.Resource{}
	put := func(key, value string) {
		if value != "" && key != "" {
			res.Attributes = append(res.Attributes, trace.Attribute{Key: key, Value: value})
		}
	}
	c := &r.Client
	put(semconv.ServiceName, cmp.Or(c.Workload, c.Pod, c.Process))
	put(semconv.K8SNamespaceName, c.Namespace)
	put(semconv.K8SPodName, c.Pod)
	put(semconv.K8SPodUID, c.PodUID)
	put(semconv.K8SNodeName, cmp.Or(c.Node, r.Node))
	put(workloads[c.WorkloadKind], c.Workload)
	return res
}

func attributes(r *output.Row) trace.Attributes {
	var a trace.Attributes
	str := func(key, value string) {
		if value != "" {
			a = append(a, trace.Attribute{Key: key, Value: value})
		}
	}
	integer := func(key string, value int64) { a = append(a, trace.Attribute{Key: key, Value: value}) }
	party := func(address, port, value string) {
		if ap, err := netip.ParseAddrPort(value); err == nil {
			str(address, ap.Addr().String())
			integer(port, int64(ap.Port()))
		}
	}
	str(semconv.QuestionName, r.Name)
	str(semconv.QuestionType, r.Type)
	str(semconv.QuestionClass, r.Class)
	str(semconv.Operation, r.Opcode)
	integer(semconv.DNSID, int64(r.ID))
	party(semconv.ClientAddress, semconv.ClientPort, r.Client.Address)
	party(semconv.ServerAddress, semconv.ServerPort, r.Server)
	party(semconv.NetworkPeerAddress, semconv.NetworkPeerPort, r.AnsweredBy)
	str(semconv.NetworkTransport, r.Transport)
	integer(semconv.Attempts, int64(r.Attempts))
	if r.Result != output.Lost {
		str(semconv.ResponseCode, r.Result)
	}
	if r.Client.PID != 0 {
		integer(semconv.ProcessPID, int64(r.Client.PID))
	}
	str(semconv.ProcessExecutableName, r.Client.Process)
	v := &r.Verdict
	str(semconv.VerdictWhere, v.Where)
	str(semconv.VerdictCause, v.Cause)
	str(semconv.VerdictText, v.Text)
	str(semconv.VerdictCertainty, v.Certainty)
	str(semconv.DropReason, v.Drop)
	if i := slices.IndexFunc(r.Hops, func(h output.Hop) bool { return v.Drop != "" && h.Reason == v.Drop }); i >= 0 {
		str(semconv.DropDevice, r.Hops[i].Device)
		integer(semconv.DropNetNS, int64(r.Hops[i].NetNS))
	}
	if o := v.DropOwner; o != nil {
		str(semconv.DropOwnerKind, o.Kind)
		str(semconv.DropOwnerName, o.Name)
	}
	a = append(a, trace.Attribute{Key: semconv.VerdictAnswered, Value: r.Result != output.Lost})
	if len(v.Evidence) > 0 {
		list := make([]any, len(v.Evidence))
		for i, e := range v.Evidence {
			list[i] = e
		}
		a = append(a, trace.Attribute{Key: semconv.VerdictEvidence, Value: list})
	}
	if r.EventsLost > 0 {
		integer(semconv.HopsLost, int64(r.EventsLost))
	}
	return a
}
