package store

import (
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// FromOTLP gives the spans of td in the order in which they stand there. It copies what it needs; td can be reused.
func FromOTLP(td ptrace.Traces) []*Span {
	spans := make([]*Span, 0, td.SpanCount())
	for _, rs := range td.ResourceSpans().All() {
		resource := &Resource{SchemaURL: rs.SchemaUrl(), Attributes: fromMap(rs.Resource().Attributes())}
		for _, ss := range rs.ScopeSpans().All() {
			scope := &Scope{
				Name: ss.Scope().Name(), Version: ss.Scope().Version(), SchemaURL: ss.SchemaUrl(),
				Attributes: fromMap(ss.Scope().Attributes()),
			}
			for _, in := range ss.Spans().All() {
				s := &Span{
					TraceID: link.TraceID(in.TraceID()), SpanID: link.SpanID(in.SpanID()), Parent: link.SpanID(in.ParentSpanID()),
					TraceState: in.TraceState().AsRaw(),
					Name:       in.Name(), Kind: Kind(in.Kind()),
					Start: in.StartTimestamp().AsTime(), End: in.EndTimestamp().AsTime(),
					Status: Status(in.Status().Code()), Message: in.Status().Message(),
					Attributes: fromMap(in.Attributes()),
					Resource:   resource, Scope: scope,
				}
				for _, l := range in.Links().All() {
					s.Links = append(s.Links, Link{
						TraceID: link.TraceID(l.TraceID()), SpanID: link.SpanID(l.SpanID()),
						TraceState: l.TraceState().AsRaw(), Attributes: fromMap(l.Attributes()),
					})
				}
				for _, e := range in.Events().All() {
					s.Events = append(s.Events, Event{Time: e.Timestamp().AsTime(), Name: e.Name(), Attributes: fromMap(e.Attributes())})
				}
				spans = append(spans, s)
			}
		}
	}
	return spans
}

// ToOTLP is FromOTLP's inverse: spans that share a resource and a scope stand together.
func ToOTLP(spans []*Span) ptrace.Traces {
	td := ptrace.NewTraces()
	type group struct {
		resource *Resource
		scope    *Scope
	}
	resources := map[*Resource]ptrace.ResourceSpans{}
	groups := map[group]ptrace.ScopeSpans{}
	for _, s := range spans {
		ss, ok := groups[group{s.Resource, s.Scope}]
		if !ok {
			rs, ok := resources[s.Resource]
			if !ok {
				rs = td.ResourceSpans().AppendEmpty()
				if s.Resource != nil {
					rs.SetSchemaUrl(s.Resource.SchemaURL)
					toMap(s.Resource.Attributes, rs.Resource().Attributes())
				}
				resources[s.Resource] = rs
			}
			ss = rs.ScopeSpans().AppendEmpty()
			if s.Scope != nil {
				ss.SetSchemaUrl(s.Scope.SchemaURL)
				ss.Scope().SetName(s.Scope.Name)
				ss.Scope().SetVersion(s.Scope.Version)
				toMap(s.Scope.Attributes, ss.Scope().Attributes())
			}
			groups[group{s.Resource, s.Scope}] = ss
		}
		out := ss.Spans().AppendEmpty()
		out.SetTraceID(pcommon.TraceID(s.TraceID))
		out.SetSpanID(pcommon.SpanID(s.SpanID))
		out.SetParentSpanID(pcommon.SpanID(s.Parent))
		out.TraceState().FromRaw(s.TraceState)
		out.SetName(s.Name)
		out.SetKind(ptrace.SpanKind(s.Kind))
		out.SetStartTimestamp(timestamp(s.Start))
		out.SetEndTimestamp(timestamp(s.End))
		out.Status().SetCode(ptrace.StatusCode(s.Status))
		out.Status().SetMessage(s.Message)
		toMap(s.Attributes, out.Attributes())
		for _, l := range s.Links {
			to := out.Links().AppendEmpty()
			to.SetTraceID(pcommon.TraceID(l.TraceID))
			to.SetSpanID(pcommon.SpanID(l.SpanID))
			to.TraceState().FromRaw(l.TraceState)
			toMap(l.Attributes, to.Attributes())
		}
		for _, e := range s.Events {
			to := out.Events().AppendEmpty()
			to.SetTimestamp(timestamp(e.Time))
			to.SetName(e.Name)
			toMap(e.Attributes, to.Attributes())
		}
	}
	return td
}

// timestamp keeps the zero time zero, which UnixNano does not.
func timestamp(t time.Time) pcommon.Timestamp {
	if t.IsZero() {
		return 0
	}
	return pcommon.NewTimestampFromTime(t)
}

// knownKeys lets all spans share the strings of the keys that dnstrail sends.
var knownKeys = func() map[string]string {
	m := make(map[string]string, len(semconv.All))
	for _, a := range semconv.All {
		m[a.Name] = a.Name
	}
	return m
}()

func fromMap(m pcommon.Map) Attributes {
	if m.Len() == 0 {
		return nil
	}
	a := make(Attributes, 0, m.Len())
	for k, v := range m.All() {
		if known, ok := knownKeys[k]; ok {
			k = known
		}
		a = append(a, Attribute{k, v.AsRaw()})
	}
	return a
}

func toMap(a Attributes, m pcommon.Map) {
	m.EnsureCapacity(len(a))
	for _, kv := range a {
		v := m.PutEmpty(kv.Key)
		if err := v.FromRaw(kv.Value); err != nil {
			// Only a value that did not come from OTLP can be of a type that OTLP does not have; v then holds the error's text.
			continue
		}
	}
}
