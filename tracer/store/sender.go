package store

import (
	"container/list"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// sender is who sends spans, and the traces that began with one of them.
type sender struct {
	key            string
	bytes          int64
	plain, telling *list.List // of *entry: oldest in front
}

// maxSenders is how many senders are told apart; those beyond share one.
const maxSenders = 1024

// maxParts is how many of them may send spans of one trace.
const maxParts = 64

// otherSenders is the key of those beyond.
const otherSenders = "~other"

// senderKey gives what one sender is known by: its credential, else its address; of IPv6 a /64, which is the least that
// a network gives to one machine.
func senderKey(c access.Caller) string {
	switch {
	case c.Name != "":
		return c.Name
	case !c.Address.IsValid():
		return ""
	case c.Address.Is6():
		return netip.PrefixFrom(c.Address, 64).Masked().String()
	}
	return c.Address.String()
}

// sender gives the sender with that key. The caller holds s.mu.
func (s *Store) sender(key string) *sender {
	if s.senders[key] == nil && len(s.senders) >= maxSenders {
		key = otherSenders
	}
	from := s.senders[key]
	if from == nil {
		from = &sender{key: key, plain: list.New(), telling: list.New()}
		s.senders[key] = from
	}
	return from
}

// list gives the list that a trace is in.
func (f *sender) list(telling bool) *list.List {
	if telling {
		return f.telling
	}
	return f.plain
}

// forget takes a sender out of which nothing is kept.
func (s *Store) forget(from *sender) {
	if from.plain.Len()+from.telling.Len() == 0 && s.senders[from.key] == from {
		delete(s.senders, from.key)
	}
}

// leastTelling gives the trace to let go: of the sender that takes the most, the oldest of a lookup that went well, or
// the oldest of the others where there are more than three times as many. The caller holds s.mu, and there is a trace.
func (s *Store) leastTelling() *entry {
	var most *sender
	for _, from := range s.senders {
		if from.plain.Len()+from.telling.Len() > 0 && (most == nil || from.bytes > most.bytes) {
			most = from
		}
	}
	from := most.plain
	if most.telling.Len() > 3*from.Len() {
		from = most.telling
	}
	return from.Front().Value.(*entry)
}

// tells tells whether a span makes its trace one that somebody will ask for: an error, or a verdict other than an
// answer.
func tells(sp *trace.Span) bool {
	where := sp.Attributes.String(semconv.VerdictWhere)
	return sp.Status == trace.StatusError || where != "" && where != trace.Answered
}

// charge adds bytes to the account of a sender and the store.
func (s *Store) charge(from *sender, bytes int64) {
	from.bytes += bytes
	s.stats.Bytes += bytes
}

// signed gives the spans that c may send, with who it is in their resources. The resources must be nobody else's.
func signed(spans []*trace.Span, c access.Caller, now time.Time) []*trace.Span {
	done := map[*trace.Resource]bool{} // whether c may speak for it
	return slices.DeleteFunc(spans, func(sp *trace.Span) bool {
		r := sp.Resource
		may, ok := done[r]
		if ok {
			return !may
		}
		a := r.Attributes
		may = c.MaySpeakFor(a.String(semconv.K8SNodeName), a.String(semconv.K8SNamespaceName), a.String(semconv.K8SPodName))
		done[r] = may
		r.Attributes = slices.DeleteFunc(a, func(kv trace.Attribute) bool {
			return kv.Key == semconv.SenderAddress || kv.Key == semconv.SenderName || kv.Key == semconv.SenderTime
		})
		add := func(key string, value any) {
			r.Attributes = append(r.Attributes, trace.Attribute{Key: key, Value: value})
		}
		if c.Address.IsValid() {
			add(semconv.SenderAddress, c.Address.String())
		}
		if c.Name != "" {
			add(semconv.SenderName, c.Name)
		}
		add(semconv.SenderTime, now.UnixNano())
		return !may
	})
}

// What things take in memory, in bytes, beside the text that they hold.
const (
	entryBytes     = int64(unsafe.Sizeof(entry{})+unsafe.Sizeof(list.Element{})) + 64 // and in the map of traces
	partBytes      = int64(unsafe.Sizeof(part{}) + unsafe.Sizeof(list.Element{}))
	spanBytes      = int64(unsafe.Sizeof(trace.Span{})) + 48 // and in the list and the hashes of its trace
	heldBytes      = int64(unsafe.Sizeof(held{})+unsafe.Sizeof(trace.Scope{})) + 64
	attributeBytes = int64(unsafe.Sizeof(trace.Attribute{})) + 16
	valueBytes     = 32
)

// held is a resource or scope, which several spans share: how many do, and who is charged with it.
type held struct {
	spans int
	bytes int64
	from  *sender
}

// sizeOf gives what a span takes in memory, without its resource and scope.
func sizeOf(sp *trace.Span) int64 {
	n := spanBytes + text(sp.Name) + text(sp.TraceState) + text(sp.Message) + attributes(sp.Attributes)
	for _, l := range sp.Links {
		n += int64(unsafe.Sizeof(l)) + text(l.TraceState) + attributes(l.Attributes)
	}
	for _, e := range sp.Events {
		n += int64(unsafe.Sizeof(e)) + text(e.Name) + attributes(e.Attributes)
	}
	return n
}

// hold charges from with what a span shares with others, if it is the first of them. The caller holds s.mu.
func (s *Store) hold(sp *trace.Span, from *sender) {
	share := func(p any, bytes func() int64) {
		h := s.shared[p]
		if h == nil {
			h = &held{bytes: bytes() + heldBytes, from: from}
			s.shared[p] = h
			s.charge(from, h.bytes)
		}
		h.spans++
	}
	if r := sp.Resource; r != nil {
		share(r, func() int64 { return text(r.SchemaURL) + attributes(r.Attributes) })
	}
	if c := sp.Scope; c != nil {
		share(c, func() int64 { return text(c.Name) + text(c.Version) + text(c.SchemaURL) + attributes(c.Attributes) })
	}
}

// release takes back what [Store.hold] did. The caller holds s.mu.
func (s *Store) release(sp *trace.Span) {
	drop := func(p any) {
		h := s.shared[p]
		if h.spans--; h.spans == 0 {
			s.charge(h.from, -h.bytes)
			delete(s.shared, p)
		}
	}
	if sp.Resource != nil {
		drop(sp.Resource)
	}
	if sp.Scope != nil {
		drop(sp.Scope)
	}
}

func text(s string) int64 { return int64(len(s)) }

func attributes(a trace.Attributes) (n int64) {
	for _, kv := range a {
		n += attributeBytes + text(kv.Key) + value(kv.Value)
	}
	return n
}

func value(v any) (n int64) {
	switch v := v.(type) {
	case string:
		return text(v)
	case []byte:
		return int64(len(v))
	case []any:
		n = valueBytes
		for _, e := range v {
			n += valueBytes + value(e)
		}
	case map[string]any:
		n = int64(64 + 36*max(8, 2*len(v))) // its slots, of which up to half are free
		for k, e := range v {
			n += text(k) + value(e)
		}
	}
	return n
}
