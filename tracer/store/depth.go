package store

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// errDeep says that lists and maps are nested deeper than anybody means.
var errDeep = fmt.Errorf("attributes nested more than %d deep", maxNesting)

// message is a kind of message of OTLP in which values are.
type message int8

const (
	exportRequest message = iota
	resourceSpans
	resource
	scopeSpans
	scope
	otlpSpan
	event
	spanLink
	keyValue
	anyValue
	valueArray
	valueMap
)

// within gives the messages that lie in the fields of a message (opentelemetry/proto/trace/v1/trace.proto and
// common/v1/common.proto).
var within = [...]map[protowire.Number]message{
	exportRequest: {1: resourceSpans},
	resourceSpans: {1: resource, 2: scopeSpans},
	resource:      {1: keyValue},
	scopeSpans:    {1: scope, 2: otlpSpan},
	scope:         {3: keyValue},
	otlpSpan:      {9: keyValue, 11: event, 13: spanLink},
	event:         {3: keyValue},
	spanLink:      {4: keyValue},
	keyValue:      {2: anyValue},
	anyValue:      {5: valueArray, 6: valueMap},
	valueArray:    {1: anyValue},
	valueMap:      {1: keyValue},
}

// checkDepth gives an error if an ExportTraceServiceRequest on the wire is malformed or has values nested too deep. It
// looks at each field once, and copies none.
func checkDepth(request []byte) error { return checkMessage(exportRequest, request, maxNesting) }

func checkMessage(m message, b []byte, depth int) error {
	if m == valueArray || m == valueMap {
		if depth--; depth < 0 {
			return errDeep
		}
	}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		field, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		inner, ok := within[m][number]
		if !ok {
			continue
		}
		if err := checkMessage(inner, field, depth); err != nil {
			return err
		}
	}
	return nil
}

// checkJSONDepth is checkDepth for JSON, of which each bracket counts: a value nested once takes five.
func checkJSONDepth(request []byte) error {
	const most = 5*maxNesting + 16
	depth, quoted := 0, false
	for i := 0; i < len(request); i++ {
		switch c := request[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > most {
				return errDeep
			}
		case c == '}' || c == ']':
			if depth--; depth < 0 {
				return errors.New("a bracket too many")
			}
		}
	}
	return nil
}
