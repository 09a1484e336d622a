package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// result is what came of a story.
type result struct {
	story    *story
	traces   []*trace.Trace // of story.want, in its order; nil where there is none
	problems []string
}

// show runs the stories, prints each, and fails if one is not as it has to be.
func (s *scene) show(ctx context.Context) error {
	var results []*result
	for i := range stories {
		r, err := s.tell(ctx, i+1, &stories[i])
		if err != nil {
			return fmt.Errorf("%s: %w", stories[i].title, err)
		}
		results = append(results, r)
	}
	err := summarize(os.Stdout, results)
	if unsent := s.collector.unsent.Load(); unsent > 0 {
		err = errors.Join(err, fmt.Errorf("%d spans could not be sent to %s", unsent, s.config.jaeger))
	}
	if err != nil {
		return err
	}
	if s.config.jaeger != "" {
		s.keepRunning(ctx)
	}
	s.done = true
	return nil
}

func (s *scene) tell(ctx context.Context, n int, st *story) (*result, error) {
	pod := s.pods[st.pod]
	title := fmt.Sprintf("%d. %s", n, st.title)
	fmt.Printf("%s\n%s\n", title, strings.Repeat("=", len(title)))
	fmt.Printf("%s/%s on %s $ %s\n", pod.PodSpec.Namespace, pod.Workload.Name, pod.Node.Name,
		strings.Join(st.command, " "))

	begin := time.Now()
	if err := s.execute(ctx, st, pod); err != nil {
		return nil, err
	}
	r := &result{story: st}
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, w := range st.want {
		t, problems := s.find(limit, pod, w, begin)
		r.traces = append(r.traces, t)
		r.problems = append(r.problems, problems...)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fmt.Printf("See: %s.\n\n", st.look)
	for _, t := range r.traces {
		if t != nil {
			if err := render.Trace(os.Stdout, t, render.For(os.Stdout)); err != nil {
				return nil, err
			}
			fmt.Println()
		}
	}
	for _, p := range r.problems {
		fmt.Println("WRONG:", p)
	}
	fmt.Println()
	return r, nil
}

// execute runs the story's command with its fault, and prints what it printed.
func (s *scene) execute(ctx context.Context, st *story, pod *lab.Pod) (err error) {
	if st.during != nil {
		undo, err := st.during(s)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, undo()) }()
	}
	var out bytes.Buffer
	path := st.command[0]
	if path == "lookup" {
		path = filepath.Join(s.dir, "lookup")
	}
	p, err := pod.Start(lab.Command{Path: path, Args: st.command[1:], Stdout: &out})
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Second):
		p.Kill()
		return errors.New("the command did not end in 20 s")
	}
	for line := range strings.Lines(out.String() + p.Stderr()) {
		fmt.Print("    ", line)
	}
	if failed := p.Err() != nil; failed != st.fails {
		return fmt.Errorf("the command was to fail: %v; it ended with %w", st.fails, orNone(p.Err()))
	}
	if st.fails {
		fmt.Printf("    (%v)\n", p.Err())
	}
	return nil
}

// keepRunning says where the traces are to be seen, and waits for Ctrl-C.
func (s *scene) keepRunning(ctx context.Context) {
	fmt.Printf("\nEverything was sent to %s too.\n", s.config.jaeger)
	if s.jaeger != nil {
		fmt.Printf("Jaeger's query API: http://%s/api/traces?service=cart\n", s.jaeger.query)
		fmt.Println("(Its web page is not in Jaeger's Go module. To see it, run Jaeger's image and make demo " +
			"JAEGER=host:port.)")
	} else {
		fmt.Println("In its web page, choose the service cart or checkout; the last trace of cart is the lost one.")
	}
	fmt.Println("Ctrl-C ends it.")
	<-ctx.Done()
}

var errNone = errors.New("exit status 0")

func orNone(err error) error {
	if err == nil {
		return errNone
	}
	return err
}
