// Package bpf is the kernel side of the tracer and its loader: src holds the eBPF program, [Open] loads it and attaches
// it to its hooks, and [Tracer.Read] gives what it saw, one [Event] a DNS packet and hook.
//
// The program holds no lookups, so that none can be evicted in the kernel. What it remembers of fragments, translations
// and sends is bounded. It never changes a packet. Its own losses are counted ([Tracer.Losses]).
// The object is committed, built from src by `go generate`; building dnstrail takes no C compiler.
package bpf
