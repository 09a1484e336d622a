package trace

import (
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link/semconv"
)

// Asking is what tells one query of a client's socket from others, but for the time.
type Asking struct {
	address, transport, name, qtype string
	port, id                        int64
}

// Asking gives that of the lookup, as the server sees its client.
func (t *Trace) Asking() Asking {
	s := t.client
	if s == nil {
		if s = t.Server(); s == nil {
			return Asking{}
		}
	}
	return Asking{
		s.String(semconv.ClientAddress), s.String(semconv.NetworkTransport), strings.ToLower(s.String(semconv.QuestionName)),
		s.String(semconv.QuestionType), s.Int(semconv.ClientPort), s.Int(semconv.DNSID),
	}
}

// lateRead is how long after a query was sent a server may still read it: as long as it lies in a socket.
const lateRead = 2 * time.Minute

// ReadLate tells whether t, of which no agent saw the client, is what CoreDNS made of the query of an earlier lookup:
// it read that when nobody waited any more, and so derived the trace ID of another epoch.
func (t *Trace) ReadLate(earlier *Trace) bool {
	s := t.Server()
	if t.client != nil || s == nil || earlier.client == nil || len(earlier.servers) > 0 || t.Asking() != earlier.Asking() {
		return false
	}
	after := s.Start.Sub(earlier.client.End)
	return after > -clockGuard && after < lateRead
}
