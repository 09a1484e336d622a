package install

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dnstrail/dnstrail/tracer/kube"
)

// Status is what a cluster has of dnstrail.
type Status struct {
	// Agents of Nodes are ready. Nodes is 0 where there is no agent.
	Agents, Nodes int
	AgentImage    string
	Store         bool
	// CoreDNSImage is "" where no CoreDNS was found, and CoreDNSError says why.
	CoreDNSImage string
	CoreDNSError error
	// Blocks of Servers in the Corefile have dnstrail.
	Blocks, Servers int
	// Noted tells that uninstall knows what CoreDNS was before.
	Noted bool
}

// Look gives what the cluster has. It wraps [ErrAbsent] where there is nothing.
func Look(ctx context.Context, c *kube.Cluster) (*Status, error) {
	s := &Status{}
	labelled := metav1.ListOptions{LabelSelector: kube.AgentLabels}
	agents, err := c.Client.AppsV1().DaemonSets(kube.Namespace).List(ctx, labelled)
	if err != nil {
		return nil, err
	}
	for _, d := range agents.Items {
		s.Agents += int(d.Status.NumberReady)
		s.Nodes += int(d.Status.DesiredNumberScheduled)
		s.AgentImage = d.Spec.Template.Spec.Containers[0].Image
	}
	pods, err := c.Client.CoreV1().Pods(kube.Namespace).List(ctx, metav1.ListOptions{LabelSelector: kube.StoreLabels})
	if err != nil {
		return nil, err
	}
	for _, p := range pods.Items {
		s.Store = s.Store || kube.Ready(&p)
	}
	u, err := loadUndo(ctx, c)
	if err != nil && !apierrors.IsForbidden(err) {
		return nil, err
	}
	s.Noted = u != nil
	d, err := findCoreDNS(ctx, c)
	if err != nil {
		s.CoreDNSError = err
	} else {
		s.CoreDNSImage, _ = d.server()["image"].(string)
		if s.Servers, s.Blocks, err = CountBlocks(d.corefile()); err != nil {
			s.CoreDNSError = err
		}
	}
	if len(agents.Items) == 0 && len(pods.Items) == 0 && s.Blocks == 0 && u == nil {
		return nil, fmt.Errorf("cluster %s: %w", c.Name, ErrAbsent)
	}
	return s, nil
}
