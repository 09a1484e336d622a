package past

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
)

// Handler serves a past. stats gives the agent's counts.
func (p *Past) Handler(stats func() pipeline.Stats) http.Handler {
	return rowapi.Handler(p, func() any { return Stats{stats(), p.missed.Load()} })
}

// Lookups implements [rowapi.Source].
func (p *Past) Lookups(ctx context.Context, f *output.Filter, n int, follow bool, give func(*output.Row) error,
	idle func()) error {
	var s *Subscription
	if follow {
		s = p.Subscribe(f) // before the past is read, so that nothing falls between
		defer s.Close()
	}
	corrections := output.Corrections{Filter: f}
	var until time.Time
	if n >= 0 {
		for _, row := range p.Rows(f, n) {
			until = row.Time
			corrections.Takes(row)
			if err := give(row); err != nil {
				return err
			}
		}
	}
	idle()
	if !follow {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case row := <-s.Rows():
			if row.Time.Before(until) && row.Revision == 0 || !corrections.Takes(row) {
				continue
			}
			if err := give(row); err != nil {
				return err
			}
			if len(s.Rows()) == 0 {
				idle()
			}
		}
	}
}

// Listen listens on a Unix socket that only its owner may use; what a dead agent left at the path is removed.
func Listen(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("%s: another agent listens there", path)
	} else if st, err := os.Lstat(path); err == nil && st.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
