package e2e

import (
	"bytes"
	"crypto/tls"
	"io"
	golog "log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/link/semconv"
)

// send writes bytes as a UDP datagram and waits a little for the answer; nil if none comes.
func send(t *testing.T, addr string, b []byte) []byte {
	t.Helper()
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// TestWhatReachesUs sends what CoreDNS answers before any plugin, and what it passes on: only the latter is recorded.
func TestWhatReachesUs(t *testing.T) {
	c := newCollector(t)
	up := newUpstream(t, answering(60))
	s := start(t, block("errors\nforward . $UP"), "COLLECTOR", c.grpc, "UP", up.addr)
	for _, row := range []struct {
		name    string
		message func(m *dns.Msg)
		bytes   func(b []byte) []byte
		reaches bool
		root    []any
	}{
		{name: "two questions", message: func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }},
		{name: "an unknown opcode", message: func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }},
		{name: "an answer", message: func(m *dns.Msg) { m.Response = true }},
		{name: "an unknown EDNS version", message: func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(3) }},
		{name: "cut off", bytes: func(b []byte) []byte { return b[:len(b)-3] }},
		{name: "EDNS over 512 bytes", message: func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: make([]byte, 600)})
		}},
		{name: "NOTIFY", message: func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, reaches: true},
		{name: "trailing bytes", bytes: func(b []byte) []byte { return append(b, 1, 2, 3) }, reaches: true},
		{
			name: "class CH", message: func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, reaches: true,
			root: []any{"dns.question.class", "CH"},
		},
		{name: "ANY", message: func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY }, reaches: true,
			root: []any{"dns.question.type", "ANY"}},
		{
			name: "bytes that are no text", message: func(m *dns.Msg) {
				m.Question[0].Name = `\255\000\..` +
					m.Question[0].Name
			}, reaches: true,
			root: []any{"dns.question.name", `\255\000\..bytes-that-are-no-text.reach.example.`},
		},
		{name: "a query of plugin loop", message: func(m *dns.Msg) {
			m.Question[0] = dns.Question{Name: "5577006791947779410.8674665223082153551." + m.Question[0].Name,
				Qtype: dns.TypeHINFO, Qclass: dns.ClassINET}
		}, reaches: true}, // without plugin loop in the chain it is a query as any other
	} {
		t.Run(row.name, func(t *testing.T) {
			name := strings.ReplaceAll(row.name, " ", "-") + ".reach.example."
			m := query(name, dns.TypeA)
			if row.message != nil {
				row.message(m)
			}
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if row.bytes != nil {
				b = row.bytes(b)
			}
			send(t, s.udp, b)
			if row.reaches {
				c.wait(t, m.Question[0].Name, 0).root.want(t, row.root...)
				return
			}
			s.ask(t, query("after."+name, dns.TypeA))
			c.wait(t, "after."+name, 0)
			for _, sp := range c.spans() {
				if sp.attrs["dns.question.name"] == name {
					t.Errorf("it was recorded: %v", sp.attrs)
				}
			}
		})
	}
}

// TestLoopIsLeftOut starts with plugin loop, whose query to itself nobody asked.
func TestLoopIsLeftOut(t *testing.T) {
	c := newCollector(t)
	up := newUpstream(t, answering(60))
	s := start(t, strings.Replace(block("loop\nforward . $UP"), ".:0", ".:"+freePort(t), 1), "COLLECTOR", c.grpc, "UP",
		up.addr)
	deadline := time.Now().Add(5 * time.Second)
	for len(up.queries(".")) == 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if l := up.queries("."); len(l) == 0 || l[0].Question[0].Qtype != dns.TypeHINFO {
		t.Fatalf("plugin loop did not ask: %v", l)
	}
	s.ask(t, query("not-loop.example.", dns.TypeA))
	c.wait(t, "not-loop.example.", 0)
	for _, sp := range c.spans() {
		if sp.attrs["dns.question.type"] == "HINFO" {
			t.Errorf("it was recorded: %v", sp.attrs)
		}
	}
}

