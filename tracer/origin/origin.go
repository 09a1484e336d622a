// Package origin tells who asked: the pod, workload, container and node behind a lookup's process or address.
package origin

import (
	"net/netip"
	"time"

	"github.com/dnstrail/dnstrail/plugin/identity"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// Origin is who asked. What is not known is empty.
type Origin struct {
	Kind           identity.Kind
	Namespace, Pod string
	PodUID         string
	WorkloadKind   string
	Workload       string
	Node           string
	ServiceAccount string
	Labels         map[string]string
	ContainerID    string
	Process        string
	PID            uint32
	Addr           netip.Addr
}

// Name gives the shortest name that tells an operator who this is: namespace/pod, the node, the process, or the address.
func (o *Origin) Name() string {
	switch {
	case o.Pod != "":
		return o.Namespace + "/" + o.Pod
	case o.Node != "":
		return o.Node
	}
	return o.Addr.String()
}

// Resolver finds origins. It is for one goroutine. The zero value knows processes and addresses alone.
type Resolver struct {
	// Index knows pods by address and UID; nil knows nobody.
	Index *identity.Index
	// Cgroups gives the path of a cgroup; nil knows none.
	Cgroups *Cgroups

	cache map[cacheKey]*Origin
	until time.Time
}

type cacheKey struct {
	addr   netip.Addr
	cgroup uint64
	pid    uint32
	name   string
}

// The cache spares the path of a cgroup and the strings of a pod for every lookup; pods come and go, so that it does not last.
const (
	cacheFor = 2 * time.Second
	maxCache = 16384
)

// Of tells who asked. The pod is found by the UID in the process's cgroup, else by the client's address. What it gives is shared and must not be changed.
func (r *Resolver) Of(l *lookup.Lookup, now time.Time) *Origin {
	k := cacheKey{addr: l.Client.AddrPort().Addr()}
	if l.Process != nil {
		k.cgroup, k.pid, k.name = l.Process.CgroupID, l.Process.PID, l.Process.Name
	}
	if r.cache == nil || now.After(r.until) || len(r.cache) >= maxCache {
		r.cache = make(map[cacheKey]*Origin)
		r.until = now.Add(cacheFor)
	}
	if o := r.cache[k]; o != nil {
		return o
	}
	o := r.find(k)
	r.cache[k] = o
	return o
}

func (r *Resolver) find(k cacheKey) *Origin {
	o := &Origin{Addr: k.addr, Process: k.name, PID: k.pid}
	var c *identity.Client
	if r.Cgroups != nil && k.cgroup != 0 {
		pod, container := ParseCgroup(r.Cgroups.Path(k.cgroup))
		o.PodUID, o.ContainerID = pod, container
		if pod != "" && r.Index != nil {
			c = r.Index.LookupUID(pod)
		}
	}
	if r.Index != nil && (c == nil || c.Kind() == identity.Unknown) {
		if byAddr := r.Index.Lookup(k.addr); o.PodUID == "" || byAddr.UID() == o.PodUID {
			c = byAddr
		}
	}
	if c == nil {
		return o
	}
	d := c.Describe()
	o.Kind, o.Namespace, o.Pod, o.WorkloadKind, o.Workload = d.Kind, d.Namespace, d.Pod, d.WorkloadKind, d.Workload
	o.Node, o.ServiceAccount, o.Labels = d.Node, d.ServiceAccount, d.Labels
	if d.UID != "" {
		o.PodUID = d.UID
	}
	return o
}
