package identity

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
)

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMemory reports the bytes a pod: everything that is alive because the index is, divided by the pods.
func BenchmarkMemory(b *testing.B) {
	for _, n := range []int{10_000, 100_000, 300_000} {
		for _, dual := range []bool{false, true} {
			name := fmt.Sprintf("pods=%d", n)
			if dual {
				name += "/dual-stack"
			}
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					before := heap()
					x := NewIndex()
					for i := range n { // described one at a time, so that only the index keeps anything alive
						d := crowd(i)
						if dual {
							d.Addrs = append(d.Addrs, netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}))
						}
						x.put(nil, NewClient(d))
					}
					after := heap()
					b.ReportMetric(float64(after-before)/float64(n), "B/pod")
					runtime.KeepAlive(x)
				}
			})
		}
	}
}

// crowd describes pod i of a large cluster: deployments of 20 pods, names of usual length.
func crowd(i int) Description {
	app := i / 20
	u := uid{}
	binary.BigEndian.PutUint64(u[:], uint64(i)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(u[8:], uint64(i))
	return Description{
		Kind:           Pod,
		Namespace:      fmt.Sprintf("team-%03d", app%200),
		Pod:            fmt.Sprintf("checkout-api-%04d-7f9c5d4b8-%05d", app, i),
		UID:            u.format(true),
		WorkloadKind:   "Deployment",
		Workload:       fmt.Sprintf("checkout-api-%04d", app),
		Node:           fmt.Sprintf("ip-10-0-%d-%d.eu-central-1.compute.internal", i%2000/250, i%2000%250),
		ServiceAccount: fmt.Sprintf("checkout-api-%04d", app),
		Addrs:          []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
	}
}

// cpu reports the processor's time an operation, which a busy machine does not blur as it does the time on the clock.
func cpu(b *testing.B) func() {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	runtime.GC()
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

func BenchmarkLookup(b *testing.B) {
	x := NewIndex()
	pods := make([]Description, 100_000)
	for i := range pods {
		pods[i] = crowd(i)
		x.put(nil, NewClient(pods[i]))
	}
	addrs, uids := make([]netip.Addr, 1<<16), make([]string, 1<<16)
	for i := range addrs {
		p := pods[rand.IntN(len(pods))]
		addrs[i], uids[i] = p.Addrs[0], p.UID
	}
	var c *Client
	b.Run("address", func(b *testing.B) {
		b.ReportAllocs()
		defer cpu(b)()
		i := 0
		for b.Loop() {
			c = x.Lookup(addrs[i&(len(addrs)-1)])
			i++
		}
	})
	b.Run("address, from all cores", func(b *testing.B) {
		b.ReportAllocs()
		defer cpu(b)()
		b.RunParallel(func(pb *testing.PB) {
			i := rand.IntN(len(addrs))
			for pb.Next() {
				if x.Lookup(addrs[i&(len(addrs)-1)]) == unknownClient {
					panic("not found")
				}
				i++
			}
		})
	})
	b.Run("miss", func(b *testing.B) {
		b.ReportAllocs()
		defer cpu(b)()
		a := netip.MustParseAddr("192.0.2.1")
		for b.Loop() {
			c = x.Lookup(a)
		}
	})
	b.Run("uid", func(b *testing.B) {
		b.ReportAllocs()
		defer cpu(b)()
		i := 0
		for b.Loop() {
			c = x.LookupUID(uids[i&(len(uids)-1)])
			i++
		}
	})
	runtime.KeepAlive(c)
}
