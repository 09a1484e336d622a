package lookup

import (
	"cmp"
	"math"
	"slices"
	"time"
	"unsafe"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/dnswire"
	"github.com/dnstrail/dnstrail/tracer/hop"
)

// Defaults of [Options].
const (
	DefaultGiveUp      = 5 * time.Second // glibc's and Go's timeout (resolv.conf(5))
	DefaultDropWait    = 300 * time.Millisecond
	DefaultLinger      = 100 * time.Millisecond
	DefaultKeepLost    = 10 * time.Second
	DefaultMaxInFlight = 1 << 17
	DefaultMaxBytes    = 96 << 20
)

// maxHops bounds the hops that one lookup keeps: a routing loop ends there.
const maxHops = 512

// Options say how long an [Assembler] waits, and for how many.
type Options struct {
	// GiveUp is how long after the last attempt a lookup without an answer counts as lost.
	GiveUp time.Duration
	// DropWait is how long after the kernel dropped a lookup's packet, and nothing more was seen of it, it is reported as
	// lost.
	DropWait time.Duration
	// Linger is how long after the answer reached the client further hops are waited for.
	Linger time.Duration
	// KeepLost is how long a lost lookup waits for a late answer.
	KeepLost time.Duration
	// MaxInFlight bounds the lookups held, MaxBytes the memory they take: see [Assembler.makeRoom].
	MaxInFlight int
	MaxBytes    int
	// Ports are the DNS ports: they tell a TCP connection's server from its client. None means 53.
	Ports []uint16
	// ReadsSeen says that reads of UDP sockets are seen: an answer that came to a client is waited for to be read.
	ReadsSeen bool
	// Emit gets each lookup when it has ended, and again when more becomes known. It is called by the goroutine that calls
	// the Assembler.
	Emit func(*Lookup)
	// Tell is how many unanswered lookups of one client are told a second in the long run, below 0 all; Untold, if
	// set, gets each of the others.
	Tell   int
	Untold func(*Lookup)
	// Losses gives the kernel events lost so far, and when they were counted, in ns since 1970; it may be nil. Where
	// events wait to be read, it has counted what was lost long after the one that is read now.
	Losses func() (n uint64, at int64)
}

func (o *Options) setDefaults() {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&o.GiveUp, DefaultGiveUp}, {&o.DropWait, DefaultDropWait}, {&o.Linger, DefaultLinger}, {&o.KeepLost,
		DefaultKeepLost}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if o.Tell == 0 {
		o.Tell = DefaultTell
	}
	if len(o.Ports) == 0 {
		o.Ports = []uint16{53}
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
}

// Stats are counts since the start.
type Stats struct {
	Lookups   uint64 // begun
	InFlight  int    // held now, ended ones that still wait for a late answer included
	Bytes     int    // of memory that those take
	Evicted   uint64 // emitted early because the memory for lookups was used up
	Untold    uint64 // unanswered, of clients that flood: counted and not told one by one
	Forgotten uint64 // let go before their wait for a late answer was over, for the same reason
	Orphans   uint64 // answers whose query was not seen
	Unmatched uint64 // reads that belong to no lookup in flight
	HopsCut   uint64 // hops beyond the most that one lookup keeps
	Fragments uint64 // later fragments of packets of no lookup in flight
	Stale     uint64 // drops and copies of what was reported long ago, or has come

	StreamsCut uint64 // TCP connections forgotten while they lasted: too many at once
	BytesCut   uint64 // bytes of TCP streams that went by without being captured
}

// Assembler puts hops together. It is for one goroutine.
type Assembler struct {
	o         Options
	now       int64
	table     table
	sockets   socketTable
	idle      idleSockets
	addresses map[uint32]*addresses // of clients, by network namespace
	questions map[uint64]*list      // by question, for upstream queries
	ages      list                  // held, oldest first
	owners    owners
	wheel     wheel
	free      []*entry
	freeSocks []*socket
	freeLists []*list // of questions
	servers   servers
	fragments map[packetID]*fragmented
	unplaced  int // lookups held that were dropped before their conntrack entry was in the table
	streams   streams
	askers    askers
	early     earlyErrors
	senders   senders
	reported  reported
	losses    losses
	entries   sightings
	serial    uint64
	stats     Stats
}

