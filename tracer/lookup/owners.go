package lookup

import "github.com/dnstrail/dnstrail/tracer/hop"

// The memory for lookups is bounded, and shared fairly: who asks most gives up first. An owner is who is answerable for
// lookups: the client's network namespace, or its address where that is out of sight.

// ownerID is a client's network namespace; its address where the namespace is not known.
type ownerID struct {
	netns uint32
	addr  [16]byte
}

type owner struct {
	id      ownerID
	waiting list // lookups not reported for good, oldest first
	settled list // lookups that wait for a late answer alone
	bytes   int
	tally
}

type owners struct {
	by      map[ownerID]*owner
	bytes   int
	largest *owner
	looked  int // evictions since the largest was looked for
	spare   *owner
}

// relook is how many lookups are let go before the largest owner is looked for again.
const relook = 64

func ownerOf(e *entry) ownerID {
	if e.ClientNetNS != 0 {
		return ownerID{netns: e.ClientNetNS}
	}
	return ownerID{addr: e.Client.Addr}
}

func (o *owners) add(e *entry) {
	if o.by == nil {
		o.by = make(map[ownerID]*owner)
	}
	id := ownerOf(e)
	w := o.by[id]
	if w == nil {
		if w = o.spare; w == nil {
			w = &owner{}
		}
		o.spare = nil
		*w = owner{id: id}
		o.by[id] = w
	}
	e.owner = w
	w.waiting.push(&e.owned)
}

// settle notes that a lookup was reported for good.
func (o *owners) settle(e *entry) {
	if e.owner != nil {
		e.owner.settled.push(&e.owned)
	}
}

func (o *owners) remove(e *entry) {
	w := e.owner
	if w == nil {
		return
	}
	if e.owned.in != nil {
		e.owned.in.remove(&e.owned)
	}
	w.bytes -= e.bytes
	o.bytes -= e.bytes
	e.owner, e.bytes = nil, 0
	if w.waiting.n == 0 && w.settled.n == 0 {
		delete(o.by, w.id)
		if o.largest == w {
			o.largest = nil
		}
		o.spare = w
	}
}

// charge counts the memory of a lookup anew.
func (a *Assembler) charge(e *entry) {
	if e.owner == nil {
		return
	}
	n := bytesOfBare + (cap(e.Hops)+cap(e.Fragments))*bytesOfHop
	e.owner.bytes += n - e.bytes
	a.owners.bytes += n - e.bytes
	e.bytes = n
}

// makeRoom lets lookups go until one more may be held. The owner with the most memory gives first those that only wait
// for a late answer, which were told already; then its oldest, which is emitted as evicted.
func (a *Assembler) makeRoom() {
	for a.ages.n > 0 && (a.ages.n >= a.o.MaxInFlight || a.owners.bytes >= a.o.MaxBytes) {
		w := a.owners.most()
		if w == nil {
			a.evict(a.ages.head)
			continue
		}
		if e := w.settled.head; e != nil {
			a.stats.Forgotten++
			a.release(e)
			continue
		}
		a.evict(w.waiting.head)
	}
}

// most gives the owner with the most memory.
func (o *owners) most() *owner {
	o.looked++
	if o.largest != nil && o.looked < relook && (o.largest.waiting.n > 0 || o.largest.settled.n > 0) {
		return o.largest
	}
	o.looked, o.largest = 0, nil
	for _, w := range o.by {
		if o.largest == nil || w.bytes > o.largest.bytes {
			o.largest = w
		}
	}
	return o.largest
}

func (a *Assembler) evict(e *entry) {
	a.stats.Evicted++
	if e.Ending == InFlight {
		e.Ending = Evicted
	}
	a.finish(e)
}

// sightings are conntrack entries that were seen lately: whether a lookup was translated by one that is older than
// itself, and who holds a translated source.
type sightings struct {
	young, old map[translation]sighting
	since      int64
}

// translation is a direction of a conntrack entry: where it goes to, and by which source.
type translation struct {
	netns    uint32
	src, dst hop.Endpoint
}

type sighting struct {
	at     int64        // ns since 1970, when it was first seen
	client hop.Endpoint // its source before translation
}

const (
	maxSightings  = 1 << 14
	sightingsKept = int64(60e9) // ns of each of two generations: conntrack keeps an unanswered entry for 30 s
)

func (s *sightings) get(t translation) (sighting, bool) {
	if x, ok := s.young[t]; ok {
		return x, true
	}
	x, ok := s.old[t]
	return x, ok
}

func (s *sightings) put(t translation, x sighting, now int64) {
	if s.young == nil || now-s.since > sightingsKept || len(s.young) >= maxSightings {
		s.old, s.young, s.since = s.young, make(map[translation]sighting), now
	}
	s.young[t] = x
}

// seeEntry notes the conntrack entry of a query's hop.
func (a *Assembler) seeEntry(e *entry, p *hop.Packet) {
	if !p.Tracked || p.Conntrack.Status&(hop.SrcNAT|hop.DstNAT) == 0 {
		return
	}
	ct := &p.Conntrack
	if ct.Status&hop.SeenReply != 0 && e.Attempts == 1 && !e.AnswerSeen && !e.Again && e.Transport != 6 {
		e.EntryOlder = true // it has had an answer
	}
	// Which client has a translated source towards a server.
	t := translation{p.NetNS, ct.ReplyDst, ct.ReplySrc}
	x, ok := a.entries.get(t)
	switch {
	case !ok || x.client != ct.OrigSrc:
		if p.Kind != hop.Drop {
			a.entries.put(t, sighting{p.Time, ct.OrigSrc}, p.Time)
		}
	case x.at < e.Hops[0].Time && e.Transport != 6:
		e.EntryOlder = true
	}
}

// findHolder finds out who has the translated source that a dropped query was to get.
func (a *Assembler) findHolder(e *entry, drop *hop.Hop) {
	if !unplaced(drop) {
		return
	}
	ct := &drop.Conntrack
	x, ok := a.entries.get(translation{drop.NetNS, ct.ReplyDst, ct.ReplySrc})
	if ok && x.client != ct.OrigSrc && ct.ReplyDst != ct.OrigSrc {
		e.Holder = &Holder{Client: x.client, Source: ct.ReplyDst}
	}
}
