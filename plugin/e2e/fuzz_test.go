package e2e

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link"
)

// taker is a client that keeps the answers it gets.
type taker struct {
	test.ResponseWriter
	addr net.Addr
	got  []*dns.Msg
}

func (w *taker) RemoteAddr() net.Addr { return w.addr }

func (w *taker) WriteMsg(m *dns.Msg) error {
	w.got = append(w.got, m.Copy())
	return nil
}

// FuzzServeDNS serves messages as they come from the wire, with us in the chain and without: what is answered is the
// same, and we do not panic.
func FuzzServeDNS(f *testing.F) {
	const chain = "e2e_server\nerrors\nacl {\ndrop type TXT\nblock type HINFO\n}\nrewrite name exact " +
		"rewritten.example hosts.example\ncache\n" +
		"template IN A cname.example {\nanswer \"{{ .Name }} 60 IN CNAME hosts.example.\"\nupstream\n}\nhosts {\n" +
		"192.0.2.1 hosts.example\nfallthrough\n}\nchaos v a\nany\nwhoami\n}"
	c := newCollector(f)
	c.look = func(*gotSpan) bool { return false }
	plain := start(f, ".:0 {\nbind 127.0.0.1\n"+chain)
	plainServer := plain.inner(f)
	ours := start(f, ".:0 {\nbind 127.0.0.1\nmetadata\ndnstrail {\nendpoint grpc://$COLLECTOR\nsample 1\nidentity "+
		"none\ntraceparent accept\nnames hash 1\n}\n"+chain, "COLLECTOR", c.grpc)
	ourServer := ours.inner(f)

	for _, name := range []string{"hosts.example.", "cname.example.", "rewritten.example.", "Any.Sub.Example.", ".",
		`\000\255\..`, strings.Repeat("a.", 120)} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeTXT, dns.TypeHINFO, dns.TypeANY, dns.TypeAXFR, dns.TypeDS, 65280} {
			m := query(name, qtype)
			m.Id = 7
			if b, err := m.Pack(); err == nil {
				f.Add(b, true)
			}
			m.SetEdns0(512, true)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: link.OptionTraceparent,
				Data: make([]byte, 27)})
			if b, err := m.Pack(); err == nil {
				f.Add(b, false)
			}
		}
	}
	notify := new(dns.Msg).SetNotify("hosts.example.")
	b, err := notify.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, true)
	panics := ours.metric(f, "coredns_dnstrail_panics_total")

	serve := func(s *dnsserver.Server, wire []byte, udp bool) []*dns.Msg {
		m := new(dns.Msg)
		if m.Unpack(wire) != nil {
			return nil
		}
		w := &taker{ResponseWriter: test.ResponseWriter{TCP: !udp}, addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9),
			Port: 4711}}
		if udp {
			w.addr = &net.UDPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 4711}
		}
		ctx := context.WithValue(context.WithValue(context.Background(), dnsserver.Key{}, s), dnsserver.LoopKey{}, 0)
		s.ServeDNS(ctx, w, m)
		return w.got
	}
	f.Fuzz(func(t *testing.T, wire []byte, udp bool) {
		want, got := serve(plainServer, wire, udp), serve(ourServer, wire, udp)
		if len(want) != len(got) {
			t.Fatalf("%d answers, %d without us", len(got), len(want))
		}
		for i := range want {
			w, errW := want[i].Pack()
			g, errG := got[i].Pack()
			if (errW == nil) != (errG == nil) || !bytes.Equal(w, g) {
				t.Errorf("answered\n%v\nwithout us\n%v", got[i], want[i])
			}
		}
		if p := ours.metric(t, "coredns_dnstrail_panics_total"); p != panics {
			t.Errorf("%v panics of ours", p-panics)
			panics = p
		}
	})
}