// entry is a lookup, and what the assembler must know of it besides.
type entry struct {
	Lookup
	serial uint64 // of its use: an entry that was let go is used again

	nodes  [2]node // in the table, by the client's end as first seen and as translated
	nnodes int
	dsts   [4]hop.Endpoint // where its queries were seen going: the server asked, and what that was translated to
	ndsts  int

	deadline int64
	slot     int // of the timer wheel, -1 if in none
	timer    links
	age      links
	open     links // in its socket's list
	owned    links // in its owner's list
	owner    *owner
	bytes    int // of memory, as its owner was charged for it
	question links
	working  links // in the list of what its server works on
	unread   pending
	socket   *socket // the client's end as first seen

	questionHash uint64
	name         uint64       // as reported knows it, of the client's end named
	named        hop.Endpoint // where that is known
	deliveredSKB uint64
	lossesBefore uint64
	lastQuery    int64      // time of the last attempt's first hop
	packets      []packetID // fragmented ones
	unplaced     bool       // it was dropped before its conntrack entry was in the table
	disordered   bool       // two CPUs' records came out of order
	cut          bool       // a later fragment of the last attempt's packets was dropped
	goodCame     bool       // an answer that ends a client's asking has come to it, whatever came first
	readLate     bool       // a server read it after it had been reported for good, under another trace ID maybe
	readSize     int        // of that read, 0 where it is not known
	readBlind    bool       // it read what was not seen coming, and no answer was seen anywhere
	readEarly    int64      // when the client read what was not seen coming yet, in ns since 1970; 0 where it did not
	waiting      bool       // it was reported as answered, and waits for the client's read
	askedAgain   int64      // when the client asked again with the answer unread, in ns since 1970; 0 where it did not
	first        bool       // the same socket asked another server the same with the same ID after it
	second       bool       // the same socket had asked another server the same with the same ID
	connecting   bool       // it stands for a TCP connection that is being opened
	soas         int        // of a zone transfer's answer, how many SOA records have come: the second ends it
	serving      *Upstream
	reportedAs   Ending
	reportedHops int
	askings      int // attempts as of the last report
	past         *past
}

// New makes an assembler.
func New(o Options) *Assembler {
	o.setDefaults()
	a := &Assembler{
		o:         o,
		addresses: make(map[uint32]*addresses),
		questions: make(map[uint64]*list),
		fragments: make(map[packetID]*fragmented),
	}
	return a
}

// Stats gives the counts.
func (a *Assembler) Stats() Stats {
	s := a.stats
	s.InFlight = a.ages.n
	s.Bytes = a.owners.bytes
	return s
}

// losses are the kernel events lost, as they were counted.
type losses struct {
	counts []lossCount // that differ, by time
	first  uint64      // before those that are kept
}

type lossCount struct {
	n  uint64
	at int64 // when it was counted, in ns since 1970: they were lost before
}

// maxLossCounts bounds the counts that are kept: those of the last 50 s, at the least.
const maxLossCounts = 2048

// lossKnown is how late it may be known that an event was lost, in ns: a lookup that begins within that time after a
// loss may have begun with the lost one.
const lossKnown = int64(100e6)

// lossesBefore gives the events lost before a lookup that begins at some time, in ns since 1970. What was lost since is
// counted of it, also where that was before its first event was read.
func (a *Assembler) lossesBefore(begin int64) uint64 {
	if a.o.Losses == nil {
		return 0
	}
	s := &a.losses
	n, at := a.o.Losses()
	last := s.first
	if len(s.counts) > 0 {
		last = s.counts[len(s.counts)-1].n
	}
	if n != last {
		if len(s.counts) == maxLossCounts {
			half := maxLossCounts / 2
			s.first = s.counts[half-1].n
			s.counts = append(s.counts[:0], s.counts[half:]...)
		}
		s.counts = append(s.counts, lossCount{n, at})
	}
	for _, c := range slices.Backward(s.counts) { // of the last second, mostly
		if c.at <= begin-lossKnown {
			return c.n
		}
	}
	return s.first
}

