package lab

import (
	"fmt"
	"io"
	"net/netip"

	"sigs.k8s.io/yaml"
)

type client struct {
	Addresses      []netip.Addr      `json:"addresses"`
	Namespace      string            `json:"namespace,omitempty"`
	Pod            string            `json:"pod,omitempty"`
	UID            string            `json:"uid,omitempty"`
	Workload       *Workload         `json:"workload,omitempty"`
	Node           string            `json:"node,omitempty"`
	ServiceAccount string            `json:"serviceAccount,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
}

// WriteIdentities writes who has which address, as docs/architecture.md says: every pod there is now, and the nodes.
func (l *Lab) WriteIdentities(w io.Writer) error {
	var file struct {
		Clients []client `json:"clients"`
	}
	for _, p := range l.Pods() {
		file.Clients = append(file.Clients, client{
			Addresses: []netip.Addr{p.V4, p.V6}, Namespace: p.PodSpec.Namespace, Pod: p.Name, UID: p.UID, Workload: &p.Workload,
			Node: p.Node.Name, ServiceAccount: p.ServiceAccount, Labels: p.Labels,
		})
	}
	for _, n := range l.nodes {
		file.Clients = append(file.Clients,
			client{Addresses: []netip.Addr{n.V4, n.V6, n.PodsV4.Addr().Next(), n.PodsV6.Addr().Next()}, Node: n.Name})
	}
	b, err := yaml.Marshal(file)
	if err != nil {
		return fmt.Errorf("identities: %w", err)
	}
	_, err = w.Write(b)
	return err
}
