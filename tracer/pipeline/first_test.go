package pipeline_test

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// TestTheFirstLookupIsJudged: a tracer that has seen nothing yet, in a network of which it knows nothing.
func TestTheFirstLookupIsJudged(t *testing.T) {
	r := raise(t, nil)
	rule := lab.DropRule{Proto: unix.IPPROTO_UDP, DstPort: 53}
	at := func(h lab.Hook) lab.DropRule {
		d := rule
		d.Hook = h
		return d
	}
	for _, c := range []struct {
		name  string
		in    *lab.Namespace
		rule  lab.DropRule
		where verdict.Where
	}{
		{"forward, client's node", r.lab.Node("node-1").Namespace, at(lab.Forward), verdict.Node},
		{"leaving the client's node", r.lab.Node("node-1").Namespace, at(lab.Postrouting), verdict.Node},
		{"forward, server's node", r.lab.Node("node-2").Namespace, at(lab.Forward), verdict.Node},
		{"leaving the server's node", r.lab.Node("node-2").Namespace, at(lab.Postrouting), verdict.Node},
		{"input, server's pod", r.server.Namespace, at(lab.Input), verdict.CoreDNSSocket},
		{"output, client", r.client.Namespace, at(lab.Output), verdict.Client},
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, IPv6 %v", c.name, v6), func(t *testing.T) {
				undo, err := c.in.Drop(c.rule)
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := undo(); err != nil {
						t.Error(err)
					}
				}()
				r.trace(t, all(r))
				name := fmt.Sprintf("first-%d.test.", time.Now().UnixNano())
				if err := r.ask(t, "udp", service(v6), name, 500*time.Millisecond); err == nil {
					t.Fatal("was answered")
				}
				if got := r.wait(t, name, 1).verdict; got.Where != c.where || got.Cause != verdict.CausePolicyDrop {
					t.Errorf("%s/%s, want %s: %s %q", got.Where, got.Cause, c.where, got.Text, got.Evidence)
				}
			})
		}
	}
}
