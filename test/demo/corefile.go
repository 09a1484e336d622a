package main

import (
	"fmt"

	"github.com/dnstrail/dnstrail/test/lab"
)

// chain is what stands below the dnstrail block: as in a cluster, but its zone comes from a file, since there is no API
// server.
func chain(zone string) string {
	return fmt.Sprintf(`errors
    prometheus 0.0.0.0:9153
    file %s cluster.local
    cache 30
    forward . %s`, zone, lab.UpstreamV4)
}

// clusterZone is what plugin kubernetes would make of a few Services.
const clusterZone = `$ORIGIN cluster.local.
$TTL 5
@                        IN SOA ns.dns hostmaster 1 7200 1800 86400 5
@                        IN NS  ns.dns
ns.dns                   IN A   10.96.0.10
kubernetes.default.svc   IN A   10.96.0.1
kube-dns.kube-system.svc IN A   10.96.0.10
checkout.shop.svc        IN A   10.96.7.21
cart.shop.svc            IN A   10.96.7.22
`
