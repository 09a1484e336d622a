package identity

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func isOpen(path string) bool {
	for _, s := range Sources() {
		if s.Name() == "file "+path {
			return true
		}
	}
	return false
}

func TestSourceIsSharedAndLingers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.yaml")
	write(t, path, example)
	acquire := func() *Source {
		s, err := AcquireFile(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b := acquire(), acquire()
	if a.Index() != b.Index() {
		t.Fatal("two server blocks have two sources")
	}
	a.Release()
	a.Release() // the second one is not b's
	if !isOpen(path) {
		t.Fatal("closed while one uses it")
	}
	known := b.Index()
	b.Release()
	// A reload that lets go first and takes then finds it warm.
	c := acquire()
	if c.Index() != known || c.Index().Lookup(netip.MustParseAddr("10.244.1.10")).Kind() != Pod {
		t.Error("a reload starts anew")
	}
	c.once.Do(func() { c.shared.release(10 * time.Millisecond) })
	eventually(t, "the unused source is closed", func() bool { return !isOpen(path) })
	d := acquire()
	defer d.Release()
	if d.Index() == known {
		t.Error("a closed source was handed out")
	}
}

func TestSourcesThatCannotBeOpened(t *testing.T) {
	if _, err := AcquireFile(filepath.Join(t.TempDir(), "none.yaml"), nil); err == nil ||
		!strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("file: %v", err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := AcquireKubernetes(KubernetesConfig{}); err == nil || !strings.Contains(err.Error(), "no kubeconfig") {
		t.Errorf("not in a cluster: %v", err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte("clusters: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := AcquireKubernetes(KubernetesConfig{Kubeconfig: path}); err == nil ||
		!strings.Contains(err.Error(), path) {
		t.Errorf("kubeconfig: %v", err)
	}
}
