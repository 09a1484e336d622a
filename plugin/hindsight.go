package dnstrail

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/askback"
)

// Hindsight: what was seen of queries that were not kept is remembered for some seconds, for agents that ask because
// the lookup ended badly for its client (HINDSIGHT.md beside package link). On the query path that is one copy into a
// ring under the lock of one of some shards; spans are made when they are asked for.

// Bounds of what is remembered and asked.
const (
	defaultPast       = 15 * time.Second
	defaultPastBytes  = 16 << 20
	shards            = 16
	maxWanted         = 4096
	maxAsks           = 256
	bytesOfRecorder   = 4 << 10 // a query with its recorder and messages, roughly
	bytesOfFacts      = int(unsafe.Sizeof(facts{})) + 8 + 48 + bytesOfLists
	bytesOfLists      = 32 // of what a query's answer lists, on average: two addresses of IPv4, a name
	recordersFraction = 4  // of the bytes, one in so many is for queries with a recorder
)

// hindsightConfig says what is remembered, who may ask, and whom we ask.
type hindsightConfig struct {
	listen string // "" : nothing of all this
	key    string
	past   time.Duration
	bytes  int
	peers  map[string]netip.AddrPort // agents, by node
	// of agents that none of those names, at an address of their node; 0: they are not asked
	port   uint16
	beside netip.AddrPort // the agent on this node
}

func (c *hindsightConfig) complete() error {
	if c.listen == "" {
		if c.key != "" || len(c.peers) > 0 || c.port != 0 || c.beside.IsValid() {
			return errors.New("property 'hindsight': 'listen' is missing")
		}
		return nil
	}
	if c.key == "" {
		return errors.New("property 'hindsight': 'key' is missing: nobody is answered without one")
	}
	if c.past == 0 {
		c.past = defaultPast
	}
	if c.bytes == 0 {
		c.bytes = defaultPastBytes
	}
	return nil
}

// id tells apart what needs a memory of its own.
func (c *hindsightConfig) id() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %v %d %d %v", c.listen, c.key, c.past, c.bytes, c.port, c.beside)
	for _, node := range slices.Sorted(maps.Keys(c.peers)) {
		fmt.Fprintf(&b, " %q=%v", node, c.peers[node])
	}
	return b.String()
}

func readHindsight(c *config, args []string) error {
	h := &c.hindsight
	if len(args) < 2 {
		return errArgs
	}
	what, args := args[0], args[1:]
	addr := func(s string) (netip.AddrPort, error) {
		a, err := netip.ParseAddrPort(s)
		if err != nil || a.Port() == 0 {
			return a, fmt.Errorf("'%s' is not an address with a port", s)
		}
		return a, nil
	}
	switch {
	case what == "peer" && len(args) == 2:
		a, err := addr(args[1])
		if err != nil {
			return err
		}
		if h.peers == nil {
			h.peers = map[string]netip.AddrPort{}
		}
		h.peers[args[0]] = a
	case len(args) != 1:
		return errArgs
	case what == "listen":
		h.listen = args[0]
		return askback.ParseListen(args[0])
	case what == "key":
		if _, err := os.Stat(args[0]); err != nil {
			return err
		}
		h.key = args[0]
	case what == "past":
		d, err := time.ParseDuration(args[0])
		if err != nil || d < time.Second || d > time.Minute {
			return fmt.Errorf("'%s' is not how long queries are remembered; want 1s to 1m", args[0])
		}
		h.past = d
	case what == "memory":
		n, err := strconv.Atoi(args[0])
		if err != nil || n < 1 || n > 4096 {
			return fmt.Errorf("'%s' is not a number of MiB; want one from 1 to 4096", args[0])
		}
		h.bytes = n << 20
	case what == "port":
		n, err := strconv.ParseUint(args[0], 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("'%s' is not a port", args[0])
		}
		h.port = uint16(n)
	case what == "beside":
		a, err := addr(args[0])
		h.beside = a
		return err
	default:
		return errArgs
	}
	return nil
}

// hindsight remembers, answers and asks for all server blocks with the same settings, and over reloads.
type hindsight struct {
	c      hindsightConfig
	peer   *askback.Peer
	node   string
	begun  int64
	shards [shards]shard

	nwanted atomic.Int32 // how many are wanted: the query path looks no further where none is
	mu      sync.Mutex
	wanted  []askback.Question

	early atomic.Uint64
	asks  chan ask
	over  chan struct{} // closed when asking has ended

	stop    context.CancelFunc
	counted map[string]uint64 // as of the last count
}

