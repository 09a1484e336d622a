// Package origin tells who asked: the pod, workload, container and node behind a lookup's process or address.
package origin

import (
	"net/netip"
	"time"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/tracer/hop"
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
	Addr           netip.Addr // that the client asked from: of a socket that is bound to none 0.0.0.0 or ::
	OwnAddr        netip.Addr // of the pod or node itself, of the same family; invalid if it is not known or has several
}

// Name gives the shortest name that tells an operator who this is: namespace/pod, the node, the process, or the
// address.
func (o *Origin) Name() string {
	switch {
	case o.Pod != "":
		return o.Namespace + "/" + o.Pod
	case o.Node != "":
		return o.Node
	}
	return o.Addr.String()
}

// From gives where the client asked from: of a socket that is bound to no address, as one is that never sent, the
// address of the pod or node itself. Invalid if that is not known.
func (o *Origin) From(client netip.AddrPort) netip.AddrPort {
	if !client.Addr().IsUnspecified() {
		return client
	}
	if o == nil || !o.OwnAddr.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(o.OwnAddr, client.Port())
}

// Resolver finds origins. It is for one goroutine. The zero value knows processes and addresses alone.
type Resolver struct {
	// Index knows pods by address and UID; nil knows nobody.
	Index *identity.Index
	// InNetNS gives who is in the network namespace with that inode number, nil if that is not known. It must not wait. It
	// is asked of clients whose address tells nobody, as a loopback address. Nil knows nobody.
	InNetNS func(netns uint32) *identity.Client
	// Cgroups gives the path of a cgroup; nil knows none.
	Cgroups *Cgroups

	cache map[cacheKey]*Origin
	until time.Time
	near  [64]near // by network namespace and address, before the cache
}

// near is who asked lately from an address.
type near struct {
	origin  *Origin // nil: nobody
	process *hop.Process
	addr    [16]byte
	netns   uint32
}

type cacheKey struct {
	addr   netip.Addr
	netns  uint32
	cgroup uint64
	pid    uint32
	name   string
}

// The cache spares the path of a cgroup and the strings of a pod for every lookup; pods come and go, so that it does
// not last.
const (
	cacheFor = 2 * time.Second
	maxCache = 16384
)

// Of tells who asked. The pod is found by the UID in the process's cgroup, else by the client's address, else by its
// network namespace. What it gives is shared and must not be changed.
func (r *Resolver) Of(l *lookup.Lookup, now time.Time) *Origin {
	if r.cache == nil || now.After(r.until) || len(r.cache) >= maxCache {
		r.cache = make(map[cacheKey]*Origin)
		r.until = now.Add(cacheFor)
		r.near = [len(r.near)]near{}
	}
	n := &r.near[(l.ClientNetNS+uint32(l.Client.Addr[15]))%uint32(len(r.near))]
	if n.origin != nil && n.process == l.Process && n.netns == l.ClientNetNS && n.addr == l.Client.Addr {
		return n.origin
	}
	k := cacheKey{addr: l.Client.AddrPort().Addr(), netns: l.ClientNetNS}
	if l.Process != nil {
		k.cgroup, k.pid, k.name = l.Process.CgroupID, l.Process.PID, l.Process.Name
	}
	o := r.cache[k]
	if o == nil {
		o = r.find(k)
		r.cache[k] = o
	}
	*n = near{o, l.Process, l.Client.Addr, l.ClientNetNS}
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
	if r.InNetNS != nil && k.netns != 0 && (c == nil || c.Kind() == identity.Unknown || c.Kind() == identity.External) {
		if in := r.InNetNS(k.netns); in != nil && (o.PodUID == "" || in.UID() == o.PodUID) {
			c = in
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
	o.OwnAddr = own(d.Addrs, k.addr)
	return o
}

// own gives the only one of some addresses that is of the family of another; invalid if there is none, or several are.
func own(addrs []netip.Addr, like netip.Addr) (found netip.Addr) {
	for _, a := range addrs {
		if a.Is4() != like.Is4() {
			continue
		}
		if found.IsValid() {
			return netip.Addr{}
		}
		found = a
	}
	return found
}
