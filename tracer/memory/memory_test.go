package memory

import (
	"os"
	"path/filepath"
	"testing"
)

func TestBudget(t *testing.T) {
	for text, want := range map[string]int64{
		"256MiB": 256 << 20, "1Gi": 1 << 30, "65536Ki": 64 << 20, "268435456": 256 << 20, "2GiB": 2 << 30,
		"": 0, "max": 0, "1": 0, "-1GiB": 0, "31MiB": 0, "1.5GiB": 0, "9999999999GiB": 0, "256MB": 0,
	} {
		var b Budget
		if err := b.Set(text); (err == nil) != (want != 0) || int64(b) != want {
			t.Errorf("%q: %d, %v, want %d", text, b, err, want)
		}
	}
	b := Budget(256 << 20)
	if b.String() != "256MiB" || b.Share(1, 4) != 64<<20 || b.Or() != b {
		t.Errorf("%v, %d, %v", &b, b.Share(1, 4), b.Or())
	}
}

// TestCgroup: the limit of the cgroup itself or of one above it, whichever is less, of both versions.
func TestCgroup(t *testing.T) {
	for name, tc := range map[string]struct {
		self  string
		files map[string]string
		want  int64
	}{
		"none": {"0::/\n", nil, 0},
		"max":  {"0::/a\n", map[string]string{"a/memory.max": "max\n"}, 0},
		"its own": {"0::/a/b\n", map[string]string{"a/memory.max": "max\n", "a/b/memory.max": "268435456\n"},
			256 << 20},
		"above": {"0::/a/b\n", map[string]string{"a/memory.max": "134217728", "a/b/memory.max": "268435456"},
			128 << 20},
		"namespace":      {"0::/\n", map[string]string{"memory.max": "268435456"}, 256 << 20},
		"beyond its own": {"0::/../x\n", map[string]string{"memory.max": "268435456"}, 256 << 20},
		"version 1": {"7:cpu,memory:/p\n1:name=systemd:/p\n",
			map[string]string{"memory/p/memory.limit_in_bytes": "268435456"}, 256 << 20},
		"version 1, none": {"7:memory:/p\n", map[string]string{"memory/p/memory.limit_in_bytes": "9223372036854771712"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			self := filepath.Join(t.TempDir(), "cgroup")
			if err := os.WriteFile(self, []byte(tc.self), 0o600); err != nil {
				t.Fatal(err)
			}
			for path, text := range tc.files {
				path = filepath.Join(root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := cgroup(self, root); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
		})
	}
}

func TestGauge(t *testing.T) {
	if g := (Gauge{Budget: 1 << 50}); g.Pressed() {
		t.Error("pressed with nearly all free")
	}
	if g := (Gauge{Budget: 8}); !g.Pressed() {
		t.Error("not pressed with nothing free")
	}
}
