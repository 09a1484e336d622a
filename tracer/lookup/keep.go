package lookup

import (
	"iter"
	"unsafe"

	"github.com/dnstrail/dnstrail/tracer/hop"
)

// CopyTo makes dst a copy of what may not be kept beyond [Options.Emit], in dst's own memory as far as it has some. The
// server's own queries and later fragments are left out: a verdict has told of them. The answers are shared: they do
// not change.
func (l *Lookup) CopyTo(dst *Lookup) {
	hops, name, related := dst.Hops[:0], dst.Name[:0], dst.Related[:0]
	*dst = *l
	dst.Hops = append(hops, l.Hops...)
	dst.Name = append(name, l.Name...)
	dst.Related = append(related, l.Related...)
	dst.Upstreams, dst.Fragments = nil, nil
}

// Room gives the memory that a copy takes beside itself, in bytes.
func (l *Lookup) Room() int {
	n := cap(l.Hops)*int(unsafe.Sizeof(hop.Hop{})) + cap(l.Name) + cap(l.Related)*int(unsafe.Sizeof(Relation{}))
	for _, a := range l.Body.Answers {
		n += len(a) + int(unsafe.Sizeof(a))
	}
	return n
}

// Held gives the lookups that are held, those that have ended and wait for more included, oldest first. Nothing else
// may be asked of the assembler meanwhile, and what is given lives until the loop goes on.
func (a *Assembler) Held() iter.Seq[*Lookup] {
	return func(yield func(*Lookup) bool) {
		for at := a.ages.first; at != nil; at = at.next {
			if !yield(&at.e.Lookup) {
				return
			}
		}
	}
}
