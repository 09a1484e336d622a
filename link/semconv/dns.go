package semconv

import (
	"strconv"

	"github.com/miekg/dns"
)

// What is written about DNS itself is written here for both programs, so that the two sides of a trace spell a fact
// alike.

// rcodes are the response codes that a DNS message can carry (IANA, "DNS RCODEs"). 16 is BADVERS there: that it is
// BADSIG, too, is of TSIG's own field, which no message's response code is (RFC 6895, section 2.3).
var rcodes = map[int]string{
	dns.RcodeSuccess: "NOERROR", dns.RcodeFormatError: "FORMERR", dns.RcodeServerFailure: "SERVFAIL",
	dns.RcodeNameError: "NXDOMAIN", dns.RcodeNotImplemented: "NOTIMP", dns.RcodeRefused: "REFUSED",
	dns.RcodeYXDomain: "YXDOMAIN", dns.RcodeYXRrset: "YXRRSET", dns.RcodeNXRrset: "NXRRSET",
	dns.RcodeNotAuth: "NOTAUTH", dns.RcodeNotZone: "NOTZONE", dns.RcodeStatefulTypeNotImplemented: "DSOTYPENI",
	dns.RcodeBadVers: "BADVERS", dns.RcodeBadKey: "BADKEY", dns.RcodeBadTime: "BADTIME", dns.RcodeBadMode: "BADMODE",
	dns.RcodeBadName: "BADNAME", dns.RcodeBadAlg: "BADALG", dns.RcodeBadTrunc: "BADTRUNC", dns.RcodeBadCookie: "BADCOOKIE",
}

// opcodes are the kinds of query (IANA, "DNS OpCodes").
var opcodes = map[int]string{
	dns.OpcodeQuery: "QUERY", dns.OpcodeIQuery: "IQUERY", dns.OpcodeStatus: "STATUS", dns.OpcodeNotify: "NOTIFY",
	dns.OpcodeUpdate: "UPDATE", dns.OpcodeStateful: "DSO",
}

// TypeName gives a record type in words: `A`, `AAAA`, and `TYPE65400` for one without a name (RFC 3597, section 5).
func TypeName(qtype uint16) string {
	if s, ok := dns.TypeToString[qtype]; ok {
		return s
	}
	return "TYPE" + strconv.Itoa(int(qtype))
}

// ClassName gives a class in words: `IN`, `CH`, and `CLASS7` for one without a name.
func ClassName(qclass uint16) string {
	if s, ok := dns.ClassToString[qclass]; ok {
		return s
	}
	return "CLASS" + strconv.Itoa(int(qclass))
}

// RcodeName gives a response code, its extended bits included, in words: `NOERROR`, `BADVERS`, and `RCODE99` for one
// without a name.
func RcodeName(rcode int) string {
	if s, ok := rcodes[rcode]; ok {
		return s
	}
	return "RCODE" + strconv.Itoa(rcode)
}

// OtherRcode stands in metrics for each rcode without a name: a server can send 4,096 of them.
const OtherRcode = "other"

// RcodeLabel gives a response code as the value of a metric's label: its name, and [OtherRcode] for one without.
func RcodeLabel(rcode int) string {
	if s, ok := rcodes[rcode]; ok {
		return s
	}
	return OtherRcode
}

// RcodeFails says whether a response code means that the server could not do what it was asked. That a name is not
// there is an answer, and so is what an update's prerequisites came to (RFC 2136, section 2.2).
func RcodeFails(rcode int) bool {
	switch rcode {
	case dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeYXDomain, dns.RcodeYXRrset, dns.RcodeNXRrset:
		return false
	}
	return true
}

// OpcodeName gives an opcode in words: `QUERY`, `NOTIFY`, and `OPCODE7` for one without a name.
func OpcodeName(opcode int) string {
	if s, ok := opcodes[opcode]; ok {
		return s
	}
	return "OPCODE" + strconv.Itoa(opcode)
}

// SpanName names the span of a query: `DNS A` by the type asked, `DNS UPDATE` by the opcode of what is no ordinary
// query. What has no name is `DNS` alone: names of spans must be few.
func SpanName(opcode int, qtype uint16) string {
	name := opcodes[opcode]
	if opcode == dns.OpcodeQuery {
		name = dns.TypeToString[qtype]
	}
	if name == "" {
		return "DNS"
	}
	return "DNS " + name
}
