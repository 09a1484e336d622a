package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

const dnsPort = 53

// capture is what a packet socket in a pod saw of DNS. It knows nothing of dnstrail, and is what dnstrail's word is
// judged by.
type capture struct {
	fd   int
	done chan struct{}

	mu      sync.Mutex
	asked   map[key]*asked
	order   []*asked
	streams map[stream]*reassembly
	// queried tells which TCP connections from the pod to a DNS port carried a query.
	queried map[stream]bool
	bad     error
}

// key is what makes two queries the same: the socket, the server, the ID and the question.
type key struct {
	transport      string
	client, server netip.AddrPort
	id             uint16
	name           string // lower case
	qtype          uint16
}

func (k key) String() string {
	return fmt.Sprintf("%s %s -> %s ID %d %s %s", k.transport, k.client, k.server, k.id, k.name, dns.TypeToString[k.qtype])
}

// asked is one question of one socket to one server: the queries and the answers to it, in order of time.
type asked struct {
	key
	queries []time.Time
	answers []answer
}

type answer struct {
	at        time.Time
	rcode     int
	truncated bool
	empty     bool // no record in the answer section
	// refused: the pod told the server that the port is closed.
	refused bool
}

// answered gives the last answer that came to an open port before t; nil for none.
func (a *asked) answered(t time.Time) *answer {
	for i := range slices.Backward(a.answers) {
		if n := &a.answers[i]; !n.refused && n.at.Before(t) {
			return n
		}
	}
	return nil
}

// askings counts how often the question was begun: a query is a further attempt as long as none before it is answered
// and the last is younger than the give-up.
func (a *asked) askings() int {
	n := 0
	for i, t := range a.queries {
		if i == 0 || a.answered(t) != nil || t.Sub(a.queries[i-1]) > 4*time.Second {
			n++
		}
	}
	return n
}

type stream struct{ from, to netip.AddrPort }

// startCapture captures on every device of the pod until stop is called.
func startCapture(p *lab.Pod) (*capture, error) {
	c := &capture{
		asked: map[key]*asked{}, streams: map[stream]*reassembly{}, queried: map[stream]bool{},
		done: make(chan struct{}),
	}
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	err := p.Do(func() (err error) {
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(protocol))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture in %s: %w", p.Name, err)
	}
	// A flood of queries is captured without loss, or the run says that it was not.
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 128<<20); err != nil {
		return nil, errors.Join(fmt.Errorf("capture in %s: %w", p.Name, err), unix.Close(c.fd))
	}
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return nil, errors.Join(fmt.Errorf("capture in %s: %w", p.Name, err), unix.Close(c.fd))
	}
	go c.read()
	return c, nil
}

// read reads packets until stop has been called and none is left.
func (c *capture) read() {
	defer func() { c.done <- struct{}{} }()
	buf := make([]byte, 1<<17)
	stopping := false
	for {
		n, from, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if stopping {
				return
			}
			select {
			case <-c.done:
				stopping = true
			default:
			}
			continue
		case err != nil:
			c.fail(fmt.Errorf("read the capture: %w", err))
			<-c.done
			return
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		// The loopback device shows each packet twice, as sent and as received.
		if !ok || link.Hatype == unix.ARPHRD_LOOPBACK && link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		c.packet(time.Now(), buf[:n], link.Pkttype == unix.PACKET_OUTGOING)
	}
}

// stop ends the capture and gives what it saw, in order of the first query. The error says that it is not the whole.
func (c *capture) stop() ([]*asked, error) {
	c.done <- struct{}{}
	<-c.done
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		c.fail(err)
	} else if stats.Drops > 0 {
		c.fail(fmt.Errorf("the capture lost %d packets", stats.Drops))
	}
	c.fail(unix.Close(c.fd))
	return c.order, c.bad
}

func (c *capture) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bad = errors.Join(c.bad, err)
}

// silent gives how many TCP connections to a DNS port carried no query.
func (c *capture) silent() int {
	n := 0
	for _, q := range c.queried {
		if !q {
			n++
		}
	}
	return n
}

