// Package askback lets those who watch one lookup from several places ask one another what they saw of it: one
// datagram there, one back, each authenticated with a key that all share. HINDSIGHT.md beside package link is the
// contract. The package knows nothing of who asks and who answers; the plugin and the tracer both use it.
package askback

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link"
)

// Version is the version of the datagrams, their first byte.
const Version = 1

// DefaultPort is the UDP port at which questions are taken where none is named.
const DefaultPort = 4953

// Size is the length of every datagram in bytes, of a question as of an answer: no answer is larger than its question.
const Size = 192

const (
	macSize    = sha256.Size
	headSize   = 1 + 1 + keyIDSize + 8 + nonceSize // version, kind, key ID, time, nonce
	keyIDSize  = 4
	nonceSize  = 16
	addrSize   = 16 + 2
	maxTraces  = 4
	maxNode    = 63
	bodyOffset = headSize
	macOffset  = Size - macSize
)

// kind says what a datagram is.
type kind uint8

const (
	question kind = 1
	answer   kind = 2
)

// Reason says why somebody asks.
type Reason uint8

// The reasons.
const (
	Lost   Reason = 1 + iota // no answer came to the client
	Failed                   // the answer was a server's failure
	Slow                     // it took long
	Rule                     // a rule of the asker keeps such lookups
	ByHand                   // somebody wants to see it

	afterReasons
)

// String gives the value of the attribute dnstrail.asked.reason.
func (r Reason) String() string {
	if r == 0 || r >= afterReasons {
		return fmt.Sprintf("reason-%d", uint8(r))
	}
	return [...]string{"", "lost", "failed", "slow", "rule", "hand"}[r]
}

// Question asks what was seen of one lookup.
type Question struct {
	Reason Reason
	// ID is the ID of the DNS header, and Hash names the question: see [link.Key.QuestionHash].
	ID   uint16
	Hash uint64
	// From and To are between when the query was sent first and when the asker called it ended, by the asker's clock, in
	// ns since 1970.
	From, To int64
	// Server is where the query went, as the asker saw it last.
	Server netip.AddrPort
	// Traces are the trace IDs that the asker derives of it, at most four, the likeliest first.
	Traces []link.TraceID
}

// Outcome says what the asked knows.
type Outcome uint8

// The outcomes of an answer.
const (
	Seen      Outcome = 1 + iota // it saw the lookup, and its spans go out as if it were sampled
	NotSeen                      // it was watching all the while, and did not see it
	Forgotten                    // it did not watch all the while, or what it saw then has fallen out of its memory
	Refused                      // it is asked too much

	afterOutcomes
)

// String gives the outcome in a word.
func (o Outcome) String() string {
	if o == 0 || o >= afterOutcomes {
		return fmt.Sprintf("outcome-%d", uint8(o))
	}
	return [...]string{"", "seen", "not-seen", "forgotten", "refused"}[o]
}

// Facts are what the asked saw of the lookup, as bits.
type Facts uint8

// The facts.
const (
	SawQuery   Facts = 1 << iota // the query came
	TookQuery                    // the server read it
	AnswerLeft                   // the answer was sent towards the client
	InFlight                     // it has not ended where the asked is: what comes of it will be sent
	ByServer                     // the asked is the server itself, not an agent
	SpansGone                    // that it was seen is all that is left of it
	// ByQuestion says that the asked has a lookup with the ID and the question, but with none of the trace IDs: it may be
	// the one that is meant, its source translated out of the asker's sight, or another client's.
	ByQuestion

	allFacts = ByQuestion<<1 - 1
)

// Answer is what the asked has to say.
type Answer struct {
	Outcome Outcome
	Facts   Facts
	// Since is when the asked began to watch, in ns since 1970 by its clock. Lost counts what it knows to have missed
	// since the lookup began.
	Since int64
	Lost  uint32
	// Beside is another who may know more, the agent on the server's node; invalid where none is named.
	Beside netip.AddrPort
	// Node is the asked's node, its first 63 bytes; "" where it does not know.
	Node string
}

