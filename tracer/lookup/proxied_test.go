package lookup

import (
	"testing"
)

// TestALoadBalancersHeaderBeforeTheQueries: it is no message, and names the client by which the server knows the
// lookup.
func TestALoadBalancersHeaderBeforeTheQueries(t *testing.T) {
	const first = 0xfffffff8 // sequence numbers wrap
	client := end("203.0.113.7:5555")
	for version, header := range map[string]string{
		"version 1": "PROXY TCP4 203.0.113.7 10.0.0.1 5555 53\r\n",
		"version 2": "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x07\x0a\x00\x00\x01\x15\xb3\x00\x35",
	} {
		b, _ := queries(t, 3)
		b = append([]byte(header), b...)
		each := make([]int, len(b))
		for i := range each {
			each[i] = i + 1
		}
		for name, cuts := range map[string][]int{
			"in one segment": {len(b)}, "a segment of its own": {len(header), len(b)},
			"with a part of a query": {len(header) + 5, len(b)}, "seen at two hops": {len(header), len(header), len(b), len(b)},
			"in two segments": {7, len(header), len(b)}, "in two, with queries": {20, 20, len(b), len(b)},
			"a byte at a time": each,
		} {
			t.Run(version+", "+name, func(t *testing.T) {
				s := stream{synced: true, begun: true, first: first, next: first}
				from, to := 0, 0
				for _, c := range cuts {
					if c != to {
						from, to = to, c
					}
					s.feed(first+uint32(from), b[from:to], to-from, 0)
				}
				if len(s.messages) != 3 || s.proxied != client {
					t.Errorf("%d messages, for %s", len(s.messages), s.proxied)
				}
			})
		}
	}
	l := Lookup{Client: end("10.0.0.9:1000"), Translated: end("10.0.0.9:1000"), Proxied: client}
	if k := l.Key(); k.Client != client.AddrPort() {
		t.Errorf("the trace ID is derived from %s", k.Client)
	}
}
