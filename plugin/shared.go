package dnstrail

import (
	"context"
	"sync"
	"time"
)

// Exporters are shared by all server blocks with the same settings, and outlive a reload: the new instance starts
// before the old one is shut down, so a reload that changes nothing here hands them on. Package identity does the same
// for its sources.

// finalFlush bounds how long CoreDNS's end waits for spans to go out.
const finalFlush = 5 * time.Second

// shared are things of type T that are opened once for each key, and closed when the last user is gone.
type shared[T any] struct {
	mu   sync.Mutex
	open map[string]*holding[T]
}

type holding[T any] struct {
	thing T
	users int
}

// take gives the thing for key, opening it if need be, and a function that gives it back; only the first call of it
// counts.
func (s *shared[T]) take(key string, open func() (T, error), close func(T)) (thing T, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.open[key]
	if h == nil {
		thing, err := open()
		if err != nil {
			return thing, nil, err
		}
		h = &holding[T]{thing: thing}
		if s.open == nil {
			s.open = map[string]*holding[T]{}
		}
		s.open[key] = h
	}
	h.users++
	var once sync.Once
	release = func() {
		once.Do(func() {
			s.mu.Lock()
			h.users--
			last := h.users == 0
			if last {
				delete(s.open, key)
			}
			s.mu.Unlock()
			if last {
				close(h.thing)
			}
		})
	}
	return h.thing, release, nil
}

var exporters shared[*exporter]

// takeExporter gives the exporter for a configuration; nil if spans go nowhere.
func takeExporter(x *exportConfig) (*exporter, func(), error) {
	if !x.target.Sends() {
		return nil, func() {}, nil
	}
	return exporters.take(x.key(), func() (*exporter, error) {
		ctx := context.Background()
		client, err := x.open(ctx)
		if err != nil {
			return nil, err
		}
		return newExporter(client, x.resource(ctx), x.Batching), nil
	}, func(e *exporter) {
		go func() { // a reload must not wait for a collector
			ctx, cancel := context.WithTimeout(context.Background(), finalFlush)
			defer cancel()
			e.shutdown(ctx)
		}()
	})
}

// restarts notes what an instance takes while it starts and another one runs. If it fails to start, CoreDNS does not
// shut it down; then what it took is given back for it.
type restarts struct {
	mu    sync.Mutex
	on    bool
	taken []func()
}

var restart restarts

// begin says that another instance is about to start.
func (r *restarts) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.on, r.taken = true, nil
}

// took notes a function that gives back something taken; it has to bear being called twice.
func (r *restarts) took(release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.on {
		r.taken = append(r.taken, release)
	}
}

// end says that the other instance runs, or that it failed.
func (r *restarts) end(failed bool) {
	r.mu.Lock()
	taken := r.taken
	r.on, r.taken = false, nil
	r.mu.Unlock()
	if failed {
		for _, release := range taken {
			release()
		}
	}
}
