package dnstrail

import (
	"sync"

	ot "github.com/opentracing/opentracing-go"
)

// globalTracer is opentracing's global tracer while we are there and nobody else is: plugin grpc starts the spans of
// its upstream attempts with that, and not, as forward does, with the tracer of the span that it is in.
type globalTracer struct{ ot.NoopTracer }

// StartSpan implements opentracing.Tracer: below a node of ours it starts a node, elsewhere it does nothing.
func (t globalTracer) StartSpan(name string, opts ...ot.StartSpanOption) ot.Span {
	for _, o := range opts {
		if ref, ok := o.(ot.SpanReference); ok {
			if n, ok := ref.ReferencedContext.(*node); ok && n != nil {
				return n.startChild(name)
			}
		}
	}
	return t.NoopTracer.StartSpan(name, opts...)
}

// setGlobalTracer makes it the global tracer, unless the program has one.
var setGlobalTracer = sync.OnceFunc(func() {
	if !ot.IsGlobalTracerRegistered() {
		ot.SetGlobalTracer(globalTracer{})
	}
})