// TestMetadataInLog prints with plugin log what we know of a query.
func TestMetadataInLog(t *testing.T) {
	var out lockedBuffer
	golog.SetOutput(&out)
	defer clog.Discard()
	c := newCollector(t)
	up := newUpstream(t, answering(60))
	for _, sample := range []string{"0", "1"} {
		s := start(t, `.:0 {
			bind 127.0.0.1
			metadata
			dnstrail {
				endpoint grpc://$COLLECTOR
				sample `+sample+`
				identity file $FILE
			}
			log . "row`+sample+
			` {/dnstrail/namespace}/{/dnstrail/workload} {/dnstrail/pod} {/dnstrail/client-kind}`+
			` {/dnstrail/node} {/dnstrail/answered-by} {/dnstrail/cache} {/dnstrail/upstream} {/dnstrail/trace-id} end"
			cache
			forward . $UP
		}`, "COLLECTOR", c.grpc, "FILE", identityFile(t), "UP", up.addr)
		s.ask(t, query("logged"+sample+".example.", dns.TypeA))
		s.ask(t, query("logged"+sample+".example.", dns.TypeA))
		who := "row" + sample + " shop/cart cart-7f9c5d4b8-x2x7k pod node-1 "
		for _, want := range []string{who + "forward miss " + up.addr + " ", who + "cache hit  "} {
			deadline := time.Now().Add(2 * time.Second)
			for !strings.Contains(out.String(), want) {
				if time.Now().After(deadline) {
					t.Fatalf("no line with %q in\n%s", want, out.String())
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
		if sample == "1" {
			tr := c.wait(t, "logged1.example.", 0)
			if !strings.Contains(out.String(), tr.root.traceID) {
				t.Errorf("the log has not trace %s:\n%s", tr.root.traceID, out.String())
			}
		}
	}
}

// TestMetadataInView chooses a server block by who asks.
func TestMetadataInView(t *testing.T) {
	c := newCollector(t)
	p := freePort(t)
	const shared = `
		metadata
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity file $FILE
		}`
	s := start(t, `.:`+p+` {
		bind 127.0.0.1
		view other {
			expr metadata('dnstrail/namespace') == 'other'
		}`+shared+`
		template IN A {
			answer "{{ .Name }} 60 IN A 192.0.2.66"
		}
	}
	.:`+p+` {
		bind 127.0.0.1
		view shop {
			expr metadata('dnstrail/namespace') == 'shop'
		}`+shared+`
		template IN A {
			answer "{{ .Name }} 60 IN A 192.0.2.77"
		}
	}`, "COLLECTOR", c.grpc, "FILE", identityFile(t))
	r := s.ask(t, query("view.example.", dns.TypeA))
	if len(r.Answer) != 1 || !strings.Contains(r.Answer[0].String(), "192.0.2.77") {
		t.Errorf("the answer is %v", r.Answer)
	}
	c.wait(t, "view.example.", 0).root.want(t, "dnstrail.client.namespace.name", "shop", "dnstrail.answered_by",
		"template")
	time.Sleep(50 * time.Millisecond)
	n := 0
	for _, sp := range c.spans() {
		if sp.attrs["dns.question.name"] == "view.example." {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d records of one query", n)
	}
}

// TestPrivacy shows less of names, per zone.
func TestPrivacy(t *testing.T) {
	c := newCollector(t)
	up := newUpstream(t, answering(60))
	s := start(t, `.:0 {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity none
			names redact 1 example
			names hash 0 secret.example
		}
		forward . $UP
	}`, "COLLECTOR", c.grpc, "UP", up.addr)
	s.ask(t, query("jane.doe.shop.example.", dns.TypeA))
	s.ask(t, query("jane.doe.secret.example.", dns.TypeA))
	s.ask(t, query("www.example.org.", dns.TypeA))
	c.wait(t, "*.shop.example.", 0).root.want(t, "dns.answers", nil)
	c.wait(t, "www.example.org.", 0).root.want(t, "dns.answers", "[192.0.2.1]")
	c.waitRoot(t, "the hashed name", 0, func(sp *gotSpan) bool {
		name, _ := sp.attrs["dns.question.name"].(string)
		return strings.HasPrefix(name, "h-") && strings.HasSuffix(name, ".secret.example.")
	})
	for _, sp := range c.spans() {
		for k, v := range sp.attrs {
			if v, ok := v.(string); ok && strings.Contains(v, "jane") {
				t.Errorf("%s = %s", k, v)
			}
		}
		if strings.Contains(sp.Name()+sp.Status().Message(), "jane") {
			t.Errorf("span %s, %s", sp.Name(), sp.Status().Message())
		}
	}
}

// TestEncryptedUpstreams forwards over TLS and HTTPS.
func TestEncryptedUpstreams(t *testing.T) {
	c := newCollector(t)
	dir := t.TempDir()
	certificate(t, dir)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	dot := net.JoinHostPort("127.0.0.1", freePort(t))
	started := make(chan struct{})
	srv := &dns.Server{
		Addr: dot, Net: "tcp-tls", TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert},
			MinVersion: tls.VersionTLS12},
		Handler: answering(60), NotifyStartedFunc: func() { close(started) },
	}
	go func() { _ = srv.ListenAndServe() }()
	<-started
	t.Cleanup(func() { _ = srv.Shutdown() })

	doh := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			http.Error(w, "", http.StatusBadRequest)
			return
		}
		reply := new(dns.Msg).SetReply(m)
		reply.RecursionAvailable = true
		out, _ := reply.Pack()
		w.Header().Set("Content-Type", "application/dns-message")
		_, _ = io.Copy(w, bytes.NewReader(out))
	}))
	doh.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	doh.EnableHTTP2 = true
	doh.StartTLS()
	t.Cleanup(doh.Close)

	s := start(t, block("forward dot.example tls://$DOT {\ntls_servername localhost\ntls $CA\n}\nforward doh.example "+
		"https://$DOH {\ntls_servername localhost\ntls $CA\n}"),
		"COLLECTOR", c.grpc, "DOT", dot, "DOH", doh.Listener.Addr().String(), "CA", filepath.Join(dir, "cert.pem"))
	for _, row := range []struct{ name, protocol, addr string }{{"a.dot.example.", "dot", dot},
		{"a.doh.example.", "doh", doh.Listener.Addr().String()}} {
		for i, connection := range []string{"new", "pooled"} {
			s.ask(t, query(row.name, dns.TypeA))
			at := c.wait(t, row.name, i).attempts()
			if len(at) != 1 {
				t.Fatalf("%s: %d attempts", row.name, len(at))
			}
			at[0].want(t, "network.protocol.name", row.protocol, "network.transport", "tcp", "dnstrail.upstream.connection",
				connection,
				"dns.response_code", "NOERROR", "network.peer.port", port(row.addr))
		}
	}
}

