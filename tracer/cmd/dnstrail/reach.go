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
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" && os.Getenv("KUBECONFIG") == "" {
		return "", nil // in a pod: an agent's, which has its own node to look at
	}
	c, err := kube.Connect("", context)
	if errors.Is(err, kube.ErrNoCluster) && context == "" {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	store, err := c.Store(cmd.Context())
	if errors.Is(err, kube.ErrNoStore) && context == "" && os.Geteuid() == 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: %v (dnstrail install brings it): looking at this host\n", err)
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%w (dnstrail install brings a store; --store names another)", err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: asking the store of cluster %s\n", c.Name)
	return store, nil
}
