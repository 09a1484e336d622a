package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/kernels/job"
	"github.com/dnstrail/dnstrail/tracer/output"
)

// How long the client waits for an answer, which is less than observe waits to give it up, and how long the last
// verdict may take to come.
const (
	patience = 4 * time.Second
	settling = 7 * time.Second // more than observe takes to give a lookup up
	atOnce   = 20              // lookups on their way at a time
	overTCP  = 20              // lookups, where a path takes them
	loading  = 5 * time.Minute // for observe to begin, on an emulated processor among many busy programs
)

// tcpPrefix begins the names that are asked for over TCP.
const tcpPrefix = "tcp"

// trial is a path that was asked over.
type trial struct {
	*path
	world    *world
	names    []string
	answered map[string]bool
}

// try makes the world of a number and asks over the path. The world stays: what an agent says later it finds out there.
func (p *path) try(n int) (t *trial, err error) {
	t = &trial{path: p}
	w, err := newWorld(n)
	t.world = w
	if err != nil {
		return t, err
	}
	if err := p.build(w); err != nil {
		return t, err
	}
	if err := w.serve(p.delay); err != nil {
		return t, err
	}
	if p.then != nil {
		const first = "first.path.test."
		if !w.ask(p.ask, []string{first}, patience, 1)[first] {
			return t, errors.New("without the fault there is no answer")
		}
		if err := p.then(w); err != nil {
			return t, err
		}
	}
	t.names = make([]string, cmp.Or(p.lookups, 100))
	for i := range t.names {
		t.names[i] = fmt.Sprintf("q%d.%d.path.test.", i, n)
	}
	if p.where == "" && !p.loses && !p.udp {
		for i := range overTCP {
			t.names = append(t.names, fmt.Sprintf("%s%d.%d.path.test.", tcpPrefix, i, n))
		}
	}
	t.answered = w.ask(p.ask, t.names, patience, cmp.Or(p.reuse, 1))
	return t, nil
}

// judge says what is wrong with the rows.
func (t *trial) judge(rows map[string][]*output.Row, r *job.Row) error {
	p, names, answered := t.path, t.names, t.answered
	wrong := map[string]int{}
	lost := 0
	for _, name := range names {
		if !answered[name] {
			lost++
		}
		of := rows[name]
		if len(of) != 1 {
			wrong[fmt.Sprintf("%d rows of a lookup", len(of))]++
			continue
		}
		v := &of[0].Verdict
		said := v.Where + "/" + v.Cause
		r.Observed, r.Certainty, r.Text = said, v.Certainty, v.Text
		switch {
		case answered[name] != (of[0].Result == "NOERROR"):
			wrong[fmt.Sprintf("%s %s, answered %v", of[0].Result, said, answered[name])]++
		case p.where != "" && (!oneOf(v.Where, p.where) || !oneOf(v.Cause, p.cause)):
			wrong[said+": "+v.Text]++
		case p.where == "" && answered[name] && said != "answered/answered":
			wrong[said+": "+v.Text]++
		}
	}
	r.Judged = fmt.Sprintf("%d lookups, %d lost", len(names), lost)
	if of := rows[names[0]]; len(of) == 1 {
		r.Way = way(of[0])
	}
	switch {
	case p.where == "" && !p.loses && lost > 0:
		return fmt.Errorf("%d of %d lookups were not answered: the path does not work", lost, len(names))
	case p.where != "" && lost != len(names):
		return errors.New("the lookup was answered: the path has no fault")
	case p.loses && (lost == 0 || lost == len(names)):
		return fmt.Errorf("%d of %d were lost", lost, len(names))
	}
	var all []string
	for what, n := range wrong {
		all = append(all, fmt.Sprintf("%d times %s", n, what))
	}
	slices.Sort(all)
	if len(all) > 0 {
		return errors.New(strings.Join(all, "; "))
	}
	return nil
}

// way tells the hops of a row: devices in their order, the answer's behind the bar. A device in capitals dropped it.
func way(row *output.Row) string {
	var b strings.Builder
	answer := false
	for _, h := range row.Hops {
		if h.Answer && !answer {
			b.WriteString(" |")
			answer = true
		}
		device := cmp.Or(h.Device, "-")
		switch h.Kind {
		case "drop":
			device = strings.ToUpper(device) + "(" + h.Reason + ")"
		case "read":
			device = "read"
		case "out":
			device += ">"
		}
		if h.Tunnel {
			device = "(" + device + ")"
		}
		b.WriteString(" " + device)
	}
	return strings.TrimSpace(b.String())
}