// shard is a part of what is remembered. A query's shard follows from its question.
type shard struct {
	mu      sync.Mutex
	hashes  []uint64 // of the questions of facts
	facts   []facts
	next    int
	lists   ring     // of what the answers of facts list
	rhashes []uint64 // of the questions of recorders
	records []*recorder
	rnext   int
	_       [64]byte // a cache line of its own
}

// facts are what is remembered of a query without a recorder, or whose recorder the exporter has.
type facts struct {
	d             *Dnstrail
	begun         int64 // ns since 1970
	client        *identity.Client
	addr          netip.AddrPort
	server, name  string
	qtype, qclass uint16
	id            uint16
	opcode        uint8
	proto         protocol
	udp           bool
	sent          bool // its spans are on their way
	truncated     bool
	cache         cacheStatus
	passed        uint8 // plugins of the chain
	flags         msgFlags
	rcode         int16
	asked, said   uint16 // bytes of the query and of the answer; 0: not known
	listed        uint16 // bytes in the shard's lists, at the place lists
	lists         uint64
	entered       [maxEntered]uint32
	traceID       link.TraceID
	parent        link.SpanID
	epoch         link.Epoch
	total         time.Duration
	endedIn       string
	err, writeErr error
}

// ask is a question to be asked.
type ask struct {
	to      netip.AddrPort
	traceID link.TraceID
	askback.Question
}

var hindsights shared[*hindsight]

// takeHindsight gives what remembers for a configuration; nil if nothing does.
func takeHindsight(c *hindsightConfig) (*hindsight, func(), error) {
	if c.listen == "" {
		return nil, func() {}, nil
	}
	return hindsights.take(c.id(), func() (*hindsight, error) { return openHindsight(*c) }, (*hindsight).close)
}

func openHindsight(c hindsightConfig) (*hindsight, error) {
	key, err := askback.ReadKey(c.key)
	if err != nil {
		return nil, fmt.Errorf("hindsight key: %w", err)
	}
	h := newHindsight(c)
	h.peer, err = askback.Open(askback.Options{
		Listen: c.listen, Key: key, Handle: h.handle, Panicked: func(p any) { ownPanic("answering who asks back", p) },
	})
	if err != nil {
		return nil, fmt.Errorf("hindsight listen: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	go h.run(ctx)
	return h, nil
}

func newHindsight(c hindsightConfig) *hindsight {
	h := &hindsight{
		c: c, node: os.Getenv("NODE_NAME"), begun: time.Now().UnixNano(),
		asks: make(chan ask, maxAsks), over: make(chan struct{}), counted: map[string]uint64{},
	}
	records := max(1, c.bytes/recordersFraction/bytesOfRecorder/shards)
	n := max(1, c.bytes/recordersFraction*(recordersFraction-1)/bytesOfFacts/shards)
	for i := range h.shards {
		s := &h.shards[i]
		s.hashes, s.facts, s.lists.bytes = make([]uint64, n), make([]facts, n), make([]byte, max(maxLists, n*bytesOfLists))
		s.rhashes, s.records = make([]uint64, records), make([]*recorder, records)
	}
	return h
}

func (h *hindsight) close() {
	h.stop()
	go func() { // a reload must not wait for it
		<-h.over
		if err := h.peer.Close(context.Background()); err != nil {
			log.Warningf("hindsight: %v", err)
		}
		h.count()
	}()
}

// run asks what is to be asked, forgets what is old, and counts.
func (h *hindsight) run(ctx context.Context) {
	defer close(h.over)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-h.asks:
			a.Traces = []link.TraceID{a.traceID}
			h.peer.Ask(a.to, a.Question, nil)
		case now := <-tick.C:
			h.tidy(now)
			h.count()
		}
	}
}

// tidy forgets what nobody waits for any more, and lets go of messages that are older than the past reaches.
func (h *hindsight) tidy(now time.Time) {
	h.mu.Lock()
	h.wanted = slices.DeleteFunc(h.wanted, func(q askback.Question) bool { return now.UnixNano()-q.To > int64(h.c.past) })
	h.nwanted.Store(int32(len(h.wanted))) // #nosec G115 -- bounded by maxWanted
	h.mu.Unlock()
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.Lock()
		for j, rec := range s.records {
			if rec != nil && now.Sub(rec.q.begun.Add(rec.q.total)) > h.c.past {
				s.records[j], s.rhashes[j] = nil, 0
			}
		}
		s.mu.Unlock()
	}
}

// count takes over the counts of questions.
func (h *hindsight) count() {
	s := h.peer.Stats()
	for result, n := range map[string]uint64{
		"asked": s.Asked, "answered": s.Answered, "unreachable": s.Unreachable, "limited": s.Limited, "given": s.Given,
		"forgotten": s.Forgotten, "refused": s.Refused, "replayed": s.Replayed, "forged": s.Forged, "malformed": s.Malformed,
		"early": h.early.Load(),
	} {
		asksTotal.WithLabelValues(result).Add(float64(n - h.counted[result]))
		h.counted[result] = n
	}
}

