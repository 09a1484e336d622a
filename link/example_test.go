package link_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/dnstrail/dnstrail/link"
)

// A server derives the trace ID of a query that it has read, and the span that is to be the parent of its own.
func ExampleKey_TraceID() {
	name, err := link.AppendQName(nil, "www.example.org.")
	if err != nil {
		fmt.Println(err)
		return
	}
	key := link.Key{
		Transport: link.UDP,
		Client:    netip.MustParseAddrPort("10.244.1.10:53660"),
		ID:        6699,
		QName:     name,
		QType:     1, // A
		QClass:    1, // IN
	}
	read := time.Date(2026, 11, 27, 3, 0, 0, 0, time.UTC)
	id := key.TraceID(link.EpochOf(read))
	fmt.Println("trace ", id)
	fmt.Println("parent", id.ClientSpanID())
	// Output:
	// trace  692c9443acfb4c33ed229a2451079b90
	// parent 8747fd72af3d7adb
}

// The client's side knows only that the server read the query between two times, and sends its spans under the trace
// IDs of all epochs that this may have been in.
func ExampleEpochs() {
	boundary := link.EpochOf(time.Date(2026, 11, 27, 3, 0, 0, 0, time.UTC)).Start()
	show := func(sent, answered time.Time) {
		first, last := link.Epochs(sent, answered, link.DefaultGuard)
		fmt.Println("trace IDs:", last-first+1)
	}
	show(boundary.Add(2*time.Second), boundary.Add(2*time.Second+time.Millisecond))
	show(boundary.Add(-time.Millisecond), boundary.Add(time.Millisecond))
	// Output:
	// trace IDs: 1
	// trace IDs: 2
}

// Both sides keep the same lookups, with no word between them.
func ExampleRatio_Holds() {
	ratio, err := link.ParseRatio("25%")
	if err != nil {
		fmt.Println(err)
		return
	}
	kept := 0
	for i := range 1000 {
		key := link.Key{
			Transport: link.UDP, Client: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1024+i)),
			QName: []byte{0}, QType: 2, QClass: 1,
		}
		if ratio.Holds(key.TraceID(0)) {
			kept++
		}
	}
	fmt.Println(kept > 200 && kept < 300)
	// Output:
	// true
}

// A forwarder hands its trace on to a server that understands EDNS TRACEPARENT.
func ExampleTraceparent() {
	sent := link.Traceparent{TraceID: link.TraceID{15: 0xab}, SpanID: link.SpanID{7: 0xcd}, Flags: link.FlagSampled}
	data := sent.Append(nil)
	fmt.Println(len(data), "bytes of option", link.OptionTraceparent)

	received, err := link.ParseTraceparent(data)
	fmt.Println(received.TraceID, received.SpanID, err)

	_, err = link.ParseTraceparent(data[:20])
	fmt.Println(err)
	// Output:
	// 27 bytes of option 65500
	// 000000000000000000000000000000ab 00000000000000cd <nil>
	// EDNS TRACEPARENT: 20 bytes, want 27, 26 or 18
}
