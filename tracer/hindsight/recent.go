package hindsight

import (
	"time"
	"unsafe"

	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/origin"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// kept is a lookup as it was reported, with its verdict.
type kept struct {
	lookup  lookup.Lookup
	verdict verdict.Verdict
	judge   *verdict.Judge
	origin  *origin.Origin
	hash    uint64 // of its question
	at      int64  // when it was reported, in ns since 1970
	sent    bool   // its spans are on their way

	newer, older *kept // of the same question
	room         int   // bytes that it takes in all
}

func (k *kept) result() pipeline.Result {
	return pipeline.Result{Lookup: &k.lookup, Verdict: &k.verdict, Judge: k.judge, Origin: k.origin}
}

func (k *kept) fill(r *pipeline.Result) {
	r.Lookup.CopyTo(&k.lookup)
	k.verdict, k.judge, k.origin = *r.Verdict, r.Judge, r.Origin
	k.room = int(unsafe.Sizeof(*k)) + k.lookup.Room() + bytesOfPlace + len(k.verdict.Text)
	for _, text := range k.verdict.Evidence {
		k.room += len(text) + int(unsafe.Sizeof(text))
	}
}

// bytesOfPlace is roughly what a lookup's place in the queue and the index takes.
const bytesOfPlace = 64

// recent is the lookups of the recent past, each as often as it was reported for good: as many as there were in a time,
// and as have room.
type recent struct {
	past  time.Duration
	most  int // bytes
	queue []*kept
	head  int // of the queue: the oldest
	n     int
	bytes int
	index map[uint64]*kept // the newest of a question
	free  *kept            // one that was let go: its memory is used again

	early uint64 // let go before their time
}

func (m *recent) add(r *pipeline.Result, hash uint64, sent bool, now int64) {
	k := m.free
	if k == nil {
		k = &kept{}
	}
	m.free = nil
	k.fill(r)
	k.hash, k.at, k.sent, k.newer, k.older = hash, now, sent, nil, m.index[hash]
	if k.older != nil {
		k.older.newer = k
	}
	m.index[hash] = k
	if m.n == len(m.queue) {
		m.grow()
	}
	m.queue[(m.head+m.n)%len(m.queue)] = k
	m.n++
	m.bytes += k.room
	m.expire(now)
	for m.bytes > m.most && m.n > 0 {
		m.early++
		m.drop()
	}
}

func (m *recent) grow() {
	queue := make([]*kept, max(64, 2*len(m.queue)))
	for i := range m.n {
		queue[i] = m.queue[(m.head+i)%len(m.queue)]
	}
	m.queue, m.head = queue, 0
}

// expire lets go what is older than the past reaches.
func (m *recent) expire(now int64) {
	for m.n > 0 && now-m.queue[m.head].at > int64(m.past) {
		m.drop()
	}
}

// drop lets the oldest go.
func (m *recent) drop() {
	k := m.queue[m.head]
	m.queue[m.head] = nil
	m.head = (m.head + 1) % len(m.queue)
	m.n--
	m.bytes -= k.room
	if k.newer != nil {
		k.newer.older = nil
	} else {
		delete(m.index, k.hash)
	}
	k.newer, k.older = nil, nil
	m.free = k
}
