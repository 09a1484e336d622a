package dnstrail

import (
	"os"
	"path/filepath"
	"testing"
)

// TestIdentityByDefault starts in what looks like a pod but has no service account: that is an error only for whoever
// asked for it.
func TestIdentityByDefault(t *testing.T) {
	environment(t)
	t.Setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	if _, err := os.Stat(namespaceFile); err == nil {
		t.Skip("this is a pod")
	}
	index, release, err := takeIndex(&identityConfig{})
	if err != nil || index != nil {
		t.Fatalf("by default: %v, %v", index, err)
	}
	release()
	if _, _, err := takeIndex(&identityConfig{source: identityKubernetes}); err == nil {
		t.Error("asked for, it gives no error")
	}
	file := filepath.Join(t.TempDir(), "clients.yaml")
	if err := os.WriteFile(file, []byte("clients: [{addresses: [192.0.2.1], node: a, colour: red}]\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := takeIndex(&identityConfig{source: identityFile, file: file}); err == nil {
		t.Error("a wrong file gives no error")
	}
}
