// Package pipeline runs the tracer: kernel events in, judged lookups out. It is what `dnstrail agent` and `dnstrail
// observe` share.
package pipeline

import (
	"context"
	"errors"
	"iter"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link/names"
	"github.com/dnstrail/dnstrail/tracer/bpf"
	"github.com/dnstrail/dnstrail/tracer/conntrack"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Options say what a [Pipeline] watches and where its results go.
type Options struct {
	BPF    bpf.Options
	Lookup lookup.Options // Emit and Losses are the pipeline's
	// Namespace tells whose a network namespace is: see [verdict.Judge]. Nil knows none.
	Namespace func(netns uint32) verdict.Owner
	// InNetNS gives who is in a network namespace: see [origin.Resolver]. Nil knows nobody.
	InNetNS func(netns uint32) *identity.Client
	// Names says how names are shown; nil shows all.
	Names *names.Policy
	// Index knows the pods; nil knows nobody.
	Index *identity.Index
	// Result gets each judged lookup, Tick is called every few milliseconds. Both run on the pipeline's goroutine; what
	// Result gets lives until it returns.
	Result func(Result)
	Tick   func(now time.Time)
	// Untold, if set, gets who asked a lookup that is not told because its client floods. It runs on the pipeline's
	// goroutine.
	Untold func(*origin.Origin)
	// Packet, if set, gets each packet that was seen, before it is put to its lookup: the walk as it happens. It runs on
	// the pipeline's goroutine, and what it gets lives until it returns.
	Packet func(*hop.Packet)
}

// Result is a lookup that has ended, or of which more became known.
type Result struct {
	Lookup  *lookup.Lookup
	Verdict *verdict.Verdict
	Judge   *verdict.Judge
	Origin  *origin.Origin
}

// Stats are the pipeline's own counts, losses among them.
type Stats struct {
	Events      uint64 // kernel events read
	Undecodable uint64 // of them, not DNS after all, or their payload out of reach
	Unread      uint64 // kernel events left in the ring buffer at the end: there was no time to read them
	Kernel      bpf.Losses
	Lookup      lookup.Stats
}

// Lost counts the kernel events that never came.
func (s *Stats) Lost() uint64 { return s.Kernel.Total() }

// Pipeline is a running tracer. Its methods are for one goroutine.
type Pipeline struct {
	o       Options
	tracer  *bpf.Tracer
	decoder hop.Decoder
	asm     *lookup.Assembler
	judge   verdict.Judge
	verdict verdict.Verdict // of the lookup that Result gets
	origins origin.Resolver
	stats   Stats
	drained time.Time
	counted int64 // when the losses were read, in ns since 1970
	tables  conntrack.Readings
}

// How often the clock's offset and the losses are read anew, and how often Tick is called at least.
const (
	clockInterval = 2 * time.Second
	tickInterval  = 20 * time.Millisecond
	// read at every poll, and shorter than a lookup is lingered over: what was lost of it is known by its report
	lossInterval = 30 * time.Millisecond
)

// Open loads and attaches the tracer; [bpf.Open] says how that can fail.
func Open(o Options) (*Pipeline, error) {
	t, err := bpf.Open(o.BPF)
	if err != nil {
		return nil, err
	}
	p := &Pipeline{o: o, tracer: t}
	p.judge.Conntrack = p.tables.After
	p.judge.ReadsSeen, p.judge.Namespace = t.ReadsSeen(), o.Namespace
	if netns, ok := forwarding(); ok {
		p.judge.Forwards(netns)
	}
	p.origins.Index, p.origins.InNetNS = o.Index, o.InNetNS
	if root, err := bpf.Cgroup2Mount(); err == nil {
		if c, err := origin.OpenCgroups(root); err == nil {
			p.origins.Cgroups = c
			// Remembered, for it goes with its container, which may end with its lookup and before that is told.
			p.decoder.First = func(by *hop.Process) { c.Path(by.CgroupID) }
		}
	}
	if p.decoder.Offset, err = hop.ClockOffset(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	o.Lookup.Emit = p.emit
	if o.Untold != nil {
		o.Lookup.Untold = func(l *lookup.Lookup) { o.Untold(p.origins.Of(l, time.Unix(0, l.Start()))) }
	}
	o.Lookup.Ports = o.BPF.Ports
	o.Lookup.Losses = func() (uint64, int64) { return p.stats.Lost(), p.counted }
	o.Lookup.ReadsSeen = t.ReadsSeen()
	p.asm = lookup.New(o.Lookup)
	return p, nil
}

// forwarding gives this process's own network namespace if it forwards packets of either family: on a node, the node's.
// It is not asked of others: pods often inherit the setting. Which of those forward, a dropped packet's route tells,
// and what is seen to pass.
func forwarding() (netns uint32, ok bool) {
	forwards := func(key string) bool {
		text, err := os.ReadFile("/proc/sys/net/" + key) // #nosec G304 -- one of two
		return err == nil && strings.TrimSpace(string(text)) == "1"
	}
	if !forwards("ipv4/ip_forward") && !forwards("ipv6/conf/all/forwarding") {
		return 0, false
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		return 0, false
	}
	return uint32(st.Ino), true
}

// DropCapabilities gives up what was needed to load the tracer: see [bpf.Tracer.DropCapabilities].
func (p *Pipeline) DropCapabilities() error { return p.tracer.DropCapabilities() }

// Missing says which optional hooks could not be had, and what that costs.
func (p *Pipeline) Missing() []string { return p.tracer.Missing }

// lastReads bounds how long what waits in the ring buffer is read when the end has come.
const lastReads = time.Second

// Run reads events until ctx ends; then it reads what waits, for a second at most, counts what is left, gives what is
// still in flight, and returns nil.
func (p *Pipeline) Run(ctx context.Context) error {
	var packet hop.Packet
	now := time.Now()
	nextTick, nextClock, nextLoss := now, now.Add(clockInterval), now
	var end time.Time // zero: it has not come
	for n := 0; ; n++ {
		e, payload, err := p.tracer.Read()
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return err
		case e != nil:
			p.stats.Events++
			if p.decoder.Decode(e, payload, &packet) {
				if p.o.Packet != nil {
					p.o.Packet(&packet)
				}
				p.asm.Add(&packet)
			} else {
				p.stats.Undecodable++
			}
			if n&0xff != 0 {
				continue // the clock is not read for every event
			}
		}
		now = time.Now()
		if now.Before(nextTick) {
			continue
		}
		nextTick = now.Add(tickInterval)
		if e == nil {
			// Only with nothing left to read is it known that nothing more has come.
			p.asm.Sweep(now.UnixNano())
		}
		p.read(e != nil, now, packet.Time)
		if now.After(nextLoss) {
			nextLoss = now.Add(lossInterval)
			p.readLosses()
		}
		if now.After(nextClock) {
			nextClock = now.Add(clockInterval)
			if p.decoder.Offset, err = hop.ClockOffset(); err != nil {
				return err
			}
		}
		if p.o.Tick != nil {
			p.o.Tick(now)
		}
		switch {
		case ctx.Err() == nil:
		case end.IsZero():
			end = now.Add(lastReads)
			if err := p.tracer.Detach(); err != nil {
				return err
			}
		case e == nil || now.After(end):
			return p.finish(e != nil)
		}
	}
}

// outOfOrder is how long after an event another may be read that happened before it: two CPUs write them, and one may
// be held up between taking the time and writing. That is microseconds; more where a virtual machine's CPU is taken.
const outOfOrder = 100 * time.Millisecond

// read notes until when all that happened is known: until now where nothing is left to read. On a busy node something
// always is: then it is what happened a while before the last packet that was read, at a time in ns since 1970.
func (p *Pipeline) read(left bool, now time.Time, last int64) {
	known := now
	if left {
		known = time.Unix(0, last).Add(-outOfOrder)
	}
	if known.After(p.drained) {
		p.drained = known
	}
}

// finish counts what is left of the events, and gives what is in flight.
func (p *Pipeline) finish(left bool) error {
	var err error
	if left {
		p.stats.Unread, err = p.tracer.Unread()
	}
	p.readLosses()
	p.asm.Flush()
	return err
}

func (p *Pipeline) readLosses() {
	if l, err := p.tracer.Losses(); err == nil {
		p.stats.Kernel, p.counted = l, time.Now().UnixNano()
	}
}

func (p *Pipeline) emit(l *lookup.Lookup) {
	l.Names = p.o.Names
	p.verdict = p.judge.Of(l)
	p.o.Result(Result{Lookup: l, Verdict: &p.verdict, Judge: &p.judge, Origin: p.origins.Of(l, time.Unix(0, l.End()))})
}

// Stats gives the counts as of the last loss reading.
func (p *Pipeline) Stats() Stats {
	s := p.stats
	s.Lookup = p.asm.Stats()
	return s
}

// Held gives the lookups in flight, those that have ended and wait for more included: see [lookup.Assembler.Held].
func (p *Pipeline) Held() iter.Seq[*lookup.Lookup] { return p.asm.Held() }

// Drained gives a time: what happened before it has been read.
func (p *Pipeline) Drained() time.Time { return p.drained }

// Close detaches the tracer.
func (p *Pipeline) Close() error {
	err := p.tracer.Close()
	if p.origins.Cgroups != nil {
		err = errors.Join(err, p.origins.Cgroups.Close())
	}
	return err
}
