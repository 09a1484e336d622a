package hindsight

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link/askback"
)

// socket serves a memory's handler at a Unix socket, and ticks it, until the test ends.
func socket(t *testing.T, m *Memory) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: m.Handler(), ReadHeaderTimeout: time.Second}
	served, ticked, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l) // until it is closed
	}()
	go func() {
		defer close(ticked)
		for {
			select {
			case <-end:
				return
			case <-time.After(10 * time.Millisecond):
				m.Tick(time.Now())
			}
		}
	}()
	t.Cleanup(func() {
		close(end)
		_ = s.Close()
		<-served
		<-ticked
	})
	return path
}

// Asking by hand sends what is remembered of a good lookup, once, and has the others send it.
func TestByHand(t *testing.T) {
	w := &world{answers: map[netip.AddrPort]func(askback.Question) (askback.Result, askback.Answer){
		serverAt: func(q askback.Question) (askback.Result, askback.Answer) {
			if q.Reason != askback.ByHand {
				return askback.Answered, askback.Answer{Outcome: askback.Refused}
			}
			return askback.Answered, askback.Answer{
				Outcome: askback.Seen, Facts: askback.SawQuery | askback.AnswerLeft | askback.ByServer,
			}
		},
		agentAt: unreachable,
	}}
	m := w.memory(t, "node-1", nil)
	r, other := atServer(t, "a.example.", 77), atServer(t, "b.example.", 78)
	m.Remember(r, false)
	m.Remember(other, false)
	key := r.Lookup.Key()
	id := key.TraceID(r.Lookup.Epochs(nil, 0)[0]).String()
	path := socket(t, m)
	for try := range 2 {
		got, err := AskSocket(t.Context(), path, id[:8+24*try])
		if err != nil || got.Found != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
		want := []Heard{
			{"the server at 10.244.2.2", "saw the query, and an answer leave", true}, {"node-2", "could not be asked", false},
		}
		if !slices.Equal(got.Heard, want) {
			t.Errorf("heard %+v, want %+v", got.Heard, want)
		}
		if want := []string{"a.example. hand"}; !slices.Equal(w.sent, want) {
			t.Errorf("sent %q, want %q", w.sent, want)
		}
	}
	got, err := AskSocket(t.Context(), path, strings.Repeat("0", 32))
	if err != nil || got.Found != 0 || len(got.Heard) != 0 {
		t.Errorf("of a lookup that nobody made: %+v, %v", got, err)
	}
}

// Who is asked and says nothing keeps nobody waiting for long.
func TestByHandSilence(t *testing.T) {
	w := &world{}
	m := w.memory(t, "node-1", nil)
	r := atServer(t, "a.example.", 77)
	m.Remember(r, true)
	key := r.Lookup.Key()
	start := time.Now()
	got, err := AskSocket(t.Context(), socket(t, m), key.TraceID(r.Lookup.Epochs(nil, 0)[0]).String())
	if want := []Heard{{Who: "others", Said: "have not answered"}}; err != nil || !slices.Equal(got.Heard, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if took := time.Since(start); took > handLimit {
		t.Errorf("it took %v", took)
	}
	if len(w.sent) != 0 {
		t.Errorf("what was on its way is sent again: %q", w.sent)
	}
}

func TestByHandIsRefused(t *testing.T) {
	m := (&world{}).memory(t, "node-1", nil)
	h := m.Handler()
	for _, c := range []struct {
		name, method, target string
		status               int
	}{
		{"not asked by POST", http.MethodGet, PathAsk + "?trace=00112233", http.StatusMethodNotAllowed},
		{"too few digits", http.MethodPost, PathAsk + "?trace=001", http.StatusBadRequest},
		{"no digits", http.MethodPost, PathAsk + "?trace=the-first", http.StatusBadRequest},
		{"too many digits", http.MethodPost, PathAsk + "?trace=" + strings.Repeat("0", 33), http.StatusBadRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(c.method, c.target, http.NoBody))
			if w.Code != c.status {
				t.Errorf("status %d, want %d: %s", w.Code, c.status, w.Body)
			}
		})
	}
	// Nobody ticks: as many as may wait do, and the next one is told at once.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range maxHands {
		_, _ = m.byHand(ctx, "0011") // it waits no longer
	}
	if _, err := m.byHand(t.Context(), "0011"); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("%v", err)
	}
	if _, err := AskSocket(t.Context(), filepath.Join(t.TempDir(), "none"), "0011"); err == nil ||
		!strings.Contains(err.Error(), "none") {
		t.Errorf("without an agent: %v", err)
	}
}
