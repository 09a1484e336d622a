// Package lookup puts hops together to lookups: one question of one client, its attempts, and its answer.
//
// The [Assembler] is the only state that the tracer keeps of lookups in flight. It is bounded, and what leaves it
// leaves by being emitted: an unanswered lookup is never forgotten silently.
package lookup

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/names"
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
	// Evicted: the tracer's memory for lookups was used up, and this one was the first to go.
	Evicted
	// Closed: the TCP connection ended before the answer came. See [Lookup.Close].
	Closed
)

// String gives the ending in a word.
func (e Ending) String() string {
	return [...]string{"in-flight", "answered", "dropped", "gave-up", "evicted", "closed"}[e]
}

// Lookup is one question and all that was seen of it. Who gets one from [Options.Emit] may not keep it, or anything of
// it, after that call.
type Lookup struct {
	Transport link.Transport
	ID        uint16
	// Name is the question's name in wire form, as the client sent it.
	Name        []byte
	Type, Class uint16

	// Client is the client's end as first seen, Server the end it asked.
	Client, Server hop.Endpoint
	// Translated is the client's end as last seen on the way to the server: other than Client where a source translation
	// was seen.
	Translated hop.Endpoint
	// Proxied is the client for whom a load balancer asks, as its header before the query says: to the server that is
	// who asks. It is zero where there is no such header.
	Proxied hop.Endpoint

	// Hops are all hops, in order of time once the lookup is emitted.
	Hops []hop.Hop
	// Fragments are the later fragments of its packets that were seen on their way, in no order; those that were dropped
	// are among Hops.
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
	// AnswerSeen says that an answer was seen anywhere; Flags, Body and AnswerSize are its own, AnsweredBy its source
	// where first seen and AnswerSource where last seen.
	AnswerSeen   bool
	Flags        dnswire.Flags
	Body         dnswire.Body
	AnswerSize   int
	QuerySize    int
	AnsweredBy   hop.Endpoint
	AnswerSource hop.Endpoint
	// Delivered says that the answer reached the client's network namespace; ReadByClient, that the client read it.
	Delivered, ReadByClient bool
	// ReadUnseen says that what the client read was not seen coming to it; ReadInferred, that it may have been another
	// packet than the answer.
	ReadUnseen, ReadInferred bool
	// ReadAmong says that other answers that had come to its socket waited to be read, too.
	ReadAmong bool
	// Behind says that the answer came over TCP while bytes sent before it had not come: its reader gets it behind those.
	Behind bool
	// AheadAt is the network namespace, 0 for none, to which the query came over TCP while bytes sent before it had not
	// come: no reader there gets it until they do.
	AheadAt uint32
	// Late says that the answer came after the lookup had been reported as lost.
	Late bool

	// Opcode is the kind of query: 0 for a standard one (RFC 1035, section 4.1.1). Questions is how many questions
	// its header states. Malformed says that the question could not be read: then Name is empty.
	Opcode    uint8
	Questions uint16
	Malformed bool

	// Mismatch is an answer that came to the client's socket while it waited, and was no answer to its question.
	Mismatch *Mismatch
	// Close is how the TCP connection ended before the answer came; nil where it did not.
	Close *Close
	// Messages counts the messages of the answer: more than one in a zone transfer (RFC 5936).
	Messages int
	// EntryOlder says that the conntrack entry which translated the query is older than the lookup: it was made for an
	// earlier packet of the same port.
	EntryOlder bool
	// Holder is who holds the translated source port that the dropped query was to get; nil where none was seen.
	Holder *Holder
	// Unsent is what failed before there was a packet; nil where there was one. What was to be asked is not known then:
	// there is neither name nor ID.
	Unsent *Unsent
	// Sent is when the client's send returned to it although the packet had not left yet, in ns since 1970; 0 where
	// the packet left within the call.
	Sent int64

	// GivenUp says that the client had closed its socket, to ask over TCP, because another answer to it was truncated.
	GivenUp bool

	// Paired says that another question was on its way from the same port at the same time: the A and AAAA of one
	// getaddrinfo.
	Paired bool

	// Clash is the other query whose conntrack entry stood in the way of this one's when the kernel dropped it; nil where
	// none was seen.
	Clash *Clash

	// Related are earlier lookups of the same process that this one belongs to; Group names all of them by the first one's
	// trace ID, zero where nothing is known of the process. SearchStep counts the names of the search path that went
	// before, AttemptOfGroup this lookup among those that asked the same again from another port.
	Related        []Relation
	Group          link.TraceID
	SearchStep     int
	AttemptOfGroup int

	// Connect says that this is a TCP connection to a DNS port on which no query was sent: its hops are those of the
	// handshake. There is no DNS ID. Name and Type are those of the truncated answer that Related names, where the
	// connection was opened after one; else the name is empty.
	Connect bool

	// Own says that a DNS server asked for itself: a query of its own to its upstream. Serves is nil where it could
	// not be told for which lookup, or where it was for none (a health check).
	Own bool
	// Serves is the lookup that this one was made to answer, where it could be found: a DNS server's own upstream query.
	Serves *Served
	// Upstreams are the queries that the server made to answer this one, as far as they could be told.
	Upstreams []*Upstream

	// Names says how names are shown; nil shows all. Name and Body.Answers are whole: what is shown goes through
	// Question, Show and Answers.
	Names *names.Policy

	// Flood is what the client left unanswered a moment ago, where that is more than is told one by one; nil where not.
	Flood *Flood

	// Revision counts earlier reports of this lookup: 0 on the first.
	Revision int
	// FirstEpoch is that of the trace ID which the first report had; 0 until there was one. A server that reads the query
	// late derives another.
	FirstEpoch link.Epoch
	// Final says that no further report is expected; a late answer can still cause one.
	Final bool
	// FinalBefore says that an earlier report was final: this one corrects or continues it.
	FinalBefore bool
	// Again says that the lookup had been reported as answered when the same socket asked the same again, with the same
	// ID, within the epoch: it is one lookup under one trace ID, and this report is of what followed.
	Again bool
	// AskedBefore says that the same socket was seen asking the same with the same ID some seconds before.
	AskedBefore bool
	// AnsweredBefore says that an answer to that came to the client, and that its read was not seen: what is asked now
	// may be a further try of a slow reader.
	AnsweredBefore bool
	// Owed counts the queries of those askings that were neither seen answered nor dropped: an answer that is seen may be
	// to one of them.
	Owed int
	// Beside says that the same socket asked another server the same with the same ID before, its source translated alike:
	// both servers derive one trace ID, whose client span is that of the first.
	Beside bool
	// Counts says that this is the first final report of an asking: metrics count it.
	Counts bool
	// Exported says that the lookup's client span has been sent. Who exports it sets it; a later report of the lookup
	// has it, too.
	Exported bool
	// AttemptsBefore counts the attempts that earlier reports told of, where Again is set; their hops are not here.
	AttemptsBefore int
	// Confirms says that this report only repeats the last one, now for good.
	Confirms bool
	// AnswerUnseen: bytes that the server sent on the lookup's TCP connection went by unseen while no answer had come: it
	// may be among them.
	AnswerUnseen bool
	// ReadBeside says that a server read another query of the client's port after this one had come to it and was not
	// read: it may have been this one that was read.
	ReadBeside bool
	// EventsLost counts kernel events that were lost while the lookup was in flight: hops may be missing.
	EventsLost uint64

	gaveUpAt  int64  // when it was given up, in ns since 1970; 0 where it was not
	finalHops int    // how many hops it had when it was first reported for good
	seen      window // of its first attempt, as of the last report
	told      epochs // those of earlier reports, where AskedBefore is set
}

