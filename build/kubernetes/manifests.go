// Package kubernetes is the manifests that dnstrail is deployed with, for "dnstrail install" to carry. A test holds
// the chart against them.
package kubernetes

import _ "embed" // the files beside this one

// The objects of a cluster with dnstrail, each file as it is: YAML documents.
var (
	//go:embed rbac.yaml
	RBAC string
	//go:embed store.yaml
	Store string
	//go:embed agent.yaml
	Agent string
)

// CoreDNSPatch is the strategic merge patch for CoreDNS's Deployment, YAML.
//
//go:embed coredns-patch.yaml
var CoreDNSPatch string

// Corefile is a ConfigMap with a Corefile that has the dnstrail block, YAML.
//
//go:embed corefile.yaml
var Corefile string