func oneOf(word, alternatives string) bool {
	return slices.Contains(strings.Split(alternatives, "|"), word)
}

// newest gives the rows by name, of each lookup the newest.
func newest(out io.Reader) (map[string][]*output.Row, error) {
	rows := map[string][]*output.Row{}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		row := new(output.Row)
		if err := json.Unmarshal(lines.Bytes(), row); err != nil {
			return nil, fmt.Errorf("a row of dnstrail observe: %w", err)
		}
		of := rows[row.Name]
		i := slices.IndexFunc(of, func(x *output.Row) bool { return x.TraceID == row.TraceID })
		if i >= 0 && row.Revision > 0 {
			of[i] = row
		} else {
			rows[row.Name] = append(of, row)
		}
	}
	return rows, lines.Err()
}

// serve answers in the server's namespace, each query after a while.
func (w *world) serve(delay time.Duration) error {
	var conn net.PacketConn
	var listener net.Listener
	at := w.server.own(serverAddr) + ":53"
	err := w.server.inside(func() (err error) {
		// Where a proxy stands in the server's place, the address is not its own.
		transparent := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			return errors.Join(c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
			}), err)
		}}
		if conn, err = transparent.ListenPacket(context.Background(), "udp4", at); err != nil {
			return err
		}
		listener, err = transparent.Listen(context.Background(), "tcp4", at)
		return err
	})
	if err != nil {
		return err
	}
	handler := dns.HandlerFunc(func(out dns.ResponseWriter, q *dns.Msg) {
		time.Sleep(delay)
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1},
			A:   net.IPv4(192, 0, 2, 1),
		}}
		_ = out.WriteMsg(m) // who is not answered sees it
	})
	servers := []*dns.Server{{PacketConn: conn, Handler: handler}, {Listener: listener, Handler: handler}}
	for _, s := range servers {
		begun := make(chan struct{})
		s.NotifyStartedFunc = func() { close(begun) }
		go func() { _ = s.ActivateAndServe() }()
		<-begun
		w.closers = append(w.closers, s.Shutdown)
	}
	return nil
}

// said is what a program says, and tells when it has said a word.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
	word string
	done chan struct{}
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := strings.Contains(s.text.String(), s.word)
	n, err := s.text.Write(b)
	if !before && strings.Contains(s.text.String(), s.word) {
		close(s.done)
	}
	return n, err
}

// watch starts observe and waits until it sees.
func watch(observe *exec.Cmd) error {
	errs := &said{word: "watching", done: make(chan struct{})}
	observe.Stderr = errs
	if err := observe.Start(); err != nil {
		return err
	}
	select {
	case <-errs.done:
		return nil
	case <-time.After(loading):
		return errors.Join(errors.New("dnstrail observe does not begin"), observe.Process.Kill(), observe.Wait())
	}
}

// ask asks for each name once, and says which were answered. A port asks for so many names, one after the other.
func (w *world) ask(server string, names []string, wait time.Duration, reuse int) map[string]bool {
	server = w.client.own(cmp.Or(server, serverAddr))
	answered := map[string]bool{}
	var mu sync.Mutex
	var all sync.WaitGroup
	work := make(chan []string)
	for range atOnce {
		all.Go(func() {
			for names := range work {
				for _, name := range w.some(server, names, wait) {
					mu.Lock()
					answered[name] = true
					mu.Unlock()
				}
			}
		})
	}
	for some := range slices.Chunk(names, reuse) {
		work <- some
	}
	close(work)
	all.Wait()
	return answered
}

// some asks for names from one port, all by the transport of the first, and gives those that were answered.
func (w *world) some(server string, names []string, wait time.Duration) (answered []string) {
	network := "udp"
	if strings.HasPrefix(names[0], tcpPrefix) {
		network = "tcp"
	}
	var conn net.Conn
	err := w.client.inside(func() (err error) {
		conn, err = net.DialTimeout(network, server+":53", wait)
		return err
	})
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }() // was only read
	c := dns.Client{Net: network, Timeout: wait}
	for _, name := range names {
		_ = conn.SetDeadline(time.Now().Add(wait))
		if _, _, err = c.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: conn}); err == nil {
			answered = append(answered, name)
		}
	}
	return answered
}