func (c *capture) packet(at time.Time, b []byte, out bool) {
	src, dst, proto, payload := network(b)
	switch proto {
	case unix.IPPROTO_UDP:
		if len(payload) < 8 {
			return
		}
		from, to := ports(src, dst, payload)
		if from.Port() == dnsPort || to.Port() == dnsPort {
			c.message(at, "udp", from, to, payload[8:])
		}
	case unix.IPPROTO_TCP:
		if len(payload) < 20 {
			return
		}
		from, to := ports(src, dst, payload)
		if from.Port() == dnsPort || to.Port() == dnsPort {
			c.segment(at, from, to, payload)
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		const unreachable, unreachableV6 = 3, 1
		ours := out || src == dst || src.IsLoopback()
		if ours && len(payload) > 8 && (proto == unix.IPPROTO_ICMP && payload[0] == unreachable ||
			proto == unix.IPPROTO_ICMPV6 && payload[0] == unreachableV6) {
			c.refuse(payload[8:])
		}
	}
}

// network parses an IP header. A packet in fragments is none that the clients here get, and is left out.
func network(b []byte) (src, dst netip.Addr, proto byte, payload []byte) {
	if len(b) < 20 {
		return
	}
	switch b[0] >> 4 {
	case 4:
		head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if head < 20 || total < head || total > len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		return src, dst, b[9], b[head:total]
	case 6:
		if len(b) < 40 {
			return
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		return src, dst, b[6], b[40:min(len(b), 40+int(binary.BigEndian.Uint16(b[4:])))]
	}
	return
}

func ports(src, dst netip.Addr, l4 []byte) (from, to netip.AddrPort) {
	return netip.AddrPortFrom(src, binary.BigEndian.Uint16(l4)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(l4[2:]))
}

func (c *capture) message(at time.Time, transport string, from, to netip.AddrPort, b []byte) {
	var m dns.Msg
	if err := m.Unpack(b); err != nil && len(m.Question) == 0 {
		c.fail(fmt.Errorf("a DNS message from %s to %s: %w", from, to, err))
		return
	}
	if len(m.Question) != 1 {
		return
	}
	k := key{transport, from, to, m.Id, strings.ToLower(m.Question[0].Name), m.Question[0].Qtype}
	if m.Response {
		k.client, k.server = to, from
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.asked[k]
	switch {
	case !m.Response && k.server.Port() == dnsPort:
		if a == nil {
			a = &asked{key: k}
			c.asked[k], c.order = a, append(c.order, a)
		}
		a.queries = append(a.queries, at)
		if transport == "tcp" {
			c.queried[stream{from, to}] = true
		}
	case m.Response && a != nil:
		a.answers = append(a.answers, answer{at: at, rcode: m.Rcode, truncated: m.Truncated, empty: len(m.Answer) == 0})
	}
}

// refuse notes that the pod refused the answer that an ICMP error quotes.
func (c *capture) refuse(quoted []byte) {
	src, dst, proto, payload := quotedNetwork(quoted)
	if proto != unix.IPPROTO_UDP || len(payload) < 8+12 {
		return
	}
	from, to := ports(src, dst, payload)
	id := binary.BigEndian.Uint16(payload[8:])
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.order {
		if a.transport == "udp" && a.client == to && a.server == from && a.id == id && len(a.answers) > 0 {
			a.answers[len(a.answers)-1].refused = true
		}
	}
}

// quotedNetwork is network for a packet whose end an ICMP error has cut off.
func quotedNetwork(b []byte) (src, dst netip.Addr, proto byte, payload []byte) {
	if len(b) >= 20 && b[0]>>4 == 4 {
		b = slices.Clone(b)
		binary.BigEndian.PutUint16(b[2:], uint16(min(len(b), int(binary.BigEndian.Uint16(b[2:])))))
	}
	return network(b)
}

// reassembly puts one direction of a TCP connection together.
type reassembly struct {
	began bool
	next  uint32
	ahead map[uint32][]byte
	buf   []byte
}

func (c *capture) segment(at time.Time, from, to netip.AddrPort, tcp []byte) {
	head := int(tcp[12]>>4) * 4
	if head < 20 || head > len(tcp) {
		return
	}
	s := stream{from, to}
	seq, flags, data := binary.BigEndian.Uint32(tcp[4:]), tcp[13], tcp[head:]
	const syn, ack = 2, 16
	if flags&syn != 0 {
		c.streams[s] = &reassembly{began: true, next: seq + 1, ahead: map[uint32][]byte{}}
		if flags&ack == 0 && to.Port() == dnsPort {
			c.mu.Lock()
			if _, known := c.queried[s]; !known {
				c.queried[s] = false
			}
			c.mu.Unlock()
		}
		return
	}
	r := c.streams[s]
	if r == nil || len(data) == 0 {
		return
	}
	for len(data) > 0 {
		switch gap := int32(seq - r.next); {
		case gap > 0:
			r.ahead[seq] = slices.Clone(data)
			data = nil
		case int(-gap) >= len(data):
			data = nil // sent again, wholly
		default:
			r.buf = append(r.buf, data[-gap:]...)
			r.next += uint32(len(data)) + uint32(gap)
			data, seq = r.ahead[r.next], r.next
			delete(r.ahead, r.next)
		}
	}
	for len(r.buf) >= 2 {
		size := 2 + int(binary.BigEndian.Uint16(r.buf))
		if len(r.buf) < size {
			break
		}
		c.message(at, "tcp", from, to, r.buf[2:size])
		r.buf = r.buf[size:]
	}
}

// byTime orders what was asked by its first query.
func byTime(a, b *asked) int { return cmp.Compare(a.queries[0].UnixNano(), b.queries[0].UnixNano()) }