// TestExtendedError shows the extended DNS error of an answer.
func TestExtendedError(t *testing.T) {
	c := newCollector(t)
	s := start(t, block("acl {\nblock net 127.0.0.0/8\n}\nwhoami"), "COLLECTOR", c.grpc)
	m := query("ede.example.", dns.TypeA)
	m.SetEdns0(1232, false)
	s.ask(t, m)
	c.wait(t, "ede.example.", 0).root.want(t, "dnstrail.response.extended_errors", "[Blocked]", "dns.response_code",
		"REFUSED")
}

// TestAttributeNames holds every attribute of a varied lot of queries against the one list of names.
func TestAttributeNames(t *testing.T) {
	c := newCollector(t)
	up := newUpstream(t, answering(60))
	s := start(t, `.:0 {
		bind 127.0.0.1
		dnstrail {
			endpoint grpc://$COLLECTOR
			sample 1
			identity file $FILE
		}
		errors
		cache
		forward ok.example $UP
		forward . 127.0.0.1:1
	}`, "COLLECTOR", c.grpc, "FILE", identityFile(t), "UP", up.addr)
	for _, name := range []string{"a.ok.example.", "a.ok.example.", "fails.example."} {
		m := query(name, dns.TypeA)
		m.SetEdns0(1232, true)
		s.ask(t, m)
	}
	c.wait(t, "fails.example.", 0)
	known := map[string]bool{}
	for _, a := range semconv.All {
		known[a.Name] = true
	}
	for _, sp := range c.spans() {
		for _, attrs := range []map[string]any{sp.attrs, sp.resource} {
			for name := range attrs {
				if !known[name] && !strings.HasPrefix(name, semconv.ClientLabelPrefix) {
					t.Errorf("span %s has the unknown attribute %s", sp.Name(), name)
				}
			}
		}
		if _, ok := sp.attrs["error.type"]; ok != sp.failed() {
			t.Errorf("span %s: error.type is there: %t, status is error: %t", sp.Name(), ok, sp.failed())
		}
	}
}

// TestGRPCUpstream forwards with plugin grpc, whose attempts go by opentracing's global tracer.
func TestGRPCUpstream(t *testing.T) {
	c := newCollector(t)
	addr := net.JoinHostPort("127.0.0.1", freePort(t))
	start(t, "grpc://.:"+port(addr)+" {\nbind 127.0.0.1\nwhoami\n}")
	for _, sample := range []string{"1", "0"} {
		s := start(t, strings.Replace(unsampled("keep name slow.example", "errors\ngrpc . $UP"), "sample 0", "sample "+sample,
			1),
			"COLLECTOR", c.grpc, "FILE", identityFile(t), "UP", addr)
		name := "grpc" + sample + ".slow.example."
		s.ask(t, query(name, dns.TypeA))
		at := c.wait(t, name, 0).attempts()
		if len(at) != 1 {
			t.Fatalf("%d attempts", len(at))
		}
		at[0].want(t, "network.peer.port", nil, "network.protocol.name", "grpc", "network.transport", "tcp",
			"dns.response_code", nil)
	}
}
