package hindsight

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link/askback"
	"github.com/dnstrail/dnstrail/tracer/past"
)

// Asking by hand: somebody who may use the agent's socket names a lookup by its trace ID, and those who saw it send
// their spans as if it had ended badly, for as long as the past reaches.

// PathAsk is where a [Memory.Handler] is asked, with the first digits of a trace ID, at least [FewestDigits], as the
// parameter trace.
const PathAsk = "/api/dnstrail/ask"

// FewestDigits is how many hexadecimal digits of a trace ID tell one from others.
const FewestDigits = 4

// Bounds of what is asked by hand.
const (
	maxByHand = 4                     // lookups whose trace IDs begin alike
	maxHands  = 16                    // who may wait at a time
	handWait  = 3 * askback.Timeout   // server, then the agent that it names, and some room
	handLimit = 2*handWait + patience // until a tick answers for sure
)

// ByHand is what came of asking by hand.
type ByHand struct {
	// Found counts the lookups with that trace ID that the agent remembers.
	Found int `json:"found"`
	// Heard is what each of those who were asked said.
	Heard []Heard `json:"heard,omitempty"`
}

// Heard is what one of those said: in words.
type Heard struct {
	Who  string `json:"who"`
	Said string `json:"said"`
	// Seen says that it saw the lookup, and that its spans are on their way.
	Seen bool `json:"seen,omitempty"`
}

// hand is somebody who waits.
type hand struct {
	digits string
	reply  chan ByHand // of one place
	until  time.Time
	asked  []*holding
	found  int
}

// Handler answers those who may use the agent's socket: POST [PathAsk] gives a [ByHand] as JSON.
func (m *Memory) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathAsk, func(w http.ResponseWriter, r *http.Request) {
		digits := strings.ToLower(r.URL.Query().Get("trace"))
		if err := CheckDigits(digits); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		got, err := m.byHand(r.Context(), digits)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(got) // the asker is gone
	})
	return mux
}

// CheckDigits checks the first digits of a trace ID.
func CheckDigits(digits string) error {
	if len(digits) < FewestDigits || len(digits) > 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return fmt.Errorf("%q is no trace ID: want 32 hexadecimal digits, or the first of them, at least %d", digits,
			FewestDigits)
	}
	return nil
}

// byHand has the next ticks ask, and waits for what comes of it.
func (m *Memory) byHand(ctx context.Context, digits string) (ByHand, error) {
	h := &hand{digits: digits, reply: make(chan ByHand, 1)}
	select {
	case m.byHands <- h:
	default:
		return ByHand{}, errors.New("too many ask by hand")
	}
	ctx, cancel := context.WithTimeout(ctx, handLimit)
	defer cancel()
	select {
	case got := <-h.reply:
		return got, nil
	case <-ctx.Done():
		return ByHand{}, errors.New("the agent is busy or ends")
	}
}

// tickHands takes those who ask by hand, and lets go of those whose answers have come or are overdue.
func (m *Memory) tickHands(now time.Time) {
	for range len(m.byHands) {
		h := <-m.byHands
		h.until = now.Add(handWait)
		m.begin(h)
		m.hands = append(m.hands, h)
	}
	left := m.hands[:0]
	for _, h := range m.hands {
		open := 0
		for _, x := range h.asked {
			open += x.open
		}
		if open > 0 && now.Before(h.until) {
			left = append(left, h)
			continue
		}
		h.reply <- h.told()
	}
	clear(m.hands[len(left):])
	m.hands = left
}

// begin sends what is remembered of the lookups that are meant, and asks the others.
func (m *Memory) begin(h *hand) {
	for k := range m.facts.Newest() {
		r := k.Result()
		if !r.Lookup.Final || !hasQuestion(r.Lookup) || !m.begins(k, h.digits) {
			continue
		}
		if !k.Sent {
			k.Sent = true
			m.send(r, askback.ByHand)
			m.along(&r, askback.ByHand)
		}
		if x := m.about(&r, askback.ByHand); x != nil {
			m.ask(nil, x)
			h.asked = append(h.asked, x)
		}
		if h.found++; h.found == maxByHand {
			return
		}
	}
}

// begins says whether a lookup may have a trace ID that begins with digits.
func (m *Memory) begins(k *past.Kept, digits string) bool {
	l := k.Result().Lookup
	key := l.Key()
	for _, e := range l.Epochs(nil, m.o.Guard) {
		if strings.HasPrefix(key.TraceID(e).String(), digits) {
			return true
		}
	}
	return false
}

// told gives what was heard.
func (h *hand) told() ByHand {
	b := ByHand{Found: h.found}
	for _, x := range h.asked {
		for i := range x.heard {
			b.Heard = append(b.Heard, x.heard[i].plain())
		}
		if x.open > 0 {
			b.Heard = append(b.Heard, Heard{Who: "others", Said: "have not answered"})
		}
	}
	return b
}

// plain says what one said, for whoever asked by hand.
func (x *heard) plain() Heard {
	var said string
	seen := false
	switch {
	case x.result == askback.Limited:
		said = "was not asked: there is too much to ask"
	case x.result != askback.Answered:
		said = "could not be asked"
	case x.Outcome == askback.Refused:
		said = "refused: it is asked too much"
	case x.Outcome == askback.Forgotten:
		said = "does not remember it"
	case x.Outcome == askback.NotSeen:
		said = "was watching, and did not see it"
	default:
		said = "saw " + saw(x.Facts)
		if x.Facts&askback.ByQuestion != 0 {
			said += ", from another address: it may be another's"
		}
		if seen = x.Facts&askback.SpansGone == 0; !seen {
			said += "; its spans are gone"
		}
	}
	return Heard{x.who, said, seen}
}

// AskSocket asks the agent that listens at a Unix socket, by hand. Errors say what the agent said.
func AskSocket(ctx context.Context, socket, digits string) (ByHand, error) {
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	u := url.URL{Scheme: "http", Host: "agent", Path: PathAsk, RawQuery: url.Values{"trace": {digits}}.Encode()}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), http.NoBody)
	if err != nil {
		return ByHand{}, err
	}
	resp, err := c.Do(r)
	if err != nil {
		if at, ok := errors.AsType[*url.Error](err); ok {
			err = at.Err // the URL is ours, and says nothing that the socket's path does not
		}
		return ByHand{}, fmt.Errorf("asking the agent at %s: %w", socket, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	switch {
	case err != nil:
		return ByHand{}, fmt.Errorf("asking the agent at %s: %w", socket, err)
	case resp.StatusCode == http.StatusNotFound:
		return ByHand{}, fmt.Errorf("the agent at %s asks nobody: start it with --ask-back", socket)
	case resp.StatusCode != http.StatusOK:
		return ByHand{}, fmt.Errorf("asking the agent at %s: %s: %s", socket, resp.Status, bytes.TrimSpace(body))
	}
	var got ByHand
	if err := json.Unmarshal(body, &got); err != nil {
		return got, fmt.Errorf("reading what the agent at %s says: %w", socket, err)
	}
	return got, nil
}
