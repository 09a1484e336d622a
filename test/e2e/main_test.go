// Package e2e holds the end-to-end tests: the real CoreDNS and agent on real packets in the lab, seen through a real
// Jaeger and a real Prometheus.
package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	if spec := os.Getenv(clientEnv); spec != "" {
		if err := runClient(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// binaries gives the directory of the built coredns and dnstrail. Without root the test is skipped, except in CI.
func binaries(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root, for network namespaces and eBPF")
	}
	bin := os.Getenv("DNSTRAIL_BIN")
	if bin == "" {
		t.Fatal("DNSTRAIL_BIN is not set: run make test-system, which builds what is tested")
	}
	return bin
}

// up raises a cluster with two client pods, one on each node, for as long as the test runs.
func up(t *testing.T, c cluster.Config) (*cluster.Cluster, []*lab.Pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i, name := range []string{"cart", "checkout"} {
		c.Pods = append(c.Pods, lab.PodSpec{Node: fmt.Sprint("node-", i+1), Namespace: "shop",
			Workload: lab.Workload{Kind: "Deployment", Name: name}})
	}
	k, err := cluster.Up(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Down(); err != nil {
			t.Errorf("take the cluster down: %v", err)
		}
		if t.Failed() {
			t.Logf("CoreDNS wrote:\n%s", cluster.Tail(k.CoreDNS))
			for _, a := range k.Agents {
				t.Logf("the agent wrote:\n%s", cluster.Tail(a))
			}
		}
	})
	return k, k.Clients
}
