package lookup

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestTable: against a map, with few keys so that many nodes share one, and many so that it grows.
func TestTable(t *testing.T) {
	for _, keys := range []int{3, 5000} {
		r := rand.New(rand.NewPCG(1, uint64(keys)))
		var tb table
		want := map[key][]*node{} // the newest first
		var all []*node
		for range 20000 {
			if len(all) > 0 && r.IntN(3) == 0 {
				i := r.IntN(len(all))
				n := all[i]
				tb.remove(n)
				want[n.key] = slices.DeleteFunc(want[n.key], func(x *node) bool { return x == n })
				if len(want[n.key]) == 0 {
					delete(want, n.key)
				}
				all = slices.Delete(all, i, i+1)
				continue
			}
			n := &node{key: key{id: uint16(r.IntN(keys)), client: end("10.0.0.1:53")}}
			tb.put(n)
			want[n.key] = append([]*node{n}, want[n.key]...)
			all = append(all, n)
		}
		if tb.n != len(want) {
			t.Errorf("%d keys, want %d", tb.n, len(want))
		}
		for k, nodes := range want {
			var got []*node
			for n := tb.get(&k); n != nil; n = n.next {
				got = append(got, n)
			}
			if !slices.Equal(got, nodes) {
				t.Errorf("ID %d: %d nodes, want %d", k.id, len(got), len(nodes))
			}
		}
	}
}

func TestSocketTable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var tb socketTable
	want := map[socketID]*socket{}
	for range 20000 {
		id := socketID{end("10.0.0.1:53"), 17}
		id.end.Port = uint16(r.IntN(3000))
		if s := want[id]; s != nil {
			tb.remove(s)
			delete(want, id)
			continue
		}
		s := &socket{id: id}
		tb.put(s)
		want[id] = s
	}
	if tb.n != len(want) {
		t.Errorf("%d sockets, want %d", tb.n, len(want))
	}
	for port := range uint16(3000) {
		id := socketID{end("10.0.0.1:53"), 17}
		id.end.Port = port
		if tb.get(id) != want[id] {
			t.Errorf("port %d: another socket", port)
		}
	}
}
