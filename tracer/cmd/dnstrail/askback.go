package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link/askback"
	"github.com/dnstrail/dnstrail/tracer/export"
	"github.com/dnstrail/dnstrail/tracer/hindsight"
	"github.com/dnstrail/dnstrail/tracer/metrics"
	"github.com/dnstrail/dnstrail/tracer/past"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
)

// askBackFlags say who is asked about lookups that ended badly, and who may ask.
type askBackFlags struct {
	listen     string
	key        string
	peers      []string
	serverPort uint16
	past       time.Duration

	named map[string]netip.AddrPort
}

func (f *askBackFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.listen, "ask-back", "", "UDP address on which others ask what this agent saw of a lookup, and from "+
		fmt.Sprintf("which it asks them, for example :%d; none if empty", askback.DefaultPort))
	fs.StringVar(&f.key, "ask-back-key", "", "file of the key that all who ask share: a line of 32 characters or more")
	fs.StringArrayVar(&f.peers, "ask-back-peer", nil, "whom to ask, NAME=ADDRESS:PORT: NAME is the node whose agent "+
		"it is, "+
		"or the address of a DNS server (repeatable)")
	fs.Uint16Var(&f.serverPort, "ask-back-server-port", askback.DefaultPort,
		"UDP port at which a cluster's DNS server that no "+
			"--ask-back-peer names is asked; 0: it is not")
	fs.DurationVar(&f.past, "ask-back-past", hindsight.DefaultPast, "how long lookups are remembered for those who ask")
}

// check checks the flags.
func (f *askBackFlags) check() error {
	if f.listen == "" {
		if f.key != "" || len(f.peers) > 0 {
			return errors.New("--ask-back-key, --ask-back-peer: want --ask-back, too")
		}
		return nil
	}
	if err := askback.ParseListen(f.listen); err != nil {
		return fmt.Errorf("--ask-back: %w", err)
	}
	if f.key == "" {
		return errors.New("--ask-back: want --ask-back-key, too: nobody is answered without one")
	}
	if f.past < time.Second || f.past > time.Minute {
		return fmt.Errorf("--ask-back-past %s: want 1s to 1m", f.past)
	}
	f.named = map[string]netip.AddrPort{}
	for _, p := range f.peers {
		name, addr, ok := strings.Cut(p, "=")
		to, err := netip.ParseAddrPort(addr)
		if !ok || name == "" || err != nil {
			return fmt.Errorf("--ask-back-peer %q: want NAME=ADDRESS:PORT", p)
		}
		if a, err := netip.ParseAddr(name); err == nil {
			name = a.Unmap().String()
		}
		f.named[name] = to
	}
	return nil
}

// marksPart: of the memory for those who ask, one in so many parts is for marks, the rest for whole lookups.
const marksPart = 4

// keep gives what is kept of lookups, for rows and for those who ask.
func (f *agentFlags) keep() *past.Past {
	o := past.Options{Node: f.watch.node, Guard: f.watch.guard}
	if f.socket != "" { // nobody else asks for rows
		o.All, o.Lost, o.Bytes = f.past, f.pastLost, int(f.watch.memory.Share(pastShare, 16))
	}
	if f.askBack.listen != "" {
		o.Reach = f.askBack.past
		o.Bytes += int(f.watch.memory.Share(askedShare, 16)) / marksPart * (marksPart - 1)
	}
	return past.New(o)
}

// asking is the agent's part of asking back; nil where nobody asks.
type asking struct {
	memory *hindsight.Memory
	peer   *askback.Peer
}

// open listens. facts is where lookups are kept; judged gets those that waited for answers.
func (f *askBackFlags) open(
	a *agentFlags, index *identity.Index, exporter *export.Exporter, facts *past.Past, judged func(pipeline.Result),
) (*asking, error) {
	if f.listen == "" {
		return nil, nil
	}
	key, err := askback.ReadKey(f.key)
	if err != nil {
		return nil, fmt.Errorf("--ask-back-key: %w", err)
	}
	node := a.watch.node
	if node == "" {
		node = hostname()
	}
	x := &asking{memory: hindsight.New(hindsight.Options{
		Past: f.past, Facts: facts, Bytes: int(a.watch.memory.Share(askedShare, 16)) / marksPart,
		Slow: a.slow, Node: node, Guard: a.watch.guard,
		Peers: f.named, ServerPort: f.serverPort, Index: index, Judged: judged,
		Send: func(r pipeline.Result, why askback.Reason) {
			text := ""
			if why != 0 {
				text = why.String()
			}
			exporter.Asked(r.Lookup, r.Verdict, r.Judge, r.Origin, text)
		},
	})}
	x.peer, err = askback.Open(askback.Options{
		Listen: f.listen, Key: key, Handle: x.memory.Handle,
		Panicked: func(p any) { fmt.Fprintln(os.Stderr, "dnstrail: panic while asking back:", p) },
	})
	if err != nil {
		return nil, fmt.Errorf("--ask-back: %w", err)
	}
	return x, nil
}

func (x *asking) close() {
	if x != nil {
		_ = x.peer.Close(context.Background()) // it only listened
	}
}

func (x *asking) watch(p *pipeline.Pipeline) {
	if x != nil {
		x.memory.Open(x.peer, p)
	}
}

// hold says whether a lookup waits for what others say of it.
func (x *asking) hold(r pipeline.Result, exporter *export.Exporter) bool {
	if x == nil || !x.memory.Hold(r) {
		return false
	}
	r.Lookup.Exported = exporter.Sends() // soon: what comes later of it continues that
	return true
}

// remember keeps a lookup, in facts.
func (x *asking) remember(r pipeline.Result, sent bool, facts *past.Past) {
	if x == nil {
		facts.Add(r, 0, sent)
		return
	}
	x.memory.Remember(r, sent)
}

func (x *asking) tick(now time.Time) {
	if x != nil {
		x.memory.Tick(now)
	}
}

// flush ends all waits: no answer is read any more.
func (x *asking) flush() {
	if x != nil {
		x.memory.Flush()
	}
}

func (x *asking) count(m *metrics.Metrics) {
	if x == nil {
		return
	}
	s, had := x.peer.Stats(), x.memory.Stats()
	m.Asked(map[string]uint64{
		"asked": s.Asked, "answered": s.Answered, "unreachable": s.Unreachable, "limited": s.Limited,
		"given": s.Given, "forgotten": s.Forgotten, "refused": s.Refused, "replayed": s.Replayed, "forged": s.Forged,
		"malformed": s.Malformed, "early": had.Early, "unmarked": had.Unmarked, "sent": had.Sent,
	}, had.Lookups, had.Bytes)
}
