package main

import (
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/test/lab"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

// built gives the directory of the built programs.
func built(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("DNSTRAIL_BIN")
	if os.Geteuid() != 0 || bin == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root and DNSTRAIL_BIN (make test-system), and CI=true allows no skip")
		}
		t.Skip("needs root and DNSTRAIL_BIN: make test-system")
	}
	return bin
}

func TestMatrix(t *testing.T) {
	bin := built(t)
	rows, err := run(t.Context(), options{bin: bin, only: regexp.MustCompile(""), v4: true, v6: true, settings: everywhere,
		core: true, sample: "1", labs: 2}, func(r *row) { t.Log(r.progress()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the fault matrix\n%s", table(rows))
	if err := wrong(rows); err != nil {
		t.Error(err)
	}
}

// At a share of 1 %, what is lost where nobody looks is known as at 100 %: those who saw the lookup are asked.
func TestFewAreKept(t *testing.T) {
	o := options{
		bin: built(t), only: regexp.MustCompile(""), v4: true, settings: inApart, sample: "0.01", labs: 1,
		names: []string{
			"firewall between the nodes, UDP 53 only", "firewall between the nodes, answers only",
			"large answer dropped, small ones pass", "query dropped inside CoreDNS (acl drop)", "CoreDNS stopped (SIGSTOP)",
		},
	}
	rows, err := run(t.Context(), o, func(r *row) { t.Log(r.progress()) })
	if err != nil {
		t.Fatal(err)
	}
	if err := wrong(rows); err != nil || len(rows) != len(o.names) {
		t.Errorf("%d rows, want %d: %v", len(rows), len(o.names), err)
	}
}

// Where the other node's agent is away, the verdict says so, and no more than without asking.
func TestAskedInVain(t *testing.T) {
	s, err := raise(t.Context(), options{bin: built(t), sample: "0.01", v4: true}, inApart, lab.Routed)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.down(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.cluster.Agents[1].Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	f := fault{
		name: "firewall between the nodes, nobody to ask",
		truths: []truth{{
			where: "between-nodes", cause: "no-reply-seen", certain: mustNot,
			text: []string{"node-2 could not be asked", "remembers no such query"},
		}},
		inject: drop(underlay, lab.DropRule{Hook: lab.Switched, Proto: udp, DstPort: 53}),
	}
	r := s.one(t.Context(), &f, families[0], "vain")
	if !r.right() {
		t.Errorf("%s", r.progress())
	}
}
