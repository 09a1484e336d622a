package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/kernels/job"
	"github.com/dnstrail/dnstrail/tracer/output"
)

// How long the client waits for an answer, which is less than observe waits to give it up, and how long the last
// verdict may take to come.
const (
	patience = 4 * time.Second
	settling = 7 * time.Second // more than observe takes to give a lookup up
	atOnce   = 20              // lookups on their way at a time
)

// try asks over the path, and holds the rows against what the client saw.
func (p *path) try(dnstrail string, slow time.Duration, r *job.Row) (err error) {
	w, err := newWorld()
	defer w.close()
	if err != nil {
		return err
	}
	if err := p.build(w); err != nil {
		return err
	}
	stop, err := w.serve()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var out bytes.Buffer
	observe := exec.Command(dnstrail, "observe", "-o", "jsonl") // #nosec G204 -- ours
	observe.Stdout = &out
	if err := watch(observe, slow); err != nil {
		return err
	}
	if p.then != nil {
		const first = "first.path.test."
		if !w.ask(p.ask, []string{first}, patience)[first] {
			return errors.New("without the fault there is no answer")
		}
		if err := p.then(w); err != nil {
			return err
		}
	}
	names := make([]string, cmp.Or(p.lookups, 100))
	for i := range names {
		names[i] = fmt.Sprintf("q%d.%d.path.test.", i, time.Now().UnixNano())
	}
	answered := w.ask(p.ask, names, patience)
	time.Sleep(settling + slow*time.Second)
	if err := errors.Join(observe.Process.Signal(os.Interrupt), observe.Wait()); err != nil {
		return fmt.Errorf("dnstrail observe: %w", err)
	}
	rows, err := newest(&out)
	if err != nil {
		return err
	}
	return p.judge(names, answered, rows, r)
}

// judge says what is wrong with the rows.
func (p *path) judge(names []string, answered map[string]bool, rows map[string][]*output.Row, r *job.Row) error {
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

func oneOf(word, alternatives string) bool {
	return slices.Contains(strings.Split(alternatives, "|"), word)
}

// newest gives the rows by name, of each lookup the newest.
func newest(out *bytes.Buffer) (map[string][]*output.Row, error) {
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

// serve answers in the server's namespace.
func (w *world) serve() (stop func() error, err error) {
	var conn net.PacketConn
	err = w.server.inside(func() (err error) {
		conn, err = net.ListenPacket("udp", serverAddr+":53")
		return err
	})
	if err != nil {
		return nil, err
	}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(out dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1},
			A:   net.IPv4(192, 0, 2, 1),
		}}
		_ = out.WriteMsg(m) // who is not answered sees it
	})}
	begun := make(chan struct{})
	s.NotifyStartedFunc = func() { close(begun) }
	go func() { _ = s.ActivateAndServe() }()
	<-begun
	return s.Shutdown, nil
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
func watch(observe *exec.Cmd, slow time.Duration) error {
	errs := &said{word: "watching", done: make(chan struct{})}
	observe.Stderr = errs
	if err := observe.Start(); err != nil {
		return err
	}
	select {
	case <-errs.done:
		return nil
	case <-time.After(30 * slow * time.Second):
		return errors.Join(errors.New("dnstrail observe does not begin"), observe.Process.Kill(), observe.Wait())
	}
}

// ask asks for each name once, each from a port of its own, and says which were answered.
func (w *world) ask(server string, names []string, wait time.Duration) map[string]bool {
	if server == "" {
		server = serverAddr
	}
	answered := map[string]bool{}
	var mu sync.Mutex
	var all sync.WaitGroup
	work := make(chan string)
	for range atOnce {
		all.Go(func() {
			for name := range work {
				if w.one(server, name, wait) {
					mu.Lock()
					answered[name] = true
					mu.Unlock()
				}
			}
		})
	}
	for _, name := range names {
		work <- name
	}
	close(work)
	all.Wait()
	return answered
}

func (w *world) one(server, name string, wait time.Duration) bool {
	var conn net.Conn
	err := w.client.inside(func() (err error) {
		conn, err = net.Dial("udp", server+":53")
		return err
	})
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }() // was only read
	_ = conn.SetDeadline(time.Now().Add(wait))
	c := dns.Client{Net: "udp", Timeout: wait}
	_, _, err = c.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: conn})
	return err == nil
}
