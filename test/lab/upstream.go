package lab

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Behavior is how the upstream treats a name.
type Behavior struct {
	Delay  time.Duration // answers that much later
	Rcode  int           // dns.RcodeSuccess, ...
	Silent bool          // never answers
	// Lose is how many of the first queries for the name get no answer.
	Lose int
	Size int  // fills the answer with TXT or address records to about that many bytes
	TC   bool // truncates every answer over UDP
	// NoData answers with no record; WrongID and WrongQuestion answer what was not asked.
	NoData, WrongID, WrongQuestion bool
	TTL                            uint32 // seconds, 300 if 0
}

// UpstreamQuery is one query that the upstream got.
type UpstreamQuery struct {
	Time      time.Time
	Client    netip.AddrPort
	Transport string // udp or tcp
	ID        uint16
	Name      string // as asked, case kept
	Type      uint16
}

// Upstream is an authoritative DNS server outside the cluster, at [UpstreamV4] and [UpstreamV6], port 53. It runs in
// this process, in a network namespace of its own. It answers for every name under example., example.com., example.net.
// and example.org., and NXDOMAIN for all others. Labels of a name, or [Upstream.Set], ask for other behavior:
//
//	delay-250ms  lose-2  silent  nxdomain  servfail  refused  nodata  size-4000  tc  wrong-id  wrong-question  ttl-5
type Upstream struct {
	*Namespace

	servers []*dns.Server

	mu      sync.Mutex
	set     map[string]Behavior
	lost    map[string]int
	queries []UpstreamQuery
	total   uint64
}

// upstreamLog is how many queries the upstream remembers.
const upstreamLog = 100_000

func (l *Lab) raiseUpstream() (*Upstream, error) {
	ns, err := newNamespace("upstream")
	if err != nil {
		return nil, err
	}
	u := &Upstream{Namespace: ns, set: map[string]Behavior{}, lost: map[string]int{}}
	l.Upstream = u // so that Down lets go of the namespace
	if err := l.plug(ns, "upstream", netip.PrefixFrom(UpstreamV4, 24), netip.PrefixFrom(UpstreamV6, 64)); err != nil {
		return u, err
	}
	for _, a := range []netip.Addr{UpstreamV4, UpstreamV6} {
		if err := u.serve(netip.AddrPortFrom(a, 53).String()); err != nil {
			return u, err
		}
	}
	l.onDown(u.shutdown)
	return u, nil
}

func (u *Upstream) serve(addr string) error {
	pc, err := u.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	ln, err := u.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: u}, {Listener: ln, Handler: u}} {
		started, failed := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(started) }
		go func() { failed <- s.ActivateAndServe() }()
		select {
		case <-started:
		case err := <-failed:
			return fmt.Errorf("upstream at %s: %w", addr, err)
		}
		u.servers = append(u.servers, s)
	}
	return nil
}

func (u *Upstream) shutdown() error {
	var errs []error
	for _, s := range u.servers {
		errs = append(errs, s.Shutdown())
	}
	return errors.Join(errs...)
}

// Set sets the behavior for one name, whatever its case, and all types.
func (u *Upstream) Set(name string, b Behavior) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.set[strings.ToLower(dns.Fqdn(name))] = b
	delete(u.lost, strings.ToLower(dns.Fqdn(name)))
}

// Queries gives the queries so far, the last 100,000 at most, for one name (whatever its case) or for all with "".
func (u *Upstream) Queries(name string) []UpstreamQuery {
	u.mu.Lock()
	defer u.mu.Unlock()
	var qs []UpstreamQuery
	for _, q := range u.queries {
		if name == "" || strings.EqualFold(q.Name, dns.Fqdn(name)) {
			qs = append(qs, q)
		}
	}
	return qs
}

// Total gives how many queries there were so far.
func (u *Upstream) Total() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.total
}

// note records a query and gives how its name is treated.
func (u *Upstream) note(q UpstreamQuery) (Behavior, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.total++
	if len(u.queries) >= 2*upstreamLog {
		u.queries = slices.Delete(u.queries, 0, upstreamLog)
	}
	u.queries = append(u.queries, q)
	name := strings.ToLower(q.Name)
	b, ok := u.set[name]
	if !ok {
		b = behaviorOf(name)
	}
	if b.Lose > 0 {
		u.lost[name]++
		return b, u.lost[name] > b.Lose
	}
	return b, !b.Silent
}

var knownZones = []string{"example.", "example.com.", "example.net.", "example.org."}

