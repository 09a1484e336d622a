package bpf

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"
)

// TestDataInPagesIsRead sends data over TCP, which the kernel keeps in pages, and reads it by each way that some
// kernel has.
func TestDataInPagesIsRead(t *testing.T) {
	for _, tt := range []struct {
		name    string
		without []string
		read    bool
	}{
		{"the program reads pages", []string{}, true},
		{"the kernel copies packets", []string{featureDynptr}, true},
		{"neither", []string{featureDynptr, featureSKBOutput}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := craftWith(t, tt.without)
			var sent bytes.Buffer
			err := c.pod.Do(func() error {
				l, err := net.Listen("tcp", "127.0.0.1:53")
				if err != nil {
					return err
				}
				defer func() { _ = l.Close() }()
				client, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					return err
				}
				defer func() { _ = client.Close() }()
				server, err := l.Accept()
				if err != nil {
					return err
				}
				defer func() { _ = server.Close() }()
				for i := range 20 {
					part := bytes.Repeat([]byte{byte('a' + i)}, 1+i*100)
					sent.Write(part)
					if _, err := client.Write(part); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			last, next := uint64(0), uint32(0)
			events, payloads := c.events(300 * time.Millisecond)
			for i, e := range events {
				if e.Time < last {
					t.Errorf("event %d comes before one that happened %d ns earlier", i, last-e.Time)
				}
				last = e.Time
				if e.Addr.DstPort != 53 || e.PayloadLen == 0 {
					continue
				}
				if next != 0 && e.Seq != next {
					t.Errorf("event %d is of byte %d of the stream, the one before it ended at %d", i, e.Seq, next)
				}
				next = e.Seq + e.PayloadLen
				got.WriteString(payloads[i])
				if paged := e.Flags&FlagPaged != 0; paged == tt.read {
					t.Errorf("event %d of %d bytes, %d captured, is marked as not read: %v", i, e.PayloadLen, e.Captured, paged)
				}
			}
			want := sent.String()
			if !tt.read {
				want = ""
			}
			if got.String() != want {
				t.Errorf("read %d bytes, sent %d, first %.20q", got.Len(), sent.Len(), got.String())
			}
			losses, err := c.tracer.Losses()
			if err != nil {
				t.Fatal(err)
			}
			if counted := losses.Paged > 0; counted == tt.read {
				t.Errorf("%d packets are counted as not read", losses.Paged)
			}
			if said := strings.Contains(strings.Join(c.tracer.Missing, "\n"), "DNS over TCP is not seen"); said == tt.read {
				t.Errorf("missing: %q", c.tracer.Missing)
			}
		})
	}
}

func TestPagedRecordsThatLie(t *testing.T) {
	raw := make([]byte, pagedHead+20)
	e := eventOf(raw)
	for _, tt := range []struct {
		name     string
		size     int
		skip     byte
		captured uint16
		ok       bool
	}{
		{"whole", pagedHead + 20, 4, 16, true},
		{"the payload ends behind the packet", pagedHead + 20, 5, 16, false},
		{"the payload starts behind the packet", pagedHead + 20, 21, 0, false},
		{"no packet", pagedHead, 0, 0, true},
		{"no head", pagedHead - 1, 0, 0, false},
		{"nothing", 0, 0, 0, false},
	} {
		raw[eventSize], e.Captured = tt.skip, tt.captured
		p, err := decodePaged(raw[:tt.size])
		if (err == nil) != tt.ok || tt.ok && len(p.payload) != int(tt.captured) {
			t.Errorf("%s: %d bytes, %v", tt.name, len(p.payload), err)
		}
	}
}
