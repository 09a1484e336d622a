package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/tracer/kube"
)

// reach gives the URL of the store of the cluster that the kubeconfig names, until the command ends, and says whom it
// asks. It gives "" where there is no such cluster, or where it has no store and this host can be looked at instead.
func reach(cmd *cobra.Command, context string) (string, error) {
	_, store, err := reachCluster(cmd, context)
	return store, err
}

// reachCluster is reach that gives the cluster, too; nil where it gives "".
func reachCluster(cmd *cobra.Command, context string) (*kube.Cluster, string, error) {
	chosen := context != ""
	if !chosen && inPod() {
		return nil, "", nil
	}
	c, err := kube.Connect("", context)
	if errors.Is(err, kube.ErrNoCluster) && !chosen {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	store, err := c.Store(cmd.Context())
	if errors.Is(err, kube.ErrNoStore) && !chosen && os.Geteuid() == 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: %v (dnstrail install brings it): looking at this host\n", err)
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w (dnstrail install brings a store; --store names another)", err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: asking the store of cluster %s\n", c.Name)
	return c, store, nil
}

// inPod tells whether this runs in a pod and no kubeconfig says otherwise: an agent's, which has its own node to look
// at.
func inPod() bool { return os.Getenv("KUBERNETES_SERVICE_HOST") != "" && os.Getenv("KUBECONFIG") == "" }
