package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

// request is what `lab exec` and its kin send to `lab up`: one JSON object, then the command's standard input. The
// answer is a stream of chunks.
type request struct {
	Verb, Place string
	Args        []string
}

type chunk struct {
	Err    bool // of the standard error
	Data   []byte
	Failed string // how it ended, in the last chunk
}

// control is the socket of the lab that runs: an abstract one, which leaves no file behind.
const control = "@dnstrail-lab"

func ask(r request) error {
	c, err := net.Dial("unix", control)
	if err != nil {
		return fmt.Errorf("is `lab up` running? %w", err)
	}
	defer c.Close()
	if err := json.NewEncoder(c).Encode(r); err != nil {
		return err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		_ = c.(*net.UnixConn).CloseWrite() // tells the lab to stop; it answers with the end
	}()
	for d := json.NewDecoder(c); ; {
		var got chunk
		if err := d.Decode(&got); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if got.Failed != "" {
			return errors.New(got.Failed)
		}
		out := os.Stdout
		if got.Err {
			out = os.Stderr
		}
		if _, err := out.Write(got.Data); err != nil {
			return err
		}
	}
}

// listen serves requests until the function it gives is called.
func listen(l *lab.Lab) (func(), error) {
	ln, err := net.Listen("unix", control)
	if err != nil {
		return nil, fmt.Errorf("another `lab up` runs: %w", err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				a := &answer{enc: json.NewEncoder(c)}
				if err := handle(l, c, a); err != nil {
					a.send(chunk{Failed: err.Error()})
				}
			}()
		}
	}()
	return func() { _ = ln.Close() }, nil
}

func handle(l *lab.Lab, c net.Conn, a *answer) error {
	var r request
	if err := json.NewDecoder(c).Decode(&r); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, c) // ends when the client goes or asks to stop
	}()
	pod, node := pod(l, r.Place), l.Node(r.Place)
	var start func(lab.Command) (*lab.Process, error)
	switch {
	case r.Verb == "drop":
		return drop(l, r, a, gone)
	case r.Verb == "exec" && pod != nil:
		start = pod.Start
	case r.Verb == "node" && node != nil:
		start = node.Start
	default:
		return fmt.Errorf("no %s of that name: %q", map[string]string{"exec": "pod", "node": "node"}[r.Verb], r.Place)
	}
	p, err := start(lab.Command{Path: r.Args[0], Args: r.Args[1:], Stdout: writer{a, false}, Stderr: writer{a, true}})
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-gone:
		p.Kill()
	}
	return p.Err()
}

func drop(l *lab.Lab, r request, a *answer, gone <-chan struct{}) error {
	ns := l.Underlay
	if p, n := pod(l, r.Place), l.Node(r.Place); p != nil {
		ns = p.Namespace
	} else if n != nil {
		ns = n.Namespace
	} else if r.Place != "underlay" {
		return fmt.Errorf("no pod or node %q, nor is it \"underlay\"", r.Place)
	}
	undo, err := ns.Drop(lab.DropRule{Hook: lab.Hook(r.Args[0]), Proto: unix.IPPROTO_UDP, DstPort: 53})
	if err != nil {
		return err
	}
	a.send(chunk{Data: fmt.Appendf(nil, "dropping UDP to port 53 at %s in %s; Ctrl-C ends it\n", r.Args[0], ns.Name)})
	<-gone
	return undo()
}

// pod finds a pod by its name or its workload's.
func pod(l *lab.Lab, name string) *lab.Pod {
	for _, p := range l.Pods() {
		if ok, _ := filepath.Match(name, p.Name); ok || p.Workload.Name == name {
			return p
		}
	}
	return nil
}

type answer struct {
	mu  sync.Mutex
	enc *json.Encoder
}

func (a *answer) send(c chunk) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.enc.Encode(c) // the client is gone
}

type writer struct {
	a   *answer
	err bool
}

func (w writer) Write(b []byte) (int, error) {
	w.a.send(chunk{Err: w.err, Data: b})
	return len(b), nil
}
