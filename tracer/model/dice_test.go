package model

import (
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// dice decide what a world is like: by the given bytes as long as there are any, then by chance that follows from them.
type dice struct {
	bytes []byte
	rng   *rand.Rand
}

func newDice(b []byte) *dice {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return &dice{b, rand.New(rand.NewPCG(h.Sum64(), 1))}
}

// n gives a number from 0 to k-1; k is 256 at most.
func (d *dice) n(k int) int {
	if k <= 1 {
		return 0
	}
	if len(d.bytes) > 0 {
		b := d.bytes[0]
		d.bytes = d.bytes[1:]
		return int(b) % k
	}
	return d.rng.IntN(k)
}

// one says yes once in k times.
func (d *dice) one(k int) bool { return d.n(k) == k-1 }

// span gives a duration between two, both included.
func (d *dice) span(from, to time.Duration) time.Duration {
	return from + (to-from)*time.Duration(d.n(256))/255
}

// pick gives one of several.
func pick[T any](d *dice, of ...T) T { return of[d.n(len(of))] }
