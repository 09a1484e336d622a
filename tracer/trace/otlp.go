package trace

import (
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// Bounds of what one span may bring along. What dnstrail's own programs send is far below them; what lies beyond is
// cut.
const (
	// MaxAttributes is how many attributes a span, resource, scope, link or event has at most, and how many elements a
	// list or map in one of them; MaxLinks and MaxEvents are the same of a span's links and events.
	MaxAttributes = 128
	MaxLinks      = 128
	MaxEvents     = 128
	// MaxText is the longest a string may be, in bytes, and MaxValues how many values one attribute may have in all.
	MaxText   = 16 << 10
	MaxValues = 256
	// MaxDepth is how deep lists and maps may be nested.
	MaxDepth = 8
)

// FromOTLP gives the spans of td in the order in which they stand there. It copies what it needs; td can be reused.
// What is beyond the bounds is left out.
func FromOTLP(td ptrace.Traces) []*Span {
	spans, _ := Read(td)
	return spans
}

// Read is [FromOTLP] that also gives how many attributes, links and events, or parts of them, were left out.
func Read(td ptrace.Traces) (spans []*Span, cut int) {
	r := &reader{}
	spans = r.traces(td)
	return spans, r.cut
}

// reader reads OTLP and counts what it leaves out.
type reader struct{ cut int }

func (r *reader) traces(td ptrace.Traces) []*Span {
	spans := make([]*Span, 0, td.SpanCount())
	for _, rs := range td.ResourceSpans().All() {
		resource := &Resource{SchemaURL: r.text(rs.SchemaUrl()), Attributes: r.attributes(rs.Resource().Attributes())}
		for _, ss := range rs.ScopeSpans().All() {
			scope := &Scope{
				Name: r.text(ss.Scope().Name()), Version: r.text(ss.Scope().Version()), SchemaURL: r.text(ss.SchemaUrl()),
				Attributes: r.attributes(ss.Scope().Attributes()),
			}
			for _, in := range ss.Spans().All() {
				s := &Span{
					TraceID: link.TraceID(in.TraceID()), SpanID: link.SpanID(in.SpanID()), Parent: link.SpanID(in.ParentSpanID()),
					TraceState: r.text(in.TraceState().AsRaw()),
					Name:       r.text(in.Name()), Kind: Kind(in.Kind()),
					Start: in.StartTimestamp().AsTime(), End: in.EndTimestamp().AsTime(),
					Status: Status(in.Status().Code()), Message: r.text(in.Status().Message()),
					Attributes: r.attributes(in.Attributes()),
					Resource:   resource, Scope: scope,
				}
				for i, l := range in.Links().All() {
					if i == MaxLinks {
						r.cut += in.Links().Len() - i
						break
					}
					s.Links = append(s.Links, Link{
						TraceID: link.TraceID(l.TraceID()), SpanID: link.SpanID(l.SpanID()),
						TraceState: r.text(l.TraceState().AsRaw()), Attributes: r.attributes(l.Attributes()),
					})
				}
				for i, e := range in.Events().All() {
					if i == MaxEvents {
						r.cut += in.Events().Len() - i
						break
					}
					s.Events = append(s.Events, Event{
						Time: e.Timestamp().AsTime(), Name: r.text(e.Name()), Attributes: r.attributes(e.Attributes()),
					})
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

func (r *reader) attributes(m pcommon.Map) Attributes {
	if m.Len() == 0 {
		return nil
	}
	a := make(Attributes, 0, min(m.Len(), MaxAttributes))
	for k, v := range m.All() {
		if len(a) == MaxAttributes {
			r.cut += m.Len() - len(a)
			break
		}
		if known, ok := knownKeys[k]; ok {
			k = known
		}
		values := MaxValues
		a = append(a, Attribute{r.text(k), r.value(v, MaxDepth, &values)})
	}
	return a
}

// value gives v in the types of [Attribute]; depth is how deep it may yet be nested, values how many it may yet have.
func (r *reader) value(v pcommon.Value, depth int, values *int) any {
	if *values--; *values < 0 {
		r.cut++
		return nil
	}
	switch v.Type() {
	case pcommon.ValueTypeStr:
		return r.text(v.Str())
	case pcommon.ValueTypeBytes:
		b := v.Bytes()
		n := min(b.Len(), MaxText)
		if n < b.Len() {
			r.cut++
		}
		out := make([]byte, n)
		for i := range out {
			out[i] = b.At(i)
		}
		return out
	case pcommon.ValueTypeSlice:
		list := v.Slice()
		if depth == 0 {
			r.cut++
			return nil
		}
		out := make([]any, 0, min(list.Len(), MaxAttributes))
		for i, e := range list.All() {
			if i == MaxAttributes || *values <= 0 {
				r.cut += list.Len() - i
				break
			}
			out = append(out, r.value(e, depth-1, values))
		}
		return out
	case pcommon.ValueTypeMap:
		m := v.Map()
		if depth == 0 {
			r.cut++
			return nil
		}
		out := make(map[string]any, min(m.Len(), MaxAttributes))
		for k, e := range m.All() {
			if len(out) == MaxAttributes || *values <= 0 {
				r.cut += m.Len() - len(out)
				break
			}
			out[r.text(k)] = r.value(e, depth-1, values)
		}
		return out
	}
	return v.AsRaw() // a number, a boolean or nothing
}

// text gives s, or as much of it as a string may have; a character is not cut in two.
func (r *reader) text(s string) string {
	if len(s) <= MaxText {
		return s
	}
	r.cut++
	n := MaxText
	for n > MaxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.Clone(s[:n]) // the rest is not to be kept in memory by it
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
