package access

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// leastToken is the length of the shortest token that is taken, in bytes.
const leastToken = 16

// rereadAfter is how old what was read of a file may be.
const rereadAfter = 10 * time.Second

// Tokens knows the tokens of a file, which is read again when it changes: a line for each, the token and its subject,
// with blanks between. Lines that begin with # are notes. Make one with [OpenTokens]; it is safe for concurrent use.
type Tokens struct {
	path string

	mu      sync.Mutex
	read    time.Time
	changed time.Time
	known   map[[sha256.Size]byte]Caller
}

// OpenTokens reads the file at path.
func OpenTokens(path string) (*Tokens, error) {
	t := &Tokens{path: path}
	if err := t.load(time.Now()); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Tokens) load(now time.Time) error {
	info, err := os.Stat(t.path) // #nosec G304 G703 -- whoever configures the program names it
	if err != nil {
		return err
	}
	t.read = now
	if t.known != nil && info.ModTime().Equal(t.changed) {
		return nil
	}
	data, err := os.ReadFile(t.path) // #nosec G304 G703 -- whoever configures the program names it
	if err != nil {
		return err
	}
	known := map[[sha256.Size]byte]Caller{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 2 {
			return fmt.Errorf("%s, line %d: want a token and its subject", t.path, n)
		}
		if len(fields[0]) < leastToken {
			return fmt.Errorf("%s, line %d: a token of %d bytes: want at least %d", t.path, n, len(fields[0]), leastToken)
		}
		c, err := ParseSubject(fields[1])
		if err != nil {
			return fmt.Errorf("%s, line %d: %w", t.path, n, err)
		}
		known[sha256.Sum256([]byte(fields[0]))] = c
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", t.path, err)
	}
	if len(known) == 0 {
		return fmt.Errorf("%s: no token in it", t.path)
	}
	t.known, t.changed = known, info.ModTime()
	return nil
}

// Check implements [Checker]. What a file says that cannot be read any more stays in force. Tokens are looked up by
// their hash, so that the time that it takes tells nothing of them.
func (t *Tokens) Check(_ context.Context, token, _, _ string) (Caller, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); now.Sub(t.read) >= rereadAfter {
		if err := t.load(now); err != nil {
			t.read = now
		}
	}
	if c, ok := t.known[sha256.Sum256([]byte(token))]; ok {
		return c, nil
	}
	return Caller{}, ErrCredential
}

// ReadToken gives the token that a file holds, without the blanks around it.
func ReadToken(path string) (string, error) {
	data, err := os.ReadFile(path) // #nosec G304 G703 -- whoever configures the program names it
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsAny(token, "\r\n") {
		return "", fmt.Errorf("%s: want one token, on one line", path)
	}
	return token, nil
}

// Client gives a client of HTTP that shows the token of a file with each request, read anew each time, since what
// Kubernetes puts there is replaced; without a file one that shows none.
func Client(tokenFile string) (*http.Client, error) {
	if tokenFile == "" {
		return &http.Client{}, nil
	}
	if _, err := ReadToken(tokenFile); err != nil {
		return nil, err
	}
	return &http.Client{Transport: shows(tokenFile), CheckRedirect: stays}, nil
}

// stays keeps a token from being shown to another than who was asked.
func stays(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// shows is a transport that shows the token of a file.
type shows string

// RoundTrip implements [http.RoundTripper].
func (s shows) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := ReadToken(string(s))
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token)
	return http.DefaultTransport.RoundTrip(r)
}