// epochs is a range of epochs, both ends included; none where last is 0. Those up to floor are another lookup's, that
// asked the same before.
type epochs struct{ first, last, floor link.Epoch }

// Unsent is a connection or a send that failed before there was a packet.
type Unsent struct {
	// Unbound says that a UDP socket had got no local port: it gets one before its route is looked up.
	Unbound bool
	Error   int  // errno; 0 where it was not seen
	Connect bool // connect(2) failed; else a send
	// Route says whether there is a way to the server, HadPort that it was not a local port that the socket lacked: what
	// is known where the errno was not seen.
	Route   hop.Route
	HadPort bool
}

// Mismatch is an answer to another question, or with another ID.
type Mismatch struct {
	Source hop.Endpoint
	ID     uint16
	Name   []byte // wire form; empty where the answer had no question
	Type   uint16
	Class  uint16
	// Arrived says that it came to the client's network namespace, Read that the client read it.
	Arrived, Read bool
	Time          int64 // ns since 1970, of its first sight
	skb           uint64
	unread        bool // the last such packet was not seen read
	size          int
}

// Close is the end of a TCP connection.
type Close struct {
	Reset    bool // RST; else FIN
	ByServer bool
	Time     int64 // ns since 1970
	NetNS    uint32
	Process  *hop.Process // who closed it, nil where that was not seen
}

// Holder is a flow that has the translated source which another one was to get.
type Holder struct {
	Client hop.Endpoint // whose entry it is, before translation
	Source hop.Endpoint // the translated source
}

// Clash is a query of the same socket whose conntrack entry asks the same or expects the same answer packets as that of
// a query which the kernel dropped: only one of the two can be in the table.
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
	// Connected says that the TCP connection for it came about; Mismatch, that what came was no answer to its question.
	Connected, Mismatch bool
	// Unsent says why there was no packet of it; nil where there was one.
	Unsent *Unsent
}

// Start gives when the client sent the query first, in ns since 1970: the time of the first hop, or an earlier send
// that returned before the packet left.
func (l *Lookup) Start() int64 {
	if l.Sent != 0 && l.Sent < l.Hops[0].Time {
		return l.Sent
	}
	return l.Hops[0].Time
}

