// Package lookup puts hops together to lookups: one question of one client, its attempts, and its answer.
//
// The [Assembler] is the only state that the tracer keeps of lookups in flight. It is bounded, and what leaves it leaves by being emitted:
// an unanswered lookup is never forgotten silently.
package lookup

import (
	"slices"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// Ending says how far a lookup has come.
type Ending uint8

// The endings.
const (
	// InFlight: no more is known yet.
	InFlight Ending = iota
	// Answered: an answer came to the client; where the client is out of sight, it left towards it.
	Answered
	// Dropped: the last that was seen of it is that the kernel dropped its packet. The client may still try again.
	Dropped
	// GaveUp: no answer within the time that a client waits.
	GaveUp
	// Evicted: the table of lookups in flight was full, and this was the oldest.
	Evicted
)

// String gives the ending in a word.
func (e Ending) String() string {
	return [...]string{"in-flight", "answered", "dropped", "gave-up", "evicted"}[e]
}

// Lookup is one question and all that was seen of it. Who gets one from [Options.Emit] may not keep it, or anything of it, after that call.
type Lookup struct {
	Transport link.Transport
	ID        uint16
	// Name is the question's name in wire form, as the client sent it.
	Name        []byte
	Type, Class uint16

	// Client is the client's end as first seen, Server the end it asked.
	Client, Server hop.Endpoint
	// Translated is the client's end as last seen on the way to the server: other than Client where a source translation was seen.
	Translated hop.Endpoint

	// Hops are all hops, in order of time once the lookup is emitted.
	Hops []hop.Hop
	// Fragments are the later fragments of its packets that were seen on their way, in no order; those that were dropped are among Hops.
	Fragments []hop.Hop
	// Attempts counts how often the client sent the query.
	Attempts int

	// Process is who asked, and ClientNetNS where; nil and 0 where the packet was not seen being sent.
	Process     *hop.Process
	ClientNetNS uint32
	// ServerProcess is who answered or at least read the query, and ServerNetNS where.
	ServerProcess *hop.Process
	ServerNetNS   uint32

	Ending Ending
	// AnswerSeen says that an answer was seen anywhere; Flags, Body and AnswerSize are its own, AnsweredBy its source where first seen and
	// AnswerSource where last seen.
	AnswerSeen   bool
	Flags        dnswire.Flags
	Body         dnswire.Body
	AnswerSize   int
	QuerySize    int
	AnsweredBy   hop.Endpoint
	AnswerSource hop.Endpoint
	// Delivered says that the answer reached the client's network namespace; ReadByClient, that the client read it.
	Delivered, ReadByClient bool
	// Late says that the answer came after the lookup had been reported as lost.
	Late bool

	// Paired says that another question was on its way from the same port at the same time: the A and AAAA of one getaddrinfo.
	Paired bool

	// Clash is the other query whose conntrack entry stood in the way of this one's when the kernel dropped it; nil where none was seen.
	Clash *Clash

	// Related are earlier lookups of the same process that this one belongs to; Group names all of them by the first one's trace ID, zero where nothing is known
	// of the process. SearchStep counts the names of the search path that went before, AttemptOfGroup this lookup among those that asked the same again from another port.
	Related        []Relation
	Group          link.TraceID
	SearchStep     int
	AttemptOfGroup int

	// Handshake is not 0 where this is a TCP connection that was opened after a truncated answer and on which no query was sent: its hops are those of the handshake,
	// Related names the lookup it was for, and there is no DNS ID.
	Handshake uint64

	// Serves is the lookup that this one was made to answer, where it could be found: a DNS server's own upstream query.
	Serves *Served
	// Upstreams are the queries that the server made to answer this one, as far as they could be told.
	Upstreams []*Upstream

	// Revision counts earlier reports of this lookup: 0 on the first.
	Revision int
	// Final says that no further report is expected; a late answer can still cause one.
	Final bool
	// FinalBefore says that an earlier report was final: this one corrects it.
	FinalBefore bool
	// Confirms says that this report only repeats the last one, now for good.
	Confirms bool
	// EventsLost counts kernel events that were lost while the lookup was in flight: hops may be missing.
	EventsLost uint64

	deliveredSKB uint64
	lossesBefore uint64
	lastQuery    int64 // time of the last attempt's first hop
	deadline     int64
	slot         int // of the timer wheel, -1 if in none
	timer        links
	age          links
	chain        *Lookup // next with the same endpoint and ID
	keys         [2]key
	nkeys        int
	questionHash uint64
	question     links
	unread       pending    // in the queue of a server's reads
	undelivered  pending    // in the queue of the client's reads
	packets      []packetID // fragmented ones
	unplaced     bool       // it was dropped before its conntrack entry was in the table
	cut          bool       // a later fragment of the last attempt's packets was dropped
	serving      *Upstream
	reported     Ending
	reportedHops int
	finalHops    int // when it was first reported for good
	past         *past
}

// Clash is a query of the same socket whose conntrack entry asks the same or expects the same answer packets as that of a query which the kernel dropped: only one of
// the two can be in the table.
type Clash struct {
	Conntrack hop.Conntrack
	Type      uint16
	// Gap is how long before the dropped query the other was sent, in ns; negative: after it.
	Gap int64
}

// Served names the lookup that an upstream query serves.
type Served struct {
	TraceID link.TraceID
	SpanID  link.SpanID
	Client  hop.Endpoint
}

// Upstream is a query that a server made to answer a lookup.
type Upstream struct {
	Server   hop.Endpoint
	Start    int64 // ns since 1970
	End      int64 // 0 while unanswered
	Answered bool
	Rcode    uint16
	Dropped  hop.Reason // why the kernel dropped it, 0 if it did not
}

// Start gives the time of the first hop, in ns since 1970.
func (l *Lookup) Start() int64 { return l.Hops[0].Time }

// End gives the time of the last hop, or of giving up.
func (l *Lookup) End() int64 {
	if l.Ending == GaveUp && l.deadline > l.Hops[len(l.Hops)-1].Time {
		return l.deadline
	}
	return l.Hops[len(l.Hops)-1].Time
}

// Question gives the name in presentation form.
func (l *Lookup) Question() string { return dnswire.NameString(l.Name) }

// Key gives what the trace ID is derived from.
func (l *Lookup) Key() link.Key {
	return link.Key{Transport: l.Transport, Client: l.Translated.AddrPort(), ID: l.ID, QName: l.Name, QType: l.Type, QClass: l.Class}
}

// handlerStart bounds how long after a DNS server has read a query its handler starts.
const handlerStart = 100 * time.Millisecond

// Epochs gives the epochs in which the server may have derived the trace ID, the primary one first: the epoch of the first attempt's arrival. The server does so when
// its handler starts: after the last hop of the query and before the first of the answer; where its read was seen, soon after that. Clocks
// differ by guard at most. The result is appended to dst.
func (l *Lookup) Epochs(dst []link.Epoch, guard time.Duration) []link.Epoch {
	return l.epochs(dst, guard, l.Hops)
}

// EpochsBefore is [Lookup.Epochs] as of the report that is corrected by this one, where FinalBefore is set: a server that reads the query late derives another epoch than could
// be known then.
func (l *Lookup) EpochsBefore(dst []link.Epoch, guard time.Duration) []link.Epoch {
	return l.epochs(dst, guard, l.Hops[:min(l.finalHops, len(l.Hops))])
}

func (l *Lookup) epochs(dst []link.Epoch, guard time.Duration, hops []hop.Hop) []link.Epoch {
	n := len(dst)
	for attempt := range l.Attempts {
		from, to := window(hops, uint8(attempt))
		if from == 0 {
			continue
		}
		first, last := link.Epochs(time.Unix(0, from), time.Unix(0, to), guard)
		if len(dst) == n {
			dst = append(dst, link.EpochOfNanos(from))
		}
		for e := first; e <= last && len(dst)-n < maxCopies; e++ {
			if !slices.Contains(dst[n:], e) {
				dst = append(dst, e)
			}
		}
	}
	if len(dst) == n { // it was dropped before anything else was seen of it
		dst = append(dst, link.EpochOfNanos(l.Start()))
	}
	return dst
}

// maxCopies bounds the trace IDs of one lookup, the primary included.
const maxCopies = 4

// window gives the time between which the server's handler started for an attempt; 0, 0 if nothing of its query was seen.
func window(hops []hop.Hop, attempt uint8) (from, to int64) {
	read := false
	for i := range hops {
		h := &hops[i]
		switch {
		case h.Attempt != attempt && !h.Answer, h.Kind == hop.Drop, h.Kind == hop.Unreachable:
		case h.Answer && from != 0 && h.Time >= from && to == 0:
			to = h.Time
		case !h.Answer && to == 0:
			from, read = h.Time, h.Kind == hop.Read
		}
	}
	switch {
	case read && (to == 0 || to > from+int64(handlerStart)):
		to = from + int64(handlerStart)
	case to == 0:
		to = from
	}
	return from, to
}

// Forget drops what ties a copy of a lookup to its assembler, so that it can be kept.
func (l *Lookup) Forget() {
	l.timer, l.age, l.question, l.unread, l.undelivered = links{}, links{}, links{}, pending{}, pending{}
	l.chain, l.serving, l.past, l.Upstreams, l.Fragments, l.packets = nil, nil, nil, nil, nil, nil
}