func (h *hindsight) shard(hash uint64) *shard { return &h.shards[hash%shards] }

// wants gives why somebody has asked for a query that is over, 0 if nobody has.
func (h *hindsight) wants(q *query) askback.Reason {
	if h.nwanted.Load() == 0 {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.wanted {
		if w := &h.wanted[i]; w.Hash == q.hash && q.begun.UnixNano() <= w.To+int64(link.DefaultGuard) {
			return w.Reason
		}
	}
	return 0
}

// remember notes a query that is over; sent says that its spans are on their way, rec is its recorder if they are not.
func (h *hindsight) remember(q *query, rec *recorder, sent bool) {
	s := h.shard(q.hash)
	if rec != nil && !sent {
		rec.seen = q.look()
		s.mu.Lock()
		defer s.mu.Unlock()
		if old := s.records[s.rnext]; old != nil && q.begun.Sub(old.q.begun) < h.c.past {
			h.early.Add(1)
		}
		s.records[s.rnext], s.rhashes[s.rnext] = rec, q.hash
		s.rnext = (s.rnext + 1) % len(s.records)
		return
	}
	var room [maxLists]byte
	lists, size := room[:0], 0
	if q.message != nil && !sent {
		lists, size = appendLists(lists, q.message), sizeOf(q.message)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h.note(s, q, sent, lists, size)
}

// note notes the facts of a query, and of its answer the size and what it lists. Callers hold the shard's lock.
func (h *hindsight) note(s *shard, q *query, sent bool, lists []byte, size int) {
	res := &q.result
	f := &s.facts[s.next]
	begun := q.begun.UnixNano()
	if f.d != nil && begun-f.begun < int64(h.c.past) {
		h.early.Add(1)
	}
	s.hashes[s.next] = q.hash
	s.next++
	if s.next == len(s.facts) {
		s.next = 0
	}
	f.d, f.begun, f.client, f.addr, f.server, f.name = q.d, begun, q.client, q.addr, q.server, q.name
	f.qtype, f.qclass, f.id, f.opcode, f.proto, f.udp = q.qtype, q.qclass, q.id, uint8(q.opcode), q.proto,
		q.udp // #nosec G115 -- four bits
	f.traceID, f.parent, f.epoch, f.sent = q.traceID, q.parent, q.epoch, sent
	f.rcode, f.total, f.endedIn, f.err = int16(res.rcode), res.total, res.endedIn, res.err // #nosec G115 -- twelve bits
	f.writeErr, f.truncated, f.flags, f.cache = q.writeErr, false, 0, cacheStatusOf(res.cache)
	f.asked, f.said = uint16(min(q.size, 1<<16-1)), uint16(min(size, 1<<16-1)) // #nosec G115 -- bounded
	f.passed = uint8(min(q.passed(), 255))                                     // #nosec G115 -- bounded
	for i := range f.entered {
		f.entered[i] = q.entered[i].Load()
	}
	f.lists, f.listed = s.lists.put(lists), uint16(len(lists)) // #nosec G115 -- at most maxLists
	switch {
	case q.message != nil:
		f.truncated, f.flags = q.message.Truncated, flagsOf(q.message)
	case q.bytes > 0:
		f.truncated, f.said = q.raw[2]&0x02 != 0, uint16(min(q.bytes, 1<<16-1)) // #nosec G115 -- bounded
	}
}

// recorder makes a query, and its recorder, of what was remembered of it; lists is what its answer lists.
func (f *facts) recorder(lists []byte) *recorder {
	q := &query{
		d: f.d, begun: time.Unix(0, f.begun), client: f.client, addr: f.addr, server: f.server, name: f.name,
		qtype: f.qtype, qclass: f.qclass, id: f.id, opcode: int(f.opcode), size: int(f.asked), proto: f.proto, udp: f.udp,
		traceID: f.traceID, spanID: newSpanID(), parent: f.parent, epoch: f.epoch,
	}
	q.writeErr = f.writeErr
	q.result = result{
		rcode: int(f.rcode), total: f.total, endedIn: f.endedIn, cache: f.cache.String(), err: f.err,
	}
	for i := range f.entered {
		q.entered[i].Store(f.entered[i])
	}
	rec := newRecorder(q, nil)
	rec.ahead = int(f.passed)
	rec.close(&q.result)
	rec.seen = seen{size: int(f.said), truncated: f.truncated, flags: f.flags, lists: q.listed(lists)}
	return rec
}

// handle answers a question. Whoever asks knows the key.
func (h *hindsight) handle(question askback.Question, reply func(askback.Answer)) {
	a := askback.Answer{
		Outcome: askback.Forgotten, Facts: askback.ByServer, Since: h.begun, Beside: h.c.beside, Node: h.node,
	}
	for _, rec := range h.find(&question, &a.Facts) {
		q := rec.q
		q.kept, q.asked = asAsked, question.Reason
		if q.d.exporter != nil {
			q.d.exporter.give(q, rec)
		}
	}
	if a.Facts != askback.ByServer {
		a.Outcome = askback.Seen
	}
	// What is under way is not known before it is over.
	h.mu.Lock()
	if len(h.wanted) >= maxWanted {
		h.wanted = h.wanted[1:]
	}
	h.wanted = append(h.wanted, question)
	h.nwanted.Store(int32(len(h.wanted))) // #nosec G115 -- bounded
	h.mu.Unlock()
	reply(a)
}

// find gives the queries that are asked for and whose spans are not on their way, to be sent by the caller, and what is
// known of all: those with one of the trace IDs, else those with the question that may be the one that is meant.
func (h *hindsight) find(question *askback.Question, known *askback.Facts) (send []*recorder) {
	s := h.shard(question.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	var named, others []int // of facts; recorders below zero
	now := time.Now()
	take := func(i int, begun time.Time, total time.Duration, id link.TraceID, client *identity.Client) {
		from, to := begun.UnixNano(), begun.Add(total).UnixNano()
		guard := int64(link.DefaultGuard)
		if from > question.To+guard || to < question.From-guard || now.Sub(begun.Add(total)) > h.c.past {
			return
		}
		switch {
		case slices.Contains(question.Traces, id):
			named = append(named, i)
		case client.Kind() != identity.Pod: // a pod's own address was not translated: the asker would know the trace ID
			others = append(others, i)
		}
	}
	for i, hash := range s.hashes {
		if f := &s.facts[i]; hash == question.Hash && f.d != nil {
			take(i, time.Unix(0, f.begun), f.total, f.traceID, f.client)
		}
	}
	for i, hash := range s.rhashes {
		if rec := s.records[i]; hash == question.Hash && rec != nil {
			take(-1-i, rec.q.begun, rec.q.total, rec.q.traceID, rec.q.client)
		}
	}
	if len(named) == 0 && len(others) > 0 {
		named = others
		*known |= askback.ByQuestion
	}
	slices.Sort(named)
	slices.Reverse(named) // recorders last: their facts take places of others
	note := func(rcode int, writeErr error, ended time.Time) {
		*known |= askback.SawQuery | askback.TookQuery
		if rcode >= 0 && writeErr == nil && ended.UnixNano() <= question.To+int64(link.DefaultGuard) {
			*known |= askback.AnswerLeft
		}
	}
	for _, i := range named {
		if i < 0 {
			rec := s.records[-1-i]
			s.records[-1-i] = nil // the exporter's from now on
			note(rec.q.rcode, rec.q.writeErr, rec.q.begun.Add(rec.q.total))
			send = append(send, rec)
			h.note(s, rec.q, true, nil, 0)
			continue
		}
		f := &s.facts[i]
		note(int(f.rcode), f.writeErr, time.Unix(0, f.begun).Add(f.total))
		if !f.sent {
			f.sent = true
			send = append(send, f.recorder(s.lists.get(f.lists, int(f.listed))))
		}
	}
	return send
}

// about asks the agent of the client's node about a query that ended badly.
func (h *hindsight) about(q *query) {
	why := askback.Failed
	switch slow := q.d.keep.slow; {
	case q.failed():
	case slow > 0 && q.total >= slow:
		why = askback.Slow
	default:
		return
	}
	to, ok := h.agentOf(q.client)
	if !ok {
		return
	}
	begun := q.begun.UnixNano()
	select {
	case h.asks <- ask{to, q.traceID, askback.Question{Reason: why, ID: q.id, Hash: q.hash, From: begun, To: begun +
		int64(q.total)}}:
	default: // more than can be asked
	}
}

// agentOf gives the agent of a client's node.
func (h *hindsight) agentOf(c *identity.Client) (netip.AddrPort, bool) {
	node := c.Node()
	if node == "" {
		return netip.AddrPort{}, false
	}
	if to, ok := h.c.peers[node]; ok {
		return to, true
	}
	if h.c.port == 0 {
		return netip.AddrPort{}, false
	}
	if a, ok := c.NodeAddr(); ok {
		return netip.AddrPortFrom(a, h.c.port), true
	}
	return netip.AddrPort{}, false
}
