package dnstrail

import (
	"testing"
	"unsafe"

	"github.com/miekg/dns"
)

// deep uses up about as much stack as the chain of plugins does for a cached answer, and gives what it was given.
//
//go:noinline
func deep(n int, sum byte) byte {
	var frame [256]byte
	if n == 0 {
		return sum
	}
	frame[n] = sum
	return deep(n-1, frame[n]) + frame[n+1]
}

// moves says whether the stack of a new goroutine has moved after before, when deep is done.
func moves(before func()) bool {
	moved := make(chan bool)
	go func() {
		var mark byte
		before()
		at := uintptr(unsafe.Pointer(&mark))
		mark = deep(8, mark)
		moved <- uintptr(unsafe.Pointer(&mark)) != at
	}()
	return <-moved
}

func TestReservedStackDoesNotMove(t *testing.T) {
	if !moves(func() {}) {
		t.Fatal("the stack of a new goroutine has room for what this test calls: it proves nothing")
	}
	growEarly.Store(true)
	accept := growing(func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept })
	if moves(func() { accept(dns.Header{}) }) {
		t.Error("the stack moved after it had been reserved")
	}
}

func TestGrowingAcceptsTheSame(t *testing.T) {
	for _, want := range []dns.MsgAcceptAction{dns.MsgAccept, dns.MsgReject, dns.MsgIgnore, dns.MsgRejectNotImplemented} {
		var got dns.Header
		accept := growing(func(h dns.Header) dns.MsgAcceptAction { got = h; return want })
		if action := accept(dns.Header{Id: 7, Qdcount: 1}); action != want || got.Id != 7 || got.Qdcount != 1 {
			t.Errorf("accept gives %v for %+v, want %v", action, got, want)
		}
	}
}

// BenchmarkNewGoroutine is a goroutine a query, as CoreDNS makes them.
func BenchmarkNewGoroutine(b *testing.B) {
	accept := growing(func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept })
	for _, row := range []struct {
		name string
		grow bool
	}{{"grown on the way", false}, {"reserved", true}} {
		b.Run(row.name, func(b *testing.B) {
			growEarly.Store(row.grow)
			done := make(chan byte)
			b.ReportAllocs()
			for b.Loop() {
				go func() {
					accept(dns.Header{})
					done <- deep(8, 0)
				}()
				<-done
			}
		})
	}
}