// End gives the time of the last hop, or of giving up.
func (l *Lookup) End() int64 {
	if l.Ending == GaveUp && l.gaveUpAt > l.Hops[len(l.Hops)-1].Time {
		return l.gaveUpAt
	}
	return l.Hops[len(l.Hops)-1].Time
}

// Question gives the name in presentation form, as it may be shown.
func (l *Lookup) Question() string { return l.Show(l.Name) }

// HasQuestion says whether it is known what was asked: not of what never was a packet, nor of a connection without a
// query or a message without a question that can be read.
func (l *Lookup) HasQuestion() bool { return len(l.Name) > 0 }

// Show gives a name in wire form in presentation form, as it may be shown.
func (l *Lookup) Show(name []byte) string {
	shown, _ := l.Names.Show(dnswire.NameString(name))
	return shown
}

// Answers gives the answers as far as they may be shown. What it gives is the lookup's own.
func (l *Lookup) Answers() []string {
	if !l.Names.Hides() {
		return l.Body.Answers
	}
	return l.Names.ShowAnswers(dnswire.NameString(l.Name), l.Body.Answers)
}

// Key gives what the trace ID is derived from.
func (l *Lookup) Key() link.Key {
	if l.Unsent != nil && len(l.Name) == 0 {
		// No server derives an ID of it: that of its time is its own.
		at := binary.BigEndian.AppendUint64(nil, uint64(l.Hops[0].Time))
		return link.Key{Transport: l.Transport, Client: l.Translated.AddrPort(), QName: at}
	}
	client := l.Translated
	if !l.Proxied.IsZero() {
		client = l.Proxied
	}
	return link.Key{
		Transport: l.Transport, Client: client.AddrPort(), ID: l.ID, QName: l.Name, QType: l.Type, QClass: l.Class,
	}
}

// handlerStart bounds how long after a DNS server has read a query its handler starts.
const handlerStart = 100 * time.Millisecond

// Epochs gives the epochs in which the server may have derived the trace ID, the primary one first: the epoch of the
// first attempt's arrival. The server does so when its handler starts: after the last hop of the query and before the
// first of the answer; where its read was seen, soon after that. Clocks differ by guard at most. The result is appended
// to dst.
func (l *Lookup) Epochs(dst []link.Epoch, guard time.Duration) []link.Epoch {
	return l.epochs(dst, guard, l.Hops)
}

// EpochsBefore is [Lookup.Epochs] as of the report that is corrected by this one, where FinalBefore is set: a server
// that reads the query late derives another epoch than could be known then.
func (l *Lookup) EpochsBefore(dst []link.Epoch, guard time.Duration) []link.Epoch {
	if l.Again && l.finalHops == 0 {
		for e := l.told.first; e <= l.told.last; e++ {
			dst = append(dst, e)
		}
		return dst
	}
	return l.epochs(dst, guard, l.Hops[:min(l.finalHops, len(l.Hops))])
}

// News gives the hops that came after the report that was final, where FinalBefore is set; all where it is not. Where
// Again is set, AttemptsBefore are not among them.
func (l *Lookup) News() []hop.Hop {
	if !l.FinalBefore {
		return l.Hops
	}
	return l.Hops[min(l.finalHops, len(l.Hops)):]
}

// AskedSince says whether the client sent the query again after the report that was final.
func (l *Lookup) AskedSince() bool {
	if l.Again && l.finalHops == 0 {
		return true
	}
	last := uint8(0)
	for i := range l.Hops[:min(l.finalHops, len(l.Hops))] {
		last = max(last, l.Hops[i].Attempt)
	}
	return l.FinalBefore && slices.ContainsFunc(l.News(), func(h hop.Hop) bool { return h.Attempt > last })
}

func (l *Lookup) epochs(dst []link.Epoch, guard time.Duration, hops []hop.Hop) []link.Epoch {
	n := len(dst)
	for attempt := range l.Attempts {
		from, to := l.seen.from, l.seen.to
		if attempt > 0 || l.seen.hops != len(hops) {
			from, to = windowOf(hops, uint8(attempt))
		}
		if from == 0 {
			continue
		}
		first, last := link.Epochs(time.Unix(0, from), time.Unix(0, to), guard)
		if len(dst) == n {
			dst = append(dst, link.EpochOfNanos(from))
		}
		for e := first; e <= last && len(dst)-n < maxCopies; e++ {
			if !slices.Contains(dst[n:], e) && e > l.told.floor {
				dst = append(dst, e)
			}
		}
	}
	if len(dst) == n { // it was dropped before anything else was seen of it
		dst = append(dst, link.EpochOfNanos(l.Hops[0].Time))
	}
	return dst
}

// maxCopies bounds the trace IDs of one lookup, the primary included.
const maxCopies = 4

// window is what windowOf gives of a lookup's first attempt and of so many hops; of none where that is 0.
type window struct {
	hops     int
	from, to int64
}

// windowOf gives the time between which the server's handler started for an attempt; 0, 0 if nothing of its query was
// seen.
func windowOf(hops []hop.Hop, attempt uint8) (from, to int64) {
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
