package conntrack

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	os.Exit(m.Run())
}

func TestFull(t *testing.T) {
	for _, c := range []struct {
		t    Table
		full bool
	}{{Table{0, 100}, false}, {Table{99, 100}, false}, {Table{100, 100}, true}, {Table{101, 100}, true}, {Table{5, 0},
		false}} {
		if c.t.Full() != c.full {
			t.Errorf("%+v: full %v, want %v", c.t, !c.full, c.full)
		}
	}
}

func TestReadingsAnswerAlikeForATime(t *testing.T) {
	now := time.Unix(1000, 0)
	count, n := 100, 0
	r := Readings{
		read: func(uint32) (Table, error) { n++; return Table{count, 100}, nil },
		now:  func() time.Time { return now },
	}
	drop := now.Add(-300 * time.Millisecond).UnixNano()
	if got, limit, ok := r.After(1, drop); !ok || got != 100 || limit != 100 {
		t.Fatalf("%d of %d, %v", got, limit, ok)
	}
	// It is emptied, and the lookup judged again.
	now, count = now.Add(5*time.Second), 3
	if got, _, _ := r.After(1, drop); got != 100 || n != 1 {
		t.Errorf("asked again of that time: %d, after %d readings", got, n)
	}
	if got, _, _ := r.After(1, now.UnixNano()); got != 3 || n != 2 {
		t.Errorf("asked of now: %d, after %d readings", got, n)
	}
	for i := range 1000 {
		r.After(1, now.Add(time.Duration(i)*time.Second).UnixNano())
		now = now.Add(time.Second)
	}
	if len(r.known[1]) != maxReadings {
		t.Errorf("%d readings are remembered", len(r.known[1]))
	}
}

func TestOwnNamespace(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_max"); err != nil {
		t.Skip("this kernel tracks no connections")
	}
	got, err := Of(uint32(st.Ino))
	if err != nil || got.Max <= 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestAnotherNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI=true allows no skip")
		}
		t.Skip("needs root to make network namespaces")
	}
	l, err := lab.Up(lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	node := l.Node("node-1")
	if _, err := Of(uint32(node.Inode())); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a namespace without a process: %v", err)
	}
	p, err := node.Start(lab.Command{Path: "sleep", Args: []string{"60"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Stop(time.Second) }()
	before, err := Of(uint32(node.Inode()))
	if err != nil || before.Full() {
		t.Fatalf("%+v, %v", before, err)
	}
	undo, err := node.FillConntrack()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Of(uint32(node.Inode())); err != nil || !got.Full() || got.Max != before.Max {
		t.Errorf("filled: %+v, %v", got, err)
	}
	if err := undo(); err != nil {
		t.Fatal(err)
	}
}