// behaviorOf reads the behavior from the labels of a name in lower case.
func behaviorOf(name string) Behavior {
	b := Behavior{}
	if !slices.ContainsFunc(knownZones, func(z string) bool { return dns.IsSubDomain(z, name) }) {
		b.Rcode = dns.RcodeNameError
	}
	for _, label := range dns.SplitDomainName(name) {
		word, arg, _ := strings.Cut(label, "-")
		n, _ := strconv.Atoi(arg) // what is no number is no argument
		switch {
		case word == "delay":
			b.Delay, _ = time.ParseDuration(arg)
		case word == "lose":
			b.Lose = n
		case label == "silent":
			b.Silent = true
		case label == "nxdomain":
			b.Rcode = dns.RcodeNameError
		case label == "servfail":
			b.Rcode = dns.RcodeServerFailure
		case label == "refused":
			b.Rcode = dns.RcodeRefused
		case label == "nodata":
			b.NoData = true
		case word == "size":
			b.Size = n
		case label == "tc":
			b.TC = true
		case label == "wrong-id":
			b.WrongID = true
		case label == "wrong-question":
			b.WrongQuestion = true
		case word == "ttl":
			b.TTL = uint32(n)
		}
	}
	return b
}

// ServeDNS implements dns.Handler.
func (u *Upstream) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	if len(r.Question) != 1 {
		m := new(dns.Msg)
		_ = w.WriteMsg(m.SetRcode(r, dns.RcodeFormatError)) // the client is gone
		return
	}
	q := r.Question[0]
	transport := "udp"
	if _, ok := w.RemoteAddr().(*net.TCPAddr); ok {
		transport = "tcp"
	}
	client, _ := netip.ParseAddrPort(w.RemoteAddr().String())
	b, answers := u.note(UpstreamQuery{Time: time.Now(), Client: client, Transport: transport, ID: r.Id, Name: q.Name,
		Type: q.Qtype})
	if !answers {
		return
	}
	time.Sleep(b.Delay)
	_ = w.WriteMsg(b.answer(r, transport)) // the client is gone
}

func (b Behavior) answer(r *dns.Msg, transport string) *dns.Msg {
	q := r.Question[0]
	m := new(dns.Msg).SetRcode(r, b.Rcode)
	m.Authoritative, m.RecursionAvailable = true, true
	ttl := cmp.Or(b.TTL, 300)
	limit := dns.MinMsgSize
	if o := r.IsEdns0(); o != nil {
		limit = max(limit, int(o.UDPSize()))
		m.SetEdns0(dns.DefaultMsgSize, o.Do())
	}
	for i := 0; b.Rcode == dns.RcodeSuccess && !b.NoData; i++ {
		rr := record(q, ttl, i)
		if rr != nil {
			m.Answer = append(m.Answer, rr)
		}
		if rr == nil || b.Size == 0 || m.Len() >= b.Size {
			break
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{&dns.SOA{
			Hdr: dns.RR_Header{Name: zoneOf(q.Name), Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
			Ns:  "ns.example.", Mbox: "hostmaster.example.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
		}}
	}
	if b.WrongID {
		m.Id++
	}
	if b.WrongQuestion {
		m.Question[0].Name = "not-asked.example."
	}
	if transport == "udp" {
		m.Truncate(limit)
		if b.TC {
			m.Truncated, m.Answer = true, nil
		}
	}
	return m
}

// zoneOf gives the zone that the upstream claims the name is in.
func zoneOf(name string) string {
	for _, z := range knownZones[1:] {
		if dns.IsSubDomain(z, name) {
			return z
		}
	}
	if dns.IsSubDomain(knownZones[0], name) {
		return knownZones[0]
	}
	return "."
}

// record makes the i-th record for a question: documentation addresses that depend on the name alone. Nil for types it
// has nothing for.
func record(q dns.Question, ttl uint32, i int) dns.RR {
	h := fnv.New32a()
	_, _ = h.Write([]byte(strings.ToLower(q.Name))) // never fails: hash.Hash
	sum := h.Sum32()
	hdr := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: ttl}
	switch q.Qtype {
	case dns.TypeA:
		return &dns.A{Hdr: hdr, A: net.IPv4(203, 0, byte(113+i>>8), byte(int(sum)+i))}
	case dns.TypeAAAA:
		ip := netip.MustParseAddr("2001:db8::").As16()
		ip[11], ip[12], ip[13], ip[14], ip[15] = byte(sum), byte(sum>>8), byte(sum>>16), byte(i>>8), byte(i)
		return &dns.AAAA{Hdr: hdr, AAAA: ip[:]}
	case dns.TypeTXT:
		return &dns.TXT{Hdr: hdr, Txt: []string{fmt.Sprintf("record %d of %s", i, q.Name)}}
	}
	return nil
}