// nonce tells one question from every other.
type nonce [nonceSize]byte

// ErrKey says that a file holds no key.
var ErrKey = errors.New("want a line of at least 32 characters")

// Key authenticates datagrams. Make one with [ReadKey] or [NewKey].
type Key struct{ secrets []secret } // the first asks and answers; all are taken

type secret struct {
	id  [keyIDSize]byte
	mac []byte // key of HMAC-SHA256
}

// NewKey makes a key of secrets, each of at least 32 bytes. Questions are asked with the first; those that come with
// any of them are taken, so that a secret can be changed without a gap. An error wraps [ErrKey].
func NewKey(secrets ...string) (*Key, error) {
	k := &Key{}
	for _, s := range secrets {
		if len(s) < 32 {
			return nil, ErrKey
		}
		x := secret{mac: derive(s, "dnstrail hindsight 1 mac")}
		copy(x.id[:], derive(s, "dnstrail hindsight 1 id"))
		k.secrets = append(k.secrets, x)
	}
	if len(k.secrets) == 0 {
		return nil, ErrKey
	}
	return k, nil
}

func derive(secret, what string) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(what))
	return h.Sum(nil)
}

// ReadKey reads a key from a file: a secret a line, spaces around it and empty lines ignored. Errors name the file;
// one about its text wraps [ErrKey].
func ReadKey(file string) (*Key, error) {
	text, err := os.ReadFile(file) // #nosec G304 -- whoever starts the program names its key
	if err != nil {
		return nil, err
	}
	var secrets []string
	for line := range strings.Lines(string(text)) {
		if s := strings.TrimSpace(line); s != "" {
			secrets = append(secrets, s)
		}
	}
	k, err := NewKey(secrets...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return k, nil
}

// byID gives the index of the secret with an ID, -1 if there is none.
func (k *Key) byID(id []byte) int {
	for i := range k.secrets {
		if bytes.Equal(k.secrets[i].id[:], id) {
			return i
		}
	}
	return -1
}

// head begins a datagram.
func head(b *[Size]byte, k kind, s *secret, n nonce, now time.Time) []byte {
	b[0], b[1] = Version, byte(k)
	copy(b[2:], s.id[:])
	binary.BigEndian.PutUint64(b[2+keyIDSize:], uint64(now.UnixNano())) // #nosec G115 -- after 1970
	copy(b[2+keyIDSize+8:], n[:])
	return b[bodyOffset:bodyOffset]
}

// seal ends a datagram.
func (s *secret) seal(b *[Size]byte) {
	h := hmac.New(sha256.New, s.mac)
	h.Write(b[:macOffset])
	h.Sum(b[:macOffset])
}

// sealed says whether a datagram is; h is the secret's own hash, and is used again.
func sealed(h hash.Hash, b []byte) bool {
	h.Reset()
	h.Write(b[:macOffset])
	var sum [macSize]byte
	return hmac.Equal(h.Sum(sum[:0]), b[macOffset:])
}

func (k *Key) putQuestion(b *[Size]byte, q *Question, n nonce, now time.Time) {
	*b = [Size]byte{}
	s := &k.secrets[0]
	body := head(b, question, s, n, now)
	body = append(body, byte(q.Reason))
	body = binary.BigEndian.AppendUint16(body, q.ID)
	body = binary.BigEndian.AppendUint64(body, q.Hash)
	body = binary.BigEndian.AppendUint64(body, uint64(q.From)) // #nosec G115 -- a bit pattern
	body = binary.BigEndian.AppendUint64(body, uint64(q.To))   // #nosec G115 -- a bit pattern
	body = appendAddr(body, q.Server)
	traces := q.Traces[:min(len(q.Traces), maxTraces)]
	body = append(body, byte(len(traces)))
	for _, t := range traces {
		body = append(body, t[:]...)
	}
	s.seal(b)
}

// putAnswer writes an answer with the secret that the question came with.
func (s *secret) putAnswer(b *[Size]byte, a *Answer, n nonce, now time.Time) {
	*b = [Size]byte{}
	body := head(b, answer, s, n, now)
	body = append(body, byte(a.Outcome), byte(a.Facts))
	body = binary.BigEndian.AppendUint64(body, uint64(a.Since)) // #nosec G115 -- a bit pattern
	body = binary.BigEndian.AppendUint32(body, a.Lost)
	body = appendAddr(body, a.Beside)
	node := a.Node[:min(len(a.Node), maxNode)]
	body = append(body, byte(len(node)))
	_ = append(body, node...)
	s.seal(b)
}

func appendAddr(b []byte, a netip.AddrPort) []byte {
	var addr [16]byte
	if a.IsValid() {
		addr = a.Addr().As16()
	}
	return binary.BigEndian.AppendUint16(append(b, addr[:]...), a.Port())
}

func readAddr(b []byte) netip.AddrPort {
	port := binary.BigEndian.Uint16(b[16:])
	addr := netip.AddrFrom16([16]byte(b[:16]))
	if port == 0 || addr.IsUnspecified() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Unmap(), port)
}

