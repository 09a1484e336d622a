package dnswire

import (
	"net/netip"
	"strings"
	"testing"
)

func TestProxyHeader(t *testing.T) {
	const v4 = proxySignature + "\x21\x12\x00\x0c\xcb\x00\x71\x07\x0a\x00\x00\x01\x15\xb3\x00\x35"
	v6 := proxySignature + "\x21\x22\x00\x24" + "\x20\x01\x0d\xb8" + string(make([]byte, 28)) + "\x15\xb3\x00\x35"
	for _, c := range []struct {
		name   string
		b      string
		n      int
		client netip.AddrPort
	}{
		{"IPv4", v4 + "query", len(v4), netip.MustParseAddrPort("203.0.113.7:5555")},
		{"IPv6", v6, len(v6), netip.MustParseAddrPort("[2001:db8::]:5555")},
		{
			"more behind the addresses", proxySignature + "\x21\x12\x00\x0e" + v4[16:] + "xx", len(v4) + 2,
			netip.MustParseAddrPort("203.0.113.7:5555"),
		},
		{"for itself", proxySignature + "\x20\x00\x00\x00query", 16, netip.AddrPort{}},
		{"of no network", proxySignature + "\x21\x00\x00\x04abcd", 20, netip.AddrPort{}},
		{"addresses too short", proxySignature + "\x21\x11\x00\x04abcd", 20, netip.AddrPort{}},
		{"cut off", v4[:20], len(v4), netip.AddrPort{}},
		{"another version", proxySignature + "\x11\x12\x00\x00", 0, netip.AddrPort{}},
		{"a query", "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01", 0, netip.AddrPort{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if n, client := ProxyHeader([]byte(c.b)); n != c.n || client != c.client {
				t.Errorf("%d bytes, client %v", n, client)
			}
		})
	}
}

func TestProxyStream(t *testing.T) {
	const (
		line   = "PROXY TCP4 203.0.113.7 10.0.0.1 5555 53\r\n"
		binary = proxySignature + "\x21\x11\x00\x0c\xcb\x00\x71\x07\x0a\x00\x00\x01\x15\xb3\x00\x35"
		query  = "\x00\x1d\x12\x34\x01\x00\x00\x01"
	)
	client := netip.MustParseAddrPort("203.0.113.7:5555")
	for _, c := range []struct {
		name   string
		b      string
		n      int
		client netip.AddrPort
	}{
		{"version 1", line, len(line), client},
		{"version 2", binary, len(binary), client},
		{"IPv6", "PROXY TCP6 2001:db8::7 fd00::1 5555 53\r\n", 40, netip.MustParseAddrPort("[2001:db8::7]:5555")},
		{"unknown", "PROXY UNKNOWN\r\n", 15, netip.AddrPort{}},
		{"no address", "PROXY TCP4 x 10.0.0.1 5555 53\r\n", 31, netip.AddrPort{}},
		{"no port", "PROXY TCP4 203.0.113.7 10.0.0.1 65536 53\r\n", 42, netip.AddrPort{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, client, more := ProxyStream([]byte(c.b + query))
			if n != c.n || client != c.client || more {
				t.Errorf("%d bytes, client %v, more %v", n, client, more)
			}
			for i := 1; i < len(c.b); i++ {
				if n, _, more := ProxyStream([]byte(c.b[:i])); n != 0 || !more {
					t.Fatalf("of %d bytes: %d bytes, more %v", i, n, more)
				}
			}
		})
	}
	long := []byte("PROXY TCP4 " + strings.Repeat("1", maxProxyLine))
	for _, b := range [][]byte{nil, []byte(query), long, []byte("PROXX"), []byte("\r\n\r\n\x00\r\nquit\n")} {
		if n, _, more := ProxyStream(b); n != 0 || more {
			t.Errorf("%q: %d bytes, more %v", b, n, more)
		}
	}
}

func FuzzProxyStream(f *testing.F) {
	f.Add([]byte("PROXY TCP4 203.0.113.7 10.0.0.1 5555 53\r\n"))
	f.Add([]byte(proxySignature + "\x21\x11\x00\x0c\xcb\x00\x71\x07\x0a\x00\x00\x01\x15\xb3\x00\x35"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, client, more := ProxyStream(b)
		if n < 0 || n > len(b) || more && n != 0 || n == 0 && client.IsValid() {
			t.Errorf("%d bytes of %d, client %v, more %v", n, len(b), client, more)
		}
		for i := range n { // what is a header whole is not told before it is
			if early, _, more := ProxyStream(b[:i]); early != 0 || i > 0 && !more {
				t.Fatalf("of %d bytes of %d: %d bytes, more %v", i, n, early, more)
			}
		}
	})
}
