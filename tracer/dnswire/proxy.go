package dnswire

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"
)

// proxySignature begins a header of the PROXY protocol, version 2 (section 2.2). No DNS message is like it.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

const proxyFixed = len(proxySignature) + 4 // with the kind, the addresses' family and their length

// ProxyHeader reads the header that a load balancer puts before a query: version 2 of the PROXY protocol. It gives the
// header's length in bytes, 0 where b does not begin with one, and the client for whom the load balancer asks; that is
// invalid where the header names none.
func ProxyHeader(b []byte) (n int, client netip.AddrPort) {
	if len(b) < proxyFixed || string(b[:len(proxySignature)]) != proxySignature || b[12]>>4 != 2 {
		return 0, client
	}
	n = proxyFixed + int(binary.BigEndian.Uint16(b[14:]))
	if b[12]&0xf != 1 || n > len(b) {
		return n, client // the load balancer asks for itself
	}
	family, addresses := b[13]>>4, b[proxyFixed:n]
	switch {
	case family == 1 && len(addresses) >= 12: // two IPv4 addresses, two ports
		a := netip.AddrFrom4([4]byte(addresses))
		client = netip.AddrPortFrom(a, binary.BigEndian.Uint16(addresses[8:]))
	case family == 2 && len(addresses) >= 36:
		a := netip.AddrFrom16([16]byte(addresses)).Unmap()
		client = netip.AddrPortFrom(a, binary.BigEndian.Uint16(addresses[32:]))
	}
	return n, client
}

// The start of a header of version 1 (section 2.1), which is a line of text, and how long the line may be.
const (
	proxyLine    = "PROXY "
	maxProxyLine = 107
)

// ProxyStream reads the header of either version that a load balancer puts before the first query of a TCP connection.
// It gives what [ProxyHeader] does; more says that b may be the start of a header, and that what follows it is needed
// to tell: then n is 0.
func ProxyStream(b []byte) (n int, client netip.AddrPort, more bool) {
	if starts(b, proxyLine) {
		end := bytes.Index(b[:min(len(b), maxProxyLine)], []byte("\r\n"))
		if end < 0 {
			return 0, client, len(b) < maxProxyLine
		}
		return end + 2, proxyClient(string(b[:end])), false
	}
	if !starts(b, proxySignature) {
		return 0, client, false
	}
	if len(b) < proxyFixed {
		return 0, client, true
	}
	n, client = ProxyHeader(b)
	if n > len(b) {
		return 0, client, true
	}
	return n, client, false
}

// starts tells whether b begins with a text, as far as it goes.
func starts(b []byte, text string) bool {
	n := min(len(b), len(text))
	return n > 0 && string(b[:n]) == text[:n]
}

// proxyClient reads the client from a header of version 1: `PROXY TCP4 203.0.113.7 10.0.0.1 5555 53`.
func proxyClient(line string) (client netip.AddrPort) {
	words := strings.Split(line, " ")
	if len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6" {
		return client // UNKNOWN, mostly: the load balancer asks for itself
	}
	addr, err := netip.ParseAddr(words[2])
	port, noPort := strconv.ParseUint(words[4], 10, 16)
	if err != nil || noPort != nil || addr.Zone() != "" {
		return client
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port))
}