// Add takes one packet; it copies what it keeps.
func (a *Assembler) Add(p *hop.Packet) {
	if p.Time > a.now {
		a.now = p.Time
		if a.now >= a.wheel.next || len(a.streams.gaps) > 0 {
			a.Sweep(a.now)
		}
	}
	switch {
	case p.Kind == hop.Unsent:
		a.addUnsent(p)
	case p.Kind == hop.Sent:
		a.addSent(p)
	case p.Transport == uint8(link.TCP):
		a.addTCP(p)
	case p.Later:
		a.addFragment(p)
	case p.Kind == hop.Read:
		a.addRead(p)
	case p.Kind == hop.Unreachable:
		a.addUnreachable(p)
	case p.HasHead && p.Answer:
		a.addAnswer(p)
	case p.HasHead:
		a.addQuery(p)
	}
}

// addUnreachable takes an ICMP error about a query or an answer. What it quotes has the addresses as they were where it
// was refused.
func (a *Assembler) addUnreachable(p *hop.Packet) {
	end := p.Src
	if p.Answer {
		end = p.Dst
	}
	k := keyOf(end, p)
	var e *entry
	if p.Answer {
		e = a.findAnswer(k, p)
	} else {
		e = a.findQuery(k, p)
	}
	if e == nil {
		if !p.Answer {
			a.early.add(p, k)
		}
		return
	}
	p.Hop.Attempt = uint8(e.Attempts - 1)
	a.keep(e, &p.Hop)
	if e.AnswerSeen || p.Answer || e.Ending == Answered {
		return
	}
	e.Ending = Dropped
	a.schedule(e, p.Time+int64(a.o.DropWait))
}

// keep adds a hop. A dropped packet that has lost its device gets that of the same packet's last hop.
func (a *Assembler) keep(e *entry, h *hop.Hop) {
	if len(e.Hops) >= maxHops {
		a.stats.HopsCut++
		return
	}
	if h.Kind == hop.Drop && h.IfIndex == 0 {
		for i := len(e.Hops) - 1; i >= 0; i-- {
			if x := &e.Hops[i]; x.SKB == h.SKB && x.SKB != 0 && x.Kind != hop.Drop {
				h.IfIndex, h.Dev = x.IfIndex, x.Dev
				if h.NetNS == 0 {
					h.NetNS = x.NetNS
				}
				break
			}
		}
	}
	n := len(e.Hops)
	if n > 0 && h.Time < e.Hops[n-1].Time {
		e.disordered = true
	}
	if n < cap(e.Hops) {
		e.Hops = e.Hops[:n+1]
		e.Hops[n] = *h // copied once; append would copy it aside first
		return
	}
	e.Hops = append(e.Hops, *h)
	a.charge(e)
}

// Sweep emits what has ended by now, in ns since 1970. Call it when no packet comes, too.
func (a *Assembler) Sweep(now int64) {
	a.now = max(a.now, now)
	if len(a.streams.gaps) > 0 {
		a.sweepGaps(a.now)
	}
	a.wheel.advance(a.now, a.expire)
	a.sweepIdle(a.now)
}

// Flush emits everything that is still in flight as it stands: at the end of a run.
func (a *Assembler) Flush() {
	for len(a.streams.gaps) > 0 {
		h := a.streams.gaps[0]
		a.skipGap(h.c, h.s, h.toServer)
	}
	for a.ages.head != nil {
		a.finish(a.ages.head)
	}
	a.sweepIdle(math.MaxInt64)
}

