// Package names says how much of the names that are asked for is shown. Both sides hold to one policy: what it hides
// stands in no span, row or page of either.
package names

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Policy says how names are shown. The zero value shows all of all names. It is safe for concurrent use once it stands.
type Policy struct {
	// Rules may be in any order: of those whose zones hold a name, the one with the longest zone holds.
	Rules []Rule
	// Key is that of the hash.
	Key []byte
}

// Rule says how the names of some zones are shown.
type Rule struct {
	Zones  []string // in lower case, with their final dot
	Labels int      // below the zone, that are shown
	Hash   bool     // what is not shown is hashed, not only left out
}

// Usage is what [Policy.Add] takes, in words.
const Usage = "redact|hash LABELS [ZONE...]|key FILE|file FILE"

// ErrArgs says that a rule has arguments of another kind or number than it takes.
var ErrArgs = errors.New("wrong arguments; want " + Usage)

// leastKey is the least length of a key in bytes: shorter ones can be guessed.
const leastKey = 16

// New gives a policy without rules, whose key only this process knows.
func New() *Policy {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it never fails
	return &Policy{Key: key}
}

// Add adds a rule (see [Usage]). A key is read of a file, so that several programs can hash alike; a file has a rule a
// line, and what follows # is left out.
func (p *Policy) Add(args ...string) error {
	if len(args) < 2 {
		return ErrArgs
	}
	switch args[0] {
	case "redact", "hash":
		return p.addRule(args)
	case "key", "file":
		if len(args) != 2 {
			return ErrArgs
		}
		text, err := os.ReadFile(args[1]) // #nosec G304 G703 -- whoever configures the program names it
		switch {
		case err != nil:
			return err
		case args[0] == "file":
			return p.addFile(args[1], text)
		}
		key := bytes.TrimSpace(text)
		if len(key) < leastKey {
			return fmt.Errorf("%s: a key of %d bytes; want at least %d", args[1], len(key), leastKey)
		}
		p.Key = key
		return nil
	}
	return ErrArgs
}

func (p *Policy) addRule(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil || n < 0 || n > 127 {
		return fmt.Errorf("'%s' is not a number of labels; want one from 0 to 127", args[1])
	}
	rule := Rule{Labels: n, Hash: args[0] == "hash", Zones: []string{"."}}
	if len(args) > 2 {
		rule.Zones = nil
	}
	for _, z := range args[2:] {
		if _, ok := dns.IsDomainName(z); !ok {
			return fmt.Errorf("'%s' is not a zone", z)
		}
		rule.Zones = append(rule.Zones, dns.CanonicalName(z))
	}
	p.Rules = append(p.Rules, rule)
	return nil
}

func (p *Policy) addFile(path string, text []byte) error {
	s := bufio.NewScanner(bytes.NewReader(text))
	for line := 1; s.Scan(); line++ {
		rule, _, _ := strings.Cut(s.Text(), "#")
		args := strings.Fields(rule)
		if len(args) == 0 {
			continue
		}
		err := ErrArgs
		if args[0] != "file" {
			err = p.Add(args...)
		}
		if err != nil {
			return fmt.Errorf("%s, line %d: %w", path, line, err)
		}
	}
	return s.Err()
}

// Hides says whether any name may be shown in part only.
func (p *Policy) Hides() bool { return p != nil && len(p.Rules) > 0 }

// Show gives a name in presentation form as it may be shown, and whether that is less than the whole name. Of the zones
// that hold the name, the longest one rules. What is hidden is replaced by one label: "*", or the hash of the hidden
// part in lower case. A nil policy shows all.
func (p *Policy) Show(name string) (shown string, hidden bool) {
	if !p.Hides() {
		return name, false
	}
	var rule *Rule
	zone := ""
	lower := strings.ToLower(name)
	for i := range p.Rules {
		for _, z := range p.Rules[i].Zones {
			if len(z) > len(zone) && dns.IsSubDomain(z, lower) {
				rule, zone = &p.Rules[i], z
			}
		}
	}
	if rule == nil {
		return name, false
	}
	labels := dns.Split(name)
	keep := dns.CountLabel(zone) + rule.Labels
	if len(labels) <= keep {
		return name, false
	}
	tail := "."
	cut := len(name)
	if keep > 0 {
		cut = labels[len(labels)-keep]
		tail = "." + name[cut:]
	}
	if !rule.Hash {
		return "*" + tail, true
	}
	mac := hmac.New(sha256.New, p.Key)
	mac.Write([]byte(lower[:cut]))
	return "h-" + hex.EncodeToString(mac.Sum(nil)[:8]) + tail, true
}

// ShowAnswers gives the answers to a question for a name as they may be shown: none where the name is not shown whole,
// and of names among them (those that end with a dot) what may be shown. list is left as it is.
func (p *Policy) ShowAnswers(name string, list []string) []string {
	if !p.Hides() {
		return list
	}
	if _, hidden := p.Show(name); hidden {
		return nil
	}
	copied := false
	for i, a := range list {
		if !strings.HasSuffix(a, ".") {
			continue
		}
		if shown, hidden := p.Show(a); hidden {
			if !copied {
				list, copied = slices.Clone(list), true
			}
			list[i] = shown
		}
	}
	return list
}
