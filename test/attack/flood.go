package attack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

// clientEnv makes the test binary the program of an attacker or a victim in a pod: its value is a spec in JSON.
const clientEnv = "DNSTRAIL_ATTACK_CLIENT"

// spec is what a program in a pod does.
type spec struct {
	// Do is names (random names from some sockets), one-id (one socket and one ID), spoofed (random sources), silent
	// (a server that reads and says nothing), rcodes (a server that answers with ever other extended rcodes) or ask (a
	// victim's lookups, each told as an outcome).
	Do     string         `json:"do"`
	Server netip.AddrPort `json:"server"`
	Count  int            `json:"count"`
	Rate   int            `json:"rate"` // a second; 0: as fast as it goes
	Prefix string         `json:"prefix"`
	// Title, if not empty, is the name that the process gives itself.
	Title string `json:"title"`
}

// outcome is a lookup of a victim: how it ended for it, and when.
type outcome struct {
	Name     string    `json:"name"`
	Answered bool      `json:"answered"`
	Ended    time.Time `json:"ended"`
}

// sockets is how many sockets random names are asked from.
const sockets = 16

// spoofedSources bounds the sources: each costs an entry of the host's connection tracking.
const spoofedSources = 20_000

func run(text string) error {
	var s spec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	if s.Title != "" {
		if err := os.WriteFile("/proc/self/comm", []byte(s.Title), 0); err != nil {
			return err
		}
	}
	switch s.Do {
	case "rcodes":
		return s.rcodes()
	case "silent":
		return s.silent()
	case "ask":
		return s.ask()
	case "spoofed":
		return s.spoofed()
	case "names":
		return s.flood(sockets, func() uint16 { return uint16(rand.Uint32()) })
	case "one-id":
		return s.flood(1, func() uint16 { return 1 })
	}
	return fmt.Errorf("do %q?", s.Do)
}

// query gives a message that asks for a name that nobody asked for before.
func (s *spec) query(i int, id uint16) ([]byte, error) {
	m := new(dns.Msg).SetQuestion(fmt.Sprintf("%s%08d.attack.example.", s.Prefix, i), dns.TypeA)
	m.Id = id
	return m.Pack()
}

// pace waits as long as the rate asks for before the i'th of what began at start.
func (s *spec) pace(i int, start time.Time) {
	if s.Rate > 0 && i%16 == 0 {
		time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(s.Rate))))
	}
}

func (s *spec) flood(sockets int, id func() uint16) error {
	conns := make([]net.Conn, sockets)
	for i := range conns {
		c, err := net.Dial("udp", s.Server.String())
		if err != nil {
			return err
		}
		conns[i] = c
	}
	start := time.Now()
	for i := range s.Count {
		b, err := s.query(i, id())
		if err != nil {
			return err
		}
		s.pace(i, start)
		if err := sendAll(func() error { _, err := conns[i%sockets].Write(b); return err }); err != nil {
			return err
		}
	}
	return nil
}

// sendAll sends once more what found no room to be sent.
func sendAll(send func() error) error {
	for {
		err := send()
		if !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// spoofed sends queries whose sources are not the pod's own.
func (s *spec) spoofed() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Addr: s.Server.Addr().As4()}
	start := time.Now()
	for i := range s.Count {
		b, err := s.query(i, uint16(rand.Uint32()))
		if err != nil {
			return err
		}
		n := rand.N(spoofedSources)
		packet := ipv4(netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), s.Server, b)
		s.pace(i, start)
		if err := sendAll(func() error { return unix.Sendto(fd, packet, 0, to) }); err != nil {
			return err
		}
	}
	return nil
}

// ipv4 gives a UDP datagram from port 5353 of a source. The kernel fills in the header's checksum; that of UDP is
// left out (RFC 768).
func ipv4(src netip.Addr, dst netip.AddrPort, payload []byte) []byte {
	p := make([]byte, 28, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	p[2], p[3] = byte((28+len(payload))>>8), byte(28+len(payload))
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.Addr().AsSlice())
	p[20], p[21] = byte(5353>>8), byte(5353&0xff)
	p[22], p[23] = byte(dst.Port()>>8), byte(dst.Port())
	p[24], p[25] = byte((8+len(payload))>>8), byte(8+len(payload))
	return append(p, payload...)
}

// silent reads what comes and answers nothing, until it is killed.
func (s *spec) silent() error {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(s.Server))
	if err != nil {
		return err
	}
	_ = c.SetReadBuffer(8 << 20) // as much as the kernel allows
	buf := make([]byte, 1<<16)
	for {
		if _, err := c.Read(buf); err != nil {
			return err
		}
	}
}

// rcodes answers what comes, each query with the next of all extended rcodes, until it is killed.
func (s *spec) rcodes() error {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(s.Server))
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for i := 0; ; i++ {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		var query dns.Msg
		if query.Unpack(buf[:n]) != nil {
			continue
		}
		answer := new(dns.Msg).SetRcode(&query, i%(1<<12))
		answer.SetEdns0(1232, false)
		b, err := answer.Pack()
		if err != nil {
			return err
		}
		if _, err := c.WriteToUDPAddrPort(b, from); err != nil {
			return err
		}
	}
}

// ask makes a victim's lookups one after the other, and writes how each ended.
func (s *spec) ask() error {
	out := json.NewEncoder(os.Stdout)
	c := dns.Client{Timeout: 4 * time.Second}
	start := time.Now()
	for i := range s.Count {
		time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(s.Rate))))
		name := fmt.Sprintf("%s%d.example.com.", s.Prefix, i)
		_, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), s.Server.String())
		if err := out.Encode(outcome{name, err == nil, time.Now()}); err != nil {
			return err
		}
	}
	return nil
}

// start starts a program in a pod.
func (s spec) start(p *lab.Pod) (*lab.Process, error) { return s.startTo(p, nil) }

// startTo is start with what the program writes going to a writer.
func (s spec) startTo(p *lab.Pod, out io.Writer) (*lab.Process, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return p.Start(lab.Command{Path: self, Stdout: out, Env: []string{clientEnv + "=" + string(text)}})
}
