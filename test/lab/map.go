package lab

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// Map gives a table of what the lab holds: name, addresses, network namespace.
func (l *Lab) Map() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "WHAT\tIPV4\tIPV6\tNETNS\tNOTE\n")
	for _, n := range l.nodes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\tpods in %s, %s\n", n.Name, n.V4, n.V6, n.Inode(), n.PodsV4, n.PodsV6)
		for _, p := range l.Pods() {
			if p.Node == n {
				fmt.Fprintf(w, "  %s/%s\t%s\t%s\t%d\t%s\n", p.PodSpec.Namespace, p.Name, p.V4, p.V6, p.Inode(), p.HostVeth)
			}
		}
	}
	fmt.Fprintf(w, "upstream\t%s\t%s\t%d\t\n", UpstreamV4, UpstreamV6, l.Upstream.Inode())
	fmt.Fprintf(w, "underlay\t%s\t%s\t%d\tbridge %s\n", routerV4.Addr(), routerV6.Addr(), l.Underlay.Inode(),
		underlayBridge)
	fmt.Fprintf(w, "service\t%s\t%s\t\tto %v\n", ServiceV4, ServiceV6, l.Service.Endpoints())
	_ = w.Flush() // strings.Builder does not fail
	return b.String()
}
