package otlp

import (
	"math"
	"strings"
	"testing"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// The plain way: each attribute as messages.

func str(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key,
		Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

func integer(key string, value int64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: value}}}
}

func boolean(key string, value bool) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: value}}}
}

func double(key string, value float64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key,
		Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: value}}}
}

func strs(key string, values ...string) *commonpb.KeyValue {
	list := &commonpb.ArrayValue{}
	for _, v := range values {
		list.Values = append(list.Values, &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}})
	}
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: list}}}
}

var head = Head{
	TraceID: [16]byte{1, 2, 15: 3}, SpanID: [8]byte{4, 7: 5}, Parent: [8]byte{6, 7: 7}, Name: "DNS A", Kind: Server,
	Start: 1763701200000000001, End: 1763701200000000900, Flags: Sampled | ParentKnown | ParentRemote,
}

func plain(h *Head) *tracepb.Span {
	s := &tracepb.Span{
		TraceId: h.TraceID[:], SpanId: h.SpanID[:], Name: h.Name, Kind: h.Kind, StartTimeUnixNano: h.Start,
		EndTimeUnixNano: h.End, Flags: h.Flags,
	}
	if h.Parent != [8]byte{} {
		s.ParentSpanId = h.Parent[:]
	}
	return s
}

// decode gives what a receiver makes of a message.
func decode(m *tracepb.ResourceSpans) (*tracepb.ResourceSpans, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	out := new(tracepb.ResourceSpans)
	return out, proto.Unmarshal(b, out)
}

func compare(t *testing.T, s *Spans, want ...*tracepb.Span) {
	t.Helper()
	resource := &resourcepb.Resource{Attributes: []*commonpb.KeyValue{str("service.name", "coredns")}}
	scope := &commonpb.InstrumentationScope{Name: "scope", Version: "v1"}
	got, err := decode(s.Message(resource, scope, "https://example.org/schema"))
	if err != nil {
		t.Fatalf("what was encoded does not decode: %v", err)
	}
	wanted := &tracepb.ResourceSpans{
		Resource: resource, SchemaUrl: "https://example.org/schema",
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: scope, SchemaUrl: "https://example.org/schema", Spans: want}},
	}
	if !proto.Equal(got, wanted) {
		t.Errorf("decoded:\n%v\nwant:\n%v", got, wanted)
	}
	if n := len(got.ScopeSpans[0].ProtoReflect().GetUnknown()); n != 0 {
		t.Errorf("%d bytes that no field takes", n)
	}
	if s.Len() != len(want) {
		t.Errorf("Len is %d, want %d", s.Len(), len(want))
	}
}

