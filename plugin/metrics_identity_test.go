package dnstrail

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dnstrail/dnstrail/identity"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestIdentitySourcesAreTold(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "identity\xff.yaml") // a file name may be anything; a label value may not
	if err := os.WriteFile(path, []byte("clients:\n- {addresses: [10.0.0.1, 10.0.0.2], node: n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := identity.AcquireFile(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Release()

	// An API server that is away: a port that nothing listens on.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{clusters: [{name: c, cluster: {server: "http://`+addr+
		`"}}], contexts: [{name: c, context: {cluster: c}}], current-context: c}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cluster, err := identity.AcquireKubernetes(identity.KubernetesConfig{Kubeconfig: kubeconfig})
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Release()

	problems, err := testutil.CollectAndLint(newIdentitySources())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	name := "file " + strings.ToValidUTF8(path, "\uFFFD")
	want := `
# HELP coredns_dnstrail_identity_addresses Addresses by which clients are known.
# TYPE coredns_dnstrail_identity_addresses gauge
coredns_dnstrail_identity_addresses{source="` + name + `"} 2
coredns_dnstrail_identity_addresses{source="kubernetes ` + kubeconfig + `"} 0
# HELP coredns_dnstrail_identity_synced Whether all objects of a resource have been read once: 1 or 0. Of pods: until then clients are ` + "`unknown`" + `.
# TYPE coredns_dnstrail_identity_synced gauge
coredns_dnstrail_identity_synced{resource="file",source="` + name + `"} 1
coredns_dnstrail_identity_synced{resource="jobs",source="kubernetes ` + kubeconfig + `"} 0
coredns_dnstrail_identity_synced{resource="nodes",source="kubernetes ` + kubeconfig + `"} 0
coredns_dnstrail_identity_synced{resource="pods",source="kubernetes ` + kubeconfig + `"} 0
coredns_dnstrail_identity_synced{resource="replicasets",source="kubernetes ` + kubeconfig + `"} 0
`
	if err := testutil.CollectAndCompare(newIdentitySources(), strings.NewReader(want),
		"coredns_dnstrail_identity_addresses", "coredns_dnstrail_identity_synced"); err != nil {
		t.Error(err)
	}
}
