package main

import (
	"encoding/binary"
	"net"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/lab"
)

// hostile is what somebody tries who looks for a false verdict: clients, servers and networks that are within their
// rights, or beyond them.
var hostile = []fault{
	// What a server says.
	{name: "a server answers twice: well, then it fails", ask: askServer(saying(0, dns.RcodeServerFailure), true),
		truths: fine},
	{
		name: "a server answers twice: it fails, then well", ask: askServer(saying(dns.RcodeServerFailure, 0), true),
		truths: []truth{{where: "coredns|upstream", cause: "server-failure", result: "SERVFAIL"}},
	},
	{name: "NXDOMAIN without an SOA record", ask: askServer(saying(dns.RcodeNameError), true),
		truths: []truth{{where: "answered", cause: "answered", result: "NXDOMAIN"}}},
	{
		name: "an answer whose records refer to themselves", ask: askServer(func(m *dns.Msg) [][]byte {
			b := packed(new(dns.Msg).SetReply(m))
			binary.BigEndian.PutUint16(b[6:], 1) // one record, whose name is a pointer to itself
			return [][]byte{append(b, 0xc0, byte(len(b)), 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4)}
		}, true), truths: fine,
	},
	{
		// It came, and is no DNS message: nobody can say that the server was silent, nor that the client had its answer.
		name: "an answer of five bytes", ask: askServer(func(*dns.Msg) [][]byte { return [][]byte{{1, 2, 3, 4, 5}} }, false),
		truths: []truth{{where: "coredns|coredns-socket|return-path|client", cause: "*", certain: mustNot}},
	},
	{
		name: "an answer to a name in other letters", truths: fine, ask: askServer(func(m *dns.Msg) [][]byte {
			r := new(dns.Msg).SetReply(m)
			r.Question[0].Name = swapCase(r.Question[0].Name)
			return [][]byte{packed(r)}
		}, true),
	},
	{name: "type ANY", truths: oddly("NOERROR|NOTIMP|REFUSED|SERVFAIL|NXDOMAIN"),
		ask: askOdd(odd(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY }))},
	{name: "DNSSEC wanted, the answer truncated", truths: fine, label: "tc",
		ask: digAt(service, true, "+dnssec", "+ignore")},

	// What a server does with TCP.
	{name: "TCP: a server that answers a byte at a time", truths: fine, ask: askTCPServer(1, func(c net.Conn,
		messages [][]byte) error {
		for _, b := range messages[0] {
			if _, err := c.Write([]byte{b}); err != nil {
				return err
			}
		}
		return nil
	})},
	{name: "TCP: a server that answers the last first", truths: many(3), ask: askTCPServer(3, func(c net.Conn,
		messages [][]byte) error {
		slices.Reverse(messages)
		_, err := c.Write(slices.Concat(messages...))
		return err
	})},
	{name: "TCP: a server that answers each twice", truths: many(2), ask: askTCPServer(2, func(c net.Conn,
		messages [][]byte) error {
		_, err := c.Write(slices.Concat(messages[0], messages[0], messages[1], messages[1]))
		return err
	})},
	{name: "TCP Fast Open: the query in the SYN", truths: fine, inject: fastOpenServer, ask: askFastOpen},

	// What a client does.
	{name: "two sockets on one port", truths: many(2), ask: askShared},
	{
		name: "refused, then asked again by the same socket", ask: inOneEpoch(askRefused), wait: 12 * time.Second,
		truths: []truth{{where: "answered", cause: "answered|answered-after-all", attempts: 2}},
	},
	{name: "client killed before the answer", label: "delay-1800ms", truths: one("client", "client-gone|answer-too-late"),
		ask: askAndDie},
	{
		name: "asked of a multicast address", only: 4, ask: askMulticast,
		truths: []truth{{where: "client|pod-link|node|service|between-nodes", cause: "*",
			unsaid: []string{"no endpoints", "network policy"}}},
	},

	// What a network does.
	{
		name: "query larger than a device takes", not: oneNode, inject: smallUplink, ask: askLarge,
		truths: certainly("node", "too-big"),
	},
	{
		name: "the answer's source rewritten on its way", inject: rewriteSource,
		truths: []truth{{where: "client", cause: "unexpected-source"}},
	},
	{
		name: "the query in a conntrack zone of its own", inject: zoned,
		truths: []truth{{where: "client", cause: "unexpected-source"}},
	},
	{
		name: "another pod has the client's address", inject: stolenAddress,
		truths: []truth{{where: "return-path", cause: "*", unsaid: []string{"the client's socket was gone"}}},
	},
	{
		name: "the answer to the client twice", truths: fine, inject: doubleAnswers,
	},
}

func packed(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err) // of this package's own making
	}
	return b
}

// saying gives what a server sends that answers with some rcodes, one after the other.
func saying(rcodes ...int) func(*dns.Msg) [][]byte {
	return func(m *dns.Msg) [][]byte {
		var all [][]byte
		for _, rcode := range rcodes {
			all = append(all, packed(new(dns.Msg).SetRcode(m, rcode)))
		}
		return all
	}
}

// zoned tracks queries to the service in a zone that their answers are not looked for in.
func zoned(s *scene, f family) (lab.Undo, error) {
	undo, err := s.client.Node.Rules(nftFamily(f), "chain z { type filter hook prerouting priority -300; "+
		nftFamily(f)+" daddr "+f.vip.String()+" udp dport 53 ct zone set 7; }")
	return undoAll(func() error { return s.client.Node.ForgetService() }, undo), err
}