// datagram is one that was read, and is authentic.
type datagram struct {
	kind     kind
	secret   *secret
	time     int64 // ns since 1970, by the sender's clock
	nonce    nonce
	question Question
	answer   Answer

	hashes []hash.Hash // of the key's secrets, to be used again
}

// Why a datagram is not taken.
var (
	errForm   = errors.New("no datagram of this version")
	errForged = errors.New("not sealed with a key of ours")
)

// open reads a datagram into d, of the same key always: errForged is one that is not authentic, errForm one that no
// program of this version sends. Nothing but its length and first bytes is looked at before its seal.
func (k *Key) open(b []byte, d *datagram) error {
	if len(b) != Size || b[0] != Version || kind(b[1]) != question && kind(b[1]) != answer {
		return errForm
	}
	if d.hashes == nil {
		for i := range k.secrets {
			d.hashes = append(d.hashes, hmac.New(sha256.New, k.secrets[i].mac))
		}
	}
	i := k.byID(b[2 : 2+keyIDSize])
	if i < 0 || !sealed(d.hashes[i], b) {
		return errForged
	}
	d.secret = &k.secrets[i]
	d.kind = kind(b[1])
	d.time = int64(binary.BigEndian.Uint64(b[2+keyIDSize:])) // #nosec G115 -- a bit pattern
	d.nonce = nonce(b[2+keyIDSize+8:])
	body := b[bodyOffset:macOffset]
	if d.kind == question {
		return d.question.read(body)
	}
	return d.answer.read(body)
}

func (q *Question) read(b []byte) error {
	q.Reason, q.ID, q.Hash = Reason(b[0]), binary.BigEndian.Uint16(b[1:]), binary.BigEndian.Uint64(b[3:])
	q.From = int64(binary.BigEndian.Uint64(b[11:])) // #nosec G115 -- a bit pattern
	q.To = int64(binary.BigEndian.Uint64(b[19:]))   // #nosec G115 -- a bit pattern
	b = b[27:]
	q.Server = readAddr(b)
	n := int(b[addrSize])
	b = b[addrSize+1:]
	if q.Reason == 0 || q.Reason >= afterReasons || n > maxTraces || q.To < q.From || q.From < 0 {
		return errForm
	}
	q.Traces = make([]link.TraceID, n)
	for i := range q.Traces {
		q.Traces[i] = link.TraceID(b[16*i:])
	}
	return nil
}

func (a *Answer) read(b []byte) error {
	a.Outcome, a.Facts = Outcome(b[0]), Facts(b[1])
	a.Since = int64(binary.BigEndian.Uint64(b[2:])) // #nosec G115 -- a bit pattern
	a.Lost = binary.BigEndian.Uint32(b[10:])
	b = b[14:]
	a.Beside = readAddr(b)
	n := int(b[addrSize])
	b = b[addrSize+1:]
	if a.Outcome == 0 || a.Outcome >= afterOutcomes || a.Facts > allFacts || n > maxNode {
		return errForm
	}
	a.Node = strings.ToValidUTF8(string(b[:n]), "?")
	return nil
}