// expire is called when a lookup's deadline has come.
func (a *Assembler) expire(e *entry) {
	if len(e.Hops) == 0 {
		a.release(e) // of its message, nothing has passed any place yet
		return
	}
	switch e.Ending {
	case Answered:
		if until := a.readUntil(e); a.now < until {
			// Its reader is slow; what is read before would be taken for another's.
			if !e.Final || e.reportedAs != e.Ending || e.askings != e.Attempts {
				a.report(e, true)
			}
			e.waiting = true
			a.schedule(e, until)
			return
		}
		if x := a.addresses[e.ClientNetNS]; e.waiting && !e.ReadByClient && x != nil {
			x.unread++
		}
		a.finish(e)
	case Dropped, Closed:
		until := e.lastQuery + int64(a.o.GiveUp)
		changed := e.reportedAs != e.Ending || e.askings != e.Attempts
		if !e.Final && (changed || a.now < until) {
			if changed && a.hush(e) {
				a.release(e)
				return
			}
			// The client may still ask again.
			if changed || e.reportedHops != len(e.Hops) {
				a.report(e, false)
			}
			a.schedule(e, max(until, a.now+1))
			return
		}
		a.giveUp(e)
	case InFlight:
		e.Ending, e.gaveUpAt = GaveUp, e.deadline
		a.giveUp(e)
	default:
		if e.readLate {
			a.giveUp(e)
			return
		}
		a.release(e)
	}
}

// giveUp reports a lost lookup for good, and keeps it for a late answer or a further attempt.
func (a *Assembler) giveUp(e *entry) {
	if e.Final && e.reportedAs == e.Ending && e.askings == e.Attempts && !e.readLate {
		a.release(e)
		return
	}
	if a.hush(e) {
		a.release(e)
		return
	}
	until := a.now + int64(a.o.KeepLost)
	if e.readLate {
		until = max(a.now+1, e.lastQuery+int64(a.o.GiveUp+a.o.KeepLost)) // no longer than without
	}
	a.report(e, true)
	a.schedule(e, until)
}

// finish reports a lookup that has ended, if it is not yet reported so, and lets it go.
func (a *Assembler) finish(e *entry) {
	if e.Connect && e.Ending == InFlight && !e.Final || len(e.Hops) == 0 {
		a.release(e) // nothing is known yet of a connection that is being opened, or of a message that is being taken
		return
	}
	if (!e.Final || e.reportedAs != e.Ending || e.askings != e.Attempts) && !a.hush(e) {
		a.report(e, true)
	}
	a.release(e)
}

// besideOther says whether the lookup has the trace ID of one at another server, which has its client span there, or
// will have: their sources were translated alike, or not at all.
func (a *Assembler) besideOther(e *entry) bool {
	if e.Exported {
		return e.Beside
	}
	k := key{e.Client, e.ID, uint8(e.Transport), e.questionHash}
	for x := a.table.get(&k); x != nil; x = x.next {
		if o := x.e; o.Server != e.Server && o.Translated == e.Translated && !o.Beside &&
			(o.Exported || o.serial < e.serial) {
			return true
		}
	}
	return a.reported.beside(e)
}

