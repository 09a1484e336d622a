// Package bpf is the kernel side of the tracer and its loader: src holds the eBPF program, [Open] loads it and attaches it to
// its hooks, and [Tracer.Read] gives what it saw, one [Event] a DNS packet and hook.
//
// The program keeps no state, so that nothing can be evicted in the kernel; it never changes or delays a packet. Its own losses are counted ([Tracer.Losses]).
// The object is committed, built from src by `go generate`; building dnstrail takes no C compiler.
package bpf
