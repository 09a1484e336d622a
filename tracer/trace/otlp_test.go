package trace

import (
	"reflect"
	"testing"
)

// everything is a span with a value in every field that OTLP has and a store keeps.
func everything() *Span {
	s := span(3, 1, 2)
	s.TraceState, s.Name, s.Kind, s.Status, s.Message = "a=b", "DNS A", KindClient, StatusError, "timeout"
	s.Attributes = Attributes{{"s", "x"}, {"i", int64(-1)}, {"f", 0.5}, {"b", true}, {"l", []any{"a", int64(1)}},
		{"m", map[string]any{"k": "v"}}}
	s.Links = []Link{{TraceID: traceID(1), SpanID: s.SpanID, TraceState: "c=d", Attributes: Attributes{{"n", int64(2)}}}}
	s.Events = []Event{{Time: at, Name: "drop", Attributes: Attributes{{"why", "x"}}}}
	s.Resource = &Resource{SchemaURL: "https://r", Attributes: Attributes{{"service.name", "cart"}}}
	s.Scope = &Scope{Name: "scope", Version: "v1", SchemaURL: "https://s", Attributes: Attributes{{"q", "r"}}}
	return s
}

func TestOTLPKeepsEverything(t *testing.T) {
	want := everything()
	got := FromOTLP(ToOTLP([]*Span{want}))
	if len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("got %+v, want %+v", got[0], want)
	}
}
