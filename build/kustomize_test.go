package build

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestKustomizationOwnsNothingOfTheClusters: what `kubectl apply -k` brings, `kubectl delete -k` takes away. CoreDNS's
// own ConfigMap must not be among it.
func TestKustomizationOwnsNothingOfTheClusters(t *testing.T) {
	b, err := os.ReadFile("kubernetes/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var k struct{ Resources []string }
	if err := yaml.Unmarshal(b, &k); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(k.Resources, "agent.yaml") || !slices.Contains(k.Resources, "store.yaml") {
		t.Errorf("the resources are %v", k.Resources)
	}
	for _, f := range k.Resources {
		for _, o := range manifests(t, filepath.Join("kubernetes", f)) {
			if c, ok := o.(*corev1.ConfigMap); ok {
				t.Errorf("%s: ConfigMap %s/%s", f, c.Namespace, c.Name)
			}
		}
	}
}
