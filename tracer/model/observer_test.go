package model

import (
	"slices"
	"sort"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// observer is an agent: what it sees of a world, and when.
type observer struct {
	name   string
	sees   func(ns uint32) bool
	told   []uint32      // namespaces that it was told forward
	spread time.Duration // how much later than another CPU's a record may come
	losing int           // one record in so many is lost, 0 none
}

func observers(d *dice, translates bool) []*observer {
	all := &observer{name: "all", sees: func(ns uint32) bool { return ns != beyondNS }}
	near := &observer{name: "client's node", sees: func(ns uint32) bool {
		return ns == 0 || ns == node1NS || ns == clientNS || ns >= server2NS && ns < serverNS && (ns-server2NS)%10 == 0
	}, told: []uint32{node1NS}}
	far := &observer{name: "server's node", sees: func(ns uint32) bool {
		return ns == 0 || ns == node2NS || ns >= serverNS && ns < beyondNS && (ns-serverNS)%10 == 0
	}, told: []uint32{node2NS}}
	if d.one(2) {
		all.told = []uint32{node1NS, node2NS}
	}
	o := []*observer{all, near, far}
	spread := pick(d, 0, 0, 15*time.Microsecond, 200*time.Microsecond)
	if translates {
		// What is behind the translation is told by the record that shows the translation: that one comes before what is
		// seen beyond the wire.
		spread = min(spread, 15*time.Microsecond)
	}
	losing := pick(d, 0, 0, 0, 30)
	for _, x := range o {
		x.spread, x.losing = spread, losing
	}
	return o
}

// report is one report of a lookup, with what is needed after it.
type report struct {
	lookup.Lookup
	verdict verdict.Verdict
	traceID link.TraceID
	spans   []link.TraceID // under which its client span was sent
	at      int64
}

// watch gives what an agent reports of a world; seen says which hops it saw.
type watch struct {
	o       *observer
	reports []*report
	seen    []bool
	lost    []int64 // when records were lost
	asm     *lookup.Assembler
	judge   *verdict.Judge
}

type delivery struct {
	at int64
	i  int
}

// lossInterval is how old an agent's count of lost records may be.
const lossInterval = int64(50 * time.Millisecond)

func (w *world) watch(o *observer) *watch {
	x := &watch{o: o, seen: make([]bool, len(w.shown)), judge: &verdict.Judge{ReadsSeen: w.reads}}
	for _, ns := range o.told {
		x.judge.Forwards(ns)
	}
	// The records of one CPU come in order, those of two may not.
	behind := make([]int64, w.cpus)
	if o.spread > 0 {
		for i := range behind {
			behind[i] = int64(w.d.span(0, o.spread))
		}
	}
	order := make([]int, len(w.shown))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return w.shown[order[a]].Time < w.shown[order[b]].Time })
	var come []delivery
	for _, i := range order {
		h := &w.shown[i]
		if !o.sees(h.NetNS) {
			continue
		}
		if o.losing > 0 && w.d.one(o.losing) {
			x.lost = append(x.lost, h.Time)
			continue
		}
		x.seen[i] = true
		come = append(come, delivery{h.Time + behind[h.cpu], i})
	}
	sort.SliceStable(come, func(a, b int) bool { return come[a].at < come[b].at })
	now := w.shown[0].Time
	sampled := uint64(0)
	nextSample := now
	sampledAt := now
	losses := func() (uint64, int64) { return sampled, sampledAt }
	sample := func() {
		if now < nextSample {
			return
		}
		nextSample, sampledAt = now+lossInterval, now
		sampled = 0
		for _, t := range x.lost {
			if t <= now {
				sampled++
			}
		}
	}
	x.asm = lookup.New(lookup.Options{
		Ports: []uint16{53}, Losses: losses, ReadsSeen: w.reads,
		Emit: func(l *lookup.Lookup) {
			r := &report{Lookup: *l, at: now}
			r.verdict = x.judge.Of(l)
			r.Hops, r.Name, r.Related = slices.Clone(l.Hops), slices.Clone(l.Name), slices.Clone(l.Related)
			key := l.Key()
			epochs := l.Epochs(nil, link.DefaultGuard)
			if l.FirstEpoch != 0 {
				epochs[0] = l.FirstEpoch // it keeps the trace it was told under
			}
			r.traceID = key.TraceID(epochs[0])
			x.export(l, r)
			x.reports = append(x.reports, r)
		},
	})
	sweep := func(to int64) {
		for now < to {
			step := int64(20 * time.Millisecond)
			if to-now > int64(2*time.Second) {
				step = int64(50 * time.Millisecond)
			}
			now = min(now+step, to)
			sample()
			x.asm.Sweep(now)
		}
	}
	var p hop.Packet
	for _, d := range come {
		sweep(d.at)
		p = w.shown[d.i].Packet
		x.asm.Add(&p)
	}
	sweep(now + int64(17*time.Second))
	x.asm.Flush()
	return x
}

// export does as the exporter does: under which traces the client span of a report goes, where it has one.
func (x *watch) export(l *lookup.Lookup, r *report) {
	if !l.Final || l.Connect || l.Serves != nil || l.ClientNetNS == 0 {
		return
	}
	key := l.Key()
	var before []link.Epoch
	if l.FinalBefore {
		before = l.EpochsBefore(nil, link.DefaultGuard)
	}
	for _, e := range l.Epochs(nil, link.DefaultGuard) {
		if !slices.Contains(before, e) && !l.Beside {
			r.spans = append(r.spans, key.TraceID(e))
		}
	}
	l.Exported = true
}
