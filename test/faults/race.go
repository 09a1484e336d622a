package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

// The insert race: two queries of one socket at one instant, to two service addresses that are translated to the same
// server. Their conntrack entries differ where the client asks and are the same where the server answers; whichever is
// put into the table second is dropped.
const (
	raceRules = 40 // hundred, on the way between translation and table: some 50 us, in which the other packet passes, too
	raceLimit = 20 * time.Second
	raceTry   = 100 * time.Millisecond // that the two answers get
)

// secondService is the other service address.
func secondService(f family) netip.AddrPort {
	return netip.AddrPortFrom(pick(f, netip.MustParseAddr("10.96.0.11"), netip.MustParseAddr("fd00:10:96::b")), 53)
}

// insertRace gives CoreDNS a second service address, and the client's node many rules.
func insertRace(s *scene, f family) (lab.Undo, error) {
	n := s.client.Node
	translate, err := n.Translate(secondService(f), netip.AddrPortFrom(pick(f, s.cluster.DNS.V4, s.cluster.DNS.V6), 53))
	if err != nil {
		return nil, err
	}
	long, err := n.LongPostrouting(raceRules)
	return undoAll(translate, long), err
}

// askParallel sends an A and an AAAA query at one instant, each from a CPU of its own, from new ports until the node's
// connection tracking counts that it dropped one. It gives what is true of them all.
func askParallel(s *scene, f family, name string) ([]truth, error) {
	node := s.client.Node
	before, err := node.ConntrackFailures()
	if err != nil {
		return nil, err
	}
	tries := 0
	for end := time.Now().Add(raceLimit); time.Now().Before(end); {
		tries++
		answered, err := s.parallel(f, name)
		if err != nil {
			return nil, err
		}
		now, err := node.ConntrackFailures()
		if err != nil {
			return nil, err
		}
		if now == before {
			continue
		}
		if len(answered) != 1 || now != before+1 {
			return nil, fmt.Errorf("connection tracking dropped %d packets, and the answers are %v: want one of two", now-before,
				answered)
		}
		lost, won := "A", "AAAA"
		if answered[0] == dns.TypeA {
			lost, won = won, lost
		}
		truths := []truth{raceTruth, answeredOf(won, tries)}
		truths[0].qtype = lost
		if tries > 1 {
			truths = append(truths, answeredOf(lost, tries-1))
		}
		return truths, nil
	}
	return nil, fmt.Errorf("%d pairs of queries in %s, and connection tracking dropped none", tries, raceLimit)
}

// raceTruth is the truth of the one that was dropped.
var raceTruth = truth{where: "service", cause: "conntrack-insert-race", certain: must}

// answeredOf is the truth of so many queries of a type that were answered.
func answeredOf(qtype string, count int) truth {
	t := answered
	t.qtype, t.count = qtype, count
	return t
}

// parallel sends one pair, and gives the types that were answered.
func (s *scene) parallel(f family, name string) (answered []uint16, err error) {
	pc, err := s.client.ListenPacket("udp", netip.AddrPortFrom(pick(f, s.client.V4, s.client.V6), 0).String())
	if err != nil {
		return nil, err
	}
	defer pc.Close()
	raw, err := pc.(*net.UDPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	var waiting atomic.Int32
	errs := make(chan error, 2)
	for i, q := range []struct {
		typ uint16
		to  netip.AddrPort
	}{{dns.TypeA, netip.AddrPortFrom(f.vip, 53)}, {dns.TypeAAAA, secondService(f)}} {
		m, err := new(dns.Msg).SetQuestion(name, q.typ).Pack()
		if err != nil {
			return nil, err
		}
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with its affinity
			errs <- onCPU(i, func() error {
				var sent error
				err := raw.Control(func(fd uintptr) {
					to := sockaddr(q.to)
					waiting.Add(1)
					for waiting.Load() < 2 { // both are on their CPU
					}
					sent = unix.Sendto(int(fd), m, 0, to)
				})
				return errors.Join(err, sent)
			})
		}()
	}
	if err := errors.Join(<-errs, <-errs); err != nil {
		return nil, err
	}
	if err := pc.SetReadDeadline(time.Now().Add(raceTry)); err != nil {
		return nil, err
	}
	buf := make([]byte, 512)
	for len(answered) < 2 {
		n, _, err := pc.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			return nil, err
		}
		var m dns.Msg
		if err := m.Unpack(buf[:n]); err != nil {
			return nil, err
		}
		answered = append(answered, m.Question[0].Qtype)
	}
	return answered, nil
}

// onCPU runs f with its thread bound to the nth of the CPUs that this process may run on.
func onCPU(n int, f func() error) error {
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return err
	}
	for cpu := range 1024 {
		if !allowed.IsSet(cpu) {
			continue
		}
		if n == 0 {
			one.Set(cpu)
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return err
			}
			return f()
		}
		n--
	}
	return errors.New("two CPUs are needed to send two packets at one instant")
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}
