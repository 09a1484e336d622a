package dnswire

import (
	"strconv"

	"github.com/miekg/dns"
)

// TypeString gives a type in words: `A`, `AAAA`, `TYPE65400` (RFC 3597, section 5).
func TypeString(t uint16) string {
	if s, ok := dns.TypeToString[t]; ok {
		return s
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// ClassString gives a class in words: `IN`, `CH`, `CLASS7`.
func ClassString(c uint16) string {
	if s, ok := dns.ClassToString[c]; ok {
		return s
	}
	return "CLASS" + strconv.Itoa(int(c))
}

// RcodeString gives a response code in words: `NOERROR`, `NXDOMAIN`, `RCODE99`.
func RcodeString(r uint16) string {
	if s, ok := dns.RcodeToString[int(r)]; ok {
		return s
	}
	return "RCODE" + strconv.Itoa(int(r))
}