func TestSpansAreWhatMessagesWouldBe(t *testing.T) {
	root := head
	root.Parent, root.Flags, root.Kind, root.Name = [8]byte{}, 0, Internal, ""
	for _, row := range []struct {
		name  string
		head  Head
		write func(*Spans)
		want  func(*tracepb.Span)
	}{
		{"nothing but a head", head, func(*Spans) {}, func(*tracepb.Span) {}},
		{"a root without name and flags", root, func(*Spans) {}, func(*tracepb.Span) {}},
		{"client", Head{Kind: Client, TraceID: head.TraceID, SpanID: head.SpanID}, func(*Spans) {}, func(*tracepb.Span) {}},
		{"strings", head,
			func(s *Spans) {
				s.Str("a", "")
				s.Str("", "b")
				s.Str("c", "höchst")
				s.Str("d", strings.Repeat("d", 127))
			},
			func(p *tracepb.Span) {
				p.Attributes = []*commonpb.KeyValue{str("a", ""), str("", "b"), str("c", "höchst"),
					str("d", strings.Repeat("d", 127))}
			}},
		{"a string that is not UTF-8", head,
			func(s *Spans) {
				s.Str("a", "x\xff\xfey")
				s.Text("t", []byte("\xff"))
				s.Strs("b", []string{"\xc3", "ok"})
				s.Error("\x80")
			},
			func(p *tracepb.Span) {
				p.Attributes = []*commonpb.KeyValue{str("a", "x\uFFFDy"), str("t", "\uFFFD"), strs("b", "\uFFFD", "ok")}
				p.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "\uFFFD"}
			}},
		{"numbers", head,
			func(s *Spans) {
				for _, v := range []int64{0, 1, 127, 128, 65535, math.MaxInt64, -1, math.MinInt64} {
					s.Int("i", v)
				}
				for _, v := range []float64{0, 0.25, -1, math.Inf(1), math.SmallestNonzeroFloat64} {
					s.Double("d", v)
				}
			},
			func(p *tracepb.Span) {
				for _, v := range []int64{0, 1, 127, 128, 65535, math.MaxInt64, -1, math.MinInt64} {
					p.Attributes = append(p.Attributes, integer("i", v))
				}
				for _, v := range []float64{0, 0.25, -1, math.Inf(1), math.SmallestNonzeroFloat64} {
					p.Attributes = append(p.Attributes, double("d", v))
				}
			}},
		{"booleans", head,
			func(s *Spans) { s.Bool("t", true); s.Bool("f", false) },
			func(p *tracepb.Span) { p.Attributes = []*commonpb.KeyValue{boolean("t", true), boolean("f", false)} }},
		{"lists", head,
			func(s *Spans) {
				s.Strs("none", nil)
				s.Strs("one", []string{""})
				s.Strs("long", []string{strings.Repeat("x", 200), strings.Repeat("y", 20000)})
			},
			func(p *tracepb.Span) {
				p.Attributes = []*commonpb.KeyValue{strs("none"), strs("one", ""),
					strs("long", strings.Repeat("x", 200), strings.Repeat("y", 20000))}
			}},
		{"encoded before", head,
			func(s *Spans) {
				s.Add(Attributes(nil).Str("a", "b").Int("i", 1).Bool("t", true).Double("d", 0.5).Strs("l", []string{"x"}))
			},
			func(p *tracepb.Span) {
				p.Attributes = []*commonpb.KeyValue{str("a", "b"), integer("i", 1), boolean("t", true), double("d", 0.5),
					strs("l", "x")}
			}},
		{"errors", head,
			func(s *Spans) { s.Error("") },
			func(p *tracepb.Span) { p.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR} }},
		{"a long error", head,
			func(s *Spans) { s.Error(strings.Repeat("e", 300)) },
			func(p *tracepb.Span) {
				p.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: strings.Repeat("e", 300)}
			}},
		{"links", head,
			func(s *Spans) {
				s.Link([16]byte{9}, [8]byte{8}, 0)
				s.Str("relation", "pair")
				s.Link([16]byte{7}, [8]byte{6}, Sampled|ParentKnown)
				s.Str("long", strings.Repeat("l", 200))
				s.EndLink()
				s.Str("span", "again")
				s.Link([16]byte{5}, [8]byte{4}, 0)
				s.Error("x")
				s.Int("span too", 1)
			},
			func(p *tracepb.Span) {
				p.Links = []*tracepb.Span_Link{
					{TraceId: append([]byte{9}, make([]byte, 15)...), SpanId: append([]byte{8}, make([]byte, 7)...),
						Attributes: []*commonpb.KeyValue{str("relation", "pair")}},
					{TraceId: append([]byte{7}, make([]byte, 15)...), SpanId: append([]byte{6}, make([]byte, 7)...),
						Flags:      Sampled | ParentKnown,
						Attributes: []*commonpb.KeyValue{str("long", strings.Repeat("l", 200))}},
					{TraceId: append([]byte{5}, make([]byte, 15)...), SpanId: append([]byte{4}, make([]byte, 7)...)},
				}
				p.Attributes = []*commonpb.KeyValue{str("span", "again"), integer("span too", 1)}
				p.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "x"}
			}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var s Spans
			want := plain(&row.head)
			row.want(want)
			for range 2 {
				s.Begin(&row.head)
				row.write(&s)
				s.End()
			}
			compare(t, &s, want, want)
		})
	}
}

