package dnstrail

import (
	"os"
	"sync"

	"github.com/dnstrail/dnstrail/identity"
)

// identityConfig says how clients are identified.
type identityConfig struct {
	source     identitySource
	file       string
	kubeconfig string
	labels     []string
}

type identitySource uint8

const (
	identityDefault identitySource = iota // Kubernetes in a pod, nothing outside
	identityKubernetes
	identityFile
	identityMetadata // what plugin kubernetes says in its metadata
	identityNone
)

// inCluster says whether we run in a pod.
func inCluster() bool { return os.Getenv("KUBERNETES_SERVICE_HOST") != "" }

// takeIndex gives the index for a configuration, nil if nobody is identified, and a function that gives it back.
// Package identity shares what is asked for in the same way, over server blocks and reloads.
func takeIndex(c *identityConfig) (*identity.Index, func(), error) {
	var s *identity.Source
	var err error
	switch {
	case c.source == identityFile:
		s, err = identity.AcquireFile(
			c.file, func(err error) { log.Warningf("identity file: %v; what was known stays", err) })
	case c.source == identityKubernetes, c.source == identityDefault && inCluster():
		s, err = identity.AcquireKubernetes(identity.KubernetesConfig{Kubeconfig: c.kubeconfig, Labels: c.labels,
			Local: os.Getenv("NODE_NAME")})
	default:
		return nil, func() {}, nil
	}
	if err != nil && c.source == identityDefault { // nobody has asked for it: CoreDNS is not to fail for it
		log.Warningf("clients are not identified: %v", err)
		return nil, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return s.Index(), sync.OnceFunc(s.Release), nil
}