func (a *Assembler) report(e *entry, final bool) {
	if e.disordered {
		slices.SortStableFunc(e.Hops, func(x, y hop.Hop) int { return cmp.Compare(x.Time, y.Time) })
		e.disordered = false
	}
	e.seen.hops = len(e.Hops)
	e.seen.from, e.seen.to = windowOf(e.Hops, 0)
	first := !e.Final
	e.readLate = false
	e.FinalBefore = e.Final || e.Again
	e.Final = e.Final || final
	e.Counts = first && e.Final
	e.Confirms = e.reportedHops > 0 && (e.reportedAs == Dropped || e.reportedAs == Closed) &&
		(e.Ending == e.reportedAs || e.Ending == GaveUp) && len(e.Hops) == e.reportedHops && e.askings == e.Attempts
	if a.o.Losses != nil {
		lost, _ := a.o.Losses()
		e.EventsLost = lost - e.lossesBefore
	}
	e.Beside = (e.first || e.second) && a.besideOther(e)
	e.ReadBeside = e.unread.socket != nil && e.unread.socket.served > e.unread.since
	e.GivenUp = e.Ending == Dropped && e.AnswerSeen && a.gaveUpForTCP(e)
	a.o.Emit(&e.Lookup)
	if e.Final {
		e.finalHops = len(e.Hops)
	}
	e.reportedAs, e.reportedHops, e.askings = e.Ending, len(e.Hops), e.Attempts
	e.Revision++
	if e.FirstEpoch == 0 && !e.Connect && e.Unsent == nil {
		var buf [maxCopies]link.Epoch
		e.FirstEpoch = e.Epochs(buf[:0], 0)[0]
	}
	if e.Final {
		a.owners.settle(e)
	}
}

func (a *Assembler) release(e *entry) {
	if e.Revision > 0 && !e.Connect && e.Unsent == nil {
		a.reported.add(e, a.now)
	}
	if e.past != nil {
		e.remember()
		e.identify()
		e.past.lookup = nil
		a.askers.giveBack(e.past)
	}
	e.serial = 0
	a.wheel.remove(e)
	a.ages.remove(&e.age)
	a.unindex(e)
	a.unindexQuestion(e)
	a.leave(&e.unread)
	a.stopsWork(e)
	a.forgetFragments(e)
	if e.unplaced {
		a.unplaced--
	}
	a.leaveSocket(e)
	a.owners.remove(e)
	if len(a.free) < maxFree && cap(e.Hops) <= roomyHops {
		a.free = append(a.free, e)
	}
}

// What is kept for the next lookups: no more than a busy moment needs, and nothing that grew large.
const (
	maxFree     = 1024
	roomyHops   = 64
	commonHops  = 8
	bytesOfHop  = int(unsafe.Sizeof(hop.Hop{}))
	bytesOfBare = int(unsafe.Sizeof(entry{})) + 512 // with its name, answers and places in tables, roughly
)

func (a *Assembler) alloc() *entry {
	var e *entry
	if n := len(a.free); n > 0 {
		e = a.free[n-1]
		a.free = a.free[:n-1]
		*e = entry{
			Lookup:  Lookup{Hops: e.Hops[:0], Name: e.Name[:0], Related: e.Related[:0], Fragments: e.Fragments[:0]},
			packets: e.packets[:0],
		}
	} else {
		e = &entry{Lookup: Lookup{Hops: make([]hop.Hop, 0, commonHops)}}
	}
	a.serial++
	e.serial = a.serial
	e.slot = -1
	for _, l := range []*links{&e.age, &e.timer, &e.question, &e.open, &e.owned, &e.working, &e.unread.links} {
		l.e = e
	}
	return e
}

func (a *Assembler) schedule(e *entry, deadline int64) {
	e.deadline = deadline
	a.wheel.put(e, a.now)
}

// deliver notes that the answer has come where it was going.
func (e *entry) deliver() {
	e.Delivered = true
	if e.reportedHops > 0 && (e.reportedAs == Dropped || e.reportedAs == GaveUp || e.reportedAs == Closed) &&
		e.askings == e.Attempts {
		e.Late = e.Final || e.reportedAs == GaveUp
	}
	e.Ending = Answered
}

// reopen makes an answered lookup wait for the answer to a further attempt. What was known of the first answer is
// overwritten by the next.
func (e *entry) reopen() {
	e.Ending = InFlight
	e.AnswerSeen, e.Delivered, e.ReadByClient, e.ReadUnseen, e.ReadInferred = false, false, false, false, false
	e.ReadAmong = false
	e.readEarly, e.readBlind, e.waiting, e.askedAgain = 0, false, false, 0
	e.Body, e.Flags = dnswire.Body{}, 0
}

func (e *entry) done() bool { return e.Ending == Answered }