func TestASpanOfAnyLength(t *testing.T) {
	// The lengths around which a length takes one byte more.
	for _, n := range []int{1, 30, 60, 127, 128, 129, 16000, 16250, 16300, 16383, 16384, 17000, 2097152} {
		var s Spans
		s.Begin(&Head{Kind: Internal})
		s.Str("a", strings.Repeat("x", n))
		s.End()
		p := plain(&Head{Kind: Internal})
		p.Attributes = []*commonpb.KeyValue{str("a", strings.Repeat("x", n))}
		compare(t, &s, p)
	}
}

func TestCut(t *testing.T) {
	var s Spans
	s.Begin(&head)
	s.End()
	m := s.Mark()
	s.Begin(&head)
	s.Link([16]byte{1}, [8]byte{1}, 0)
	s.Cut(m)
	compare(t, &s, plain(&head))
	s.Begin(&head)
	s.Str("a", "b")
	s.End()
	want := plain(&head)
	want.Attributes = []*commonpb.KeyValue{str("a", "b")}
	compare(t, &s, plain(&head), want)
	s.Cut(Mark{})
	compare(t, &s)
	if s.Size() != 0 {
		t.Errorf("%d bytes are left", s.Size())
	}
}

func FuzzSpans(f *testing.F) {
	f.Add("DNS A", "dns.question.name", "www.example.org.", int64(7), 0.25, true, uint8(3), uint64(1), "no answer")
	f.Add("", "", "\xff", int64(-1), math.NaN(), false, uint8(0), uint64(math.MaxUint64), "")
	f.Fuzz(
		func(t *testing.T, name, key, value string, i int64, d float64, yes bool, n uint8, time uint64, message string) {
			key = strings.ToValidUTF8(key, "")
			values := make([]string, n)
			for k := range values {
				values[k] = value[:k*len(value)/len(values)]
			}
			h := head
			h.Name, h.Start, h.End = name, time, ^time
			var s Spans
			s.Begin(&h)
			s.Str(key, value)
			s.Text(key, []byte(value))
			s.Int(key, i)
			s.Link(h.TraceID, h.SpanID, uint32(n))
			s.Strs(key, values)
			s.EndLink()
			s.Double(key, d)
			s.Bool(key, yes)
			s.Strs(key, values)
			s.Error(message)
			s.End()

			ok := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
			for k := range values {
				values[k] = ok(values[k])
			}
			h.Name = ok(h.Name)
			want := plain(&h)
			list := strs(key, values...)
			want.Attributes = []*commonpb.KeyValue{str(key, ok(value)), str(key, ok(value)), integer(key, i), double(key, d),
				boolean(key, yes), list}
			want.Links = []*tracepb.Span_Link{{TraceId: h.TraceID[:], SpanId: h.SpanID[:], Flags: uint32(n),
				Attributes: []*commonpb.KeyValue{list}}}
			want.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: ok(message)}
			compare(t, &s, want)
		})
}

func BenchmarkSpan(b *testing.B) {
	var s Spans
	answers := []string{"192.0.2.1", "192.0.2.2"}
	b.ReportAllocs()
	for b.Loop() {
		s.Begin(&head)
		s.Str("dns.question.name", "www.example.org.")
		s.Str("dns.question.type", "A")
		s.Int("dns.id", 4711)
		s.Str("client.address", "192.0.2.1")
		s.Int("client.port", 40000)
		s.Bool("dnstrail.response.written", true)
		s.Double("dnstrail.upstream.duration", 0.0025)
		s.Strs("dns.answers", answers)
		s.Str("dns.response_code", "NOERROR")
		s.Str("dnstrail.answered_by", "forward")
		s.End()
		if s.Len() == 1000 {
			s.Cut(Mark{})
		}
	}
}
