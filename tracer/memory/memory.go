// Package memory holds a program to one budget: what the cgroup that it runs in allows, or what a flag says.
package memory

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Default is the budget where neither a cgroup nor a flag says one, in bytes.
const Default = 256 << 20

// Least is the smallest budget that a program runs with, in bytes.
const Least = 32 << 20

// Budget is how much memory a program may take, in bytes. It is a flag's value: "256MiB", "1GiB", "268435456".
type Budget int64

var units = []struct {
	suffix string
	bytes  int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"", 1}}

// String gives the budget in the largest unit that fits.
func (b *Budget) String() string {
	n := int64(*b)
	for i := 2; i >= 0; i-- {
		if n > 0 && n%units[i].bytes == 0 {
			return strconv.FormatInt(n/units[i].bytes, 10) + units[i].suffix
		}
	}
	return strconv.FormatInt(n, 10)
}

// Type names the kind of value in a flag's usage.
func (*Budget) Type() string { return "bytes" }

// Set reads a number of bytes with or without a unit, as Kubernetes and Go write it.
func (b *Budget) Set(text string) error {
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n > math.MaxInt64/u.bytes {
			return fmt.Errorf("%q: want a number of bytes, such as 256MiB", text)
		}
		if n *= u.bytes; n < Least {
			return fmt.Errorf("%q: want at least %dMiB", text, Least>>20)
		}
		*b = Budget(n)
		return nil
	}
	return fmt.Errorf("%q: want a number of bytes, such as 256MiB", text)
}

// Or gives b, or, where it is zero, what the cgroup allows, or else [Default].
func (b Budget) Or() Budget {
	if b > 0 {
		return b
	}
	if n := Allowed(); n > 0 {
		return n
	}
	return Default
}

// Allowed gives what the cgroup allows that the program runs in; 0 if that says nothing, or less than [Least].
func Allowed() Budget {
	if n := cgroup("/proc/self/cgroup", "/sys/fs/cgroup"); n >= Least {
		return Budget(n)
	}
	return 0
}

// Share gives the num/den'th part of the budget, in bytes.
func (b Budget) Share(num, den int64) int64 { return int64(b) / den * num }

// cgroup gives the least memory limit of the cgroup named by self and of those above it; 0 if none has one.
func cgroup(self, root string) int64 {
	file, err := os.Open(self) // #nosec G304 -- of /proc
	if err != nil {
		return 0
	}
	defer func() { _ = file.Close() }()
	least := int64(0)
	take := func(dir, name string) {
		for {
			text, err := os.ReadFile(filepath.Join(dir, name))                // #nosec G304 -- of the cgroup file system
			n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // "max" is none
			if err == nil && n > 0 && n < 1<<50 && (least == 0 || n < least) {
				least = n
			}
			if dir == root || len(dir) <= len(root) {
				return
			}
			dir = filepath.Dir(dir)
		}
	}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		parts := strings.SplitN(lines.Text(), ":", 3) // hierarchy:controllers:path, see cgroups(7)
		if len(parts) != 3 {
			continue
		}
		path := filepath.Clean("/" + parts[2])
		switch {
		case parts[0] == "0":
			take(filepath.Join(root, path), "memory.max")
		case strings.Contains(","+parts[1]+",", ",memory,"):
			take(filepath.Join(root, "memory", path), "memory.limit_in_bytes")
			take(filepath.Join(root, "memory"), "memory.limit_in_bytes")
		}
	}
	return least
}

// Hold makes the garbage collector keep the program within b, of which a tenth is left for what it does not know of.
// outside is what the program maps beside Go's own memory, in bytes. GOMEMLIMIT, where it is set, goes before it.
func (b Budget) Hold(outside int64) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(max(int64(b)-int64(b)/10-outside, Least/2))
	}
}

// A Gauge tells when the memory in use comes near a budget. It is safe for concurrent use.
type Gauge struct {
	Budget Budget

	at        atomic.Int64 // when it was read, in ns since 1970
	collected atomic.Int64 // when it last made sure that what is in use is needed
	pressed   atomic.Bool
}

const (
	// gaugeFor is how long a reading counts, and collectAfter the least time between two collections that it makes.
	gaugeFor     = 50 * time.Millisecond
	collectAfter = time.Second
)

// Pressed tells whether less than an eighth of the budget is free.
func (g *Gauge) Pressed() bool {
	now := time.Now().UnixNano()
	if at := g.at.Load(); now-at < int64(gaugeFor) || !g.at.CompareAndSwap(at, now) {
		return g.pressed.Load()
	}
	most := g.Budget.Share(7, 8)
	if used() <= most {
		g.pressed.Store(false)
	} else if now-g.collected.Load() >= int64(collectAfter) {
		runtime.GC() // what is not reachable any more is no reason to turn anybody away
		g.collected.Store(time.Now().UnixNano())
		g.pressed.Store(used() > most)
	}
	return g.pressed.Load()
}

// used gives the memory that the program has of the system, in bytes.
func used() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64() - sample[1].Value.Uint64())
}
