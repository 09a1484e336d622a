package trace

import (
	"slices"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link"
)

// Kind is a span's kind, by OTLP's numbers.
type Kind int32

// The kinds.
const (
	KindUnspecified Kind = iota
	KindInternal
	KindServer
	KindClient
	KindProducer
	KindConsumer
)

// String gives the kind as the specification of OpenTelemetry writes it: "CLIENT", "SERVER", ...
func (k Kind) String() string {
	switch k {
	case KindInternal:
		return "INTERNAL"
	case KindServer:
		return "SERVER"
	case KindClient:
		return "CLIENT"
	case KindProducer:
		return "PRODUCER"
	case KindConsumer:
		return "CONSUMER"
	}
	return "UNSPECIFIED"
}

// Status is a span's status code, by OTLP's numbers.
type Status int32

// The status codes.
const (
	StatusUnset Status = iota
	StatusOK
	StatusError
)

// Span is one span as it was received.
type Span struct {
	TraceID link.TraceID
	SpanID  link.SpanID
	// Parent is zero for a root.
	Parent     link.SpanID
	TraceState string
	Name       string
	Kind       Kind
	Start, End time.Time
	Status     Status
	// Message is the status message.
	Message    string
	Attributes Attributes
	Links      []Link
	Events     []Event
	// Resource and Scope are shared by the spans that were sent together.
	Resource *Resource
	Scope    *Scope
}

// Link points to a span of this or another trace.
type Link struct {
	TraceID    link.TraceID
	SpanID     link.SpanID
	TraceState string
	Attributes Attributes
}

// Event is something that happened at one instant of a span.
type Event struct {
	Time       time.Time
	Name       string
	Attributes Attributes
}

// Resource is what sent a span.
type Resource struct {
	SchemaURL  string
	Attributes Attributes
}

// Scope is the instrumentation scope: which program made the span.
type Scope struct {
	Name, Version, SchemaURL string
	Attributes               Attributes
}

// Duration is End - Start, never negative.
func (s *Span) Duration() time.Duration { return max(0, s.End.Sub(s.Start)) }

// Attribute is one key with its value: string, int64, float64, bool, []any, map[string]any, []byte or nil.
type Attribute struct {
	Key   string
	Value any
}

// Attributes is a short list of attributes in the order in which they were sent.
type Attributes []Attribute

// Get gives the value of key, nil if there is none.
func (a Attributes) Get(key string) any {
	for i := range a {
		if a[i].Key == key {
			return a[i].Value
		}
	}
	return nil
}

// String gives the value of key if it is a string, else "".
func (a Attributes) String(key string) string { v, _ := a.Get(key).(string); return v }

// Int gives the value of key if it is an integer, else 0.
func (a Attributes) Int(key string) int64 { v, _ := a.Get(key).(int64); return v }

// Float gives the value of key if it is a number, else 0.
func (a Attributes) Float(key string) float64 {
	switch v := a.Get(key).(type) {
	case float64:
		return v
	case int64:
		return float64(v)
	}
	return 0
}

// Bool gives the value of key if it is a boolean, and whether it is one.
func (a Attributes) Bool(key string) (value, ok bool) { value, ok = a.Get(key).(bool); return }

// Strings gives the strings of the list under key; a lone string is a list of one.
func (a Attributes) Strings(key string) []string {
	switch v := a.Get(key).(type) {
	case string:
		return []string{v}
	case []any:
		list := make([]string, 0, len(v))
		for _, e := range v {
			if s, ok := e.(string); ok {
				list = append(list, s)
			}
		}
		return list
	}
	return nil
}

// WithPrefix gives the attributes whose key starts with prefix, in order of their keys.
func (a Attributes) WithPrefix(prefix string) Attributes {
	var found Attributes
	for _, kv := range a {
		if strings.HasPrefix(kv.Key, prefix) {
			found = append(found, kv)
		}
	}
	slices.SortFunc(found, func(x, y Attribute) int { return strings.Compare(x.Key, y.Key) })
	return found
}
