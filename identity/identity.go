// Package identity tells who stands behind a client address: the pod, its workload and its node.
//
// A source (the Kubernetes API, or a file outside Kubernetes) writes what it knows into an [Index]; a query path reads
// from it with [Index.Lookup], which takes no lock, does not allocate and always gives an answer. What an answer means,
// and when it is a guess, is said by its [Kind]:
//
//   - an address that several pods share is never given to one of them: a pod in the host's network is told as its
//     node;
//   - an address that several pods are told to have at once, as while they swap addresses, belongs to the one that came
//     by it last;
//   - a pod that was deleted is still found for a while, because its last queries arrive after it is gone;
//   - what the source cannot know yet is [Unknown], and only what it does know to be outside is [External].
//
// The package imports nothing of CoreDNS: the plugin and the tracer both use it.
package identity

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unique"
)

// Kind says what a client is.
type Kind uint8

// The kinds. The zero value is Unknown.
const (
	// Unknown is a client that the source cannot tell: it has not read everything yet, or the address is one of the
	// cluster's that no known pod has.
	Unknown Kind = iota
	// Pod is a pod with an address of its own.
	Pod
	// Node is a node, or some process or pod in its host network.
	Node
	// NodeLocalDNS is a NodeLocal DNSCache: it asks for pods of its node, which it hides.
	NodeLocalDNS
	// External is a client that is neither a pod nor a node of the cluster, or is not in the file.
	External
)

// String gives the value of the attribute dnstrail.client.kind: "unknown", "pod", "node", "nodelocaldns" or "external".
func (k Kind) String() string {
	switch k {
	case Pod:
		return "pod"
	case Node:
		return "node"
	case NodeLocalDNS:
		return "nodelocaldns"
	case External:
		return "external"
	}
	return "unknown"
}

// Description is a client in plain words: what [NewClient] takes and what [Client.Describe] gives. What is not known is
// empty.
type Description struct {
	Kind           Kind
	Namespace      string
	Pod            string // the pod's name
	UID            string // the pod's UID: a UUID, or the 32 hexadecimal digits of a static pod; anything else is dropped
	WorkloadKind   string // "Deployment", "StatefulSet", ...; "Pod" for one that nothing owns
	Workload       string
	Node           string
	ServiceAccount string
	Labels         map[string]string // the chosen ones only
	Addrs          []netip.Addr
}

// Client is a client as an [Index] holds it: immutable, small (what the pods of a workload have in common is held once)
// and valid for as long as the caller likes, also after the index has dropped it.
type Client struct {
	group unique.Handle[group]
	node  unique.Handle[host]
	pod   string // the pod's name, or what follows its workload's name in it
	uid   uid
	addr  [16]byte // the first address; all zero if there is none
	more  *address // the others, if there are any
	start uint32   // seconds since 1970: the last sign that it has its addresses
	tail  bool     // whether pod is to be read after the workload's name
	dash  bool     // whether the UID is written with dashes
}

// host is a pod's node as the pod tells it, or any other client's node by its name alone.
type host struct {
	name  string
	addrs string // 16 bytes each
}

// address is one address more of a client.
type address struct {
	addr [16]byte
	next *address
}

// group is what the pods of one workload have in common, and what a [Group] points to.
type group struct {
	kind           Kind
	namespace      string
	workloadKind   string
	workload       string
	serviceAccount string
	labels         string // key, NUL, value, NUL, ... in order of keys
}

// Group stands for the clients of one kind that share namespace, workload, service account and chosen labels. Groups
// are equal (==) exactly if all of that is; one is as cheap as a pointer as the key of a map.
type Group struct{ handle unique.Handle[group] }

// NewClient makes a client. Unusable UIDs and addresses are dropped; the source that reads them says so where it
// matters.
func NewClient(d Description) *Client { return newClient(d, 0) }

func newClient(d Description, start uint32) *Client {
	c := &Client{
		group: unique.Make(group{
			kind:           d.Kind,
			namespace:      d.Namespace,
			workloadKind:   d.WorkloadKind,
			workload:       d.Workload,
			serviceAccount: d.ServiceAccount,
			labels:         joinLabels(d.Labels),
		}),
		node:  unique.Make(host{name: d.Node}),
		start: start,
	}
	name := d.Pod
	if rest, ok := strings.CutPrefix(d.Pod, d.Workload); ok && d.Workload != "" {
		name, c.tail = rest, true
	}
	c.pod = strings.Clone(name) // the original may be a part of a large buffer
	c.uid, c.dash, _ = parseUID(d.UID)
	addrs := make([]netip.Addr, 0, len(d.Addrs))
	for _, a := range d.Addrs {
		if a = a.Unmap().WithZone(""); a.IsValid() && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) > 0 {
		c.addr = addrs[0].As16()
	}
	for i := len(addrs) - 1; i > 0; i-- {
		c.more = &address{addrs[i].As16(), c.more}
	}
	return c
}

// Kind says what the client is.
func (c *Client) Kind() Kind { return c.group.Value().kind }

// Namespace is the pod's namespace.
func (c *Client) Namespace() string { return c.group.Value().namespace }

// Pod is the pod's name. It may allocate.
func (c *Client) Pod() string {
	if c.tail {
		return c.group.Value().workload + c.pod
	}
	return c.pod
}

// WorkloadKind is the kind of what owns the pod: "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job",
// "CronJob", the kind of a custom resource, or "Pod" where nothing owns it.
func (c *Client) WorkloadKind() string { return c.group.Value().workloadKind }

// Workload is the name of what owns the pod.
func (c *Client) Workload() string { return c.group.Value().workload }

// Node is the name of the node.
func (c *Client) Node() string { return c.node.Value().name }

// NodeAddr gives the first address of the node, as the pod tells it; false where none is known.
func (c *Client) NodeAddr() (netip.Addr, bool) {
	addrs := c.node.Value().addrs
	if len(addrs) < 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte([]byte(addrs[:16]))).Unmap(), true
}

// ServiceAccount is the name of the pod's service account.
func (c *Client) ServiceAccount() string { return c.group.Value().serviceAccount }

// Group is what the client has in common with the other pods of its workload.
func (c *Client) Group() Group { return Group{c.group} }

// UID is the pod's UID as Kubernetes writes it. It allocates.
func (c *Client) UID() string {
	if c.uid == (uid{}) {
		return ""
	}
	return c.uid.format(c.dash)
}

// Labels gives the chosen labels of the pod, in order of their keys.
func (c *Client) Labels() iter.Seq2[string, string] { return splitLabels(c.group.Value().labels) }

// Addrs gives the client's addresses, the one Kubernetes calls the pod's IP first.
func (c *Client) Addrs() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		if c.addr == ([16]byte{}) || !yield(netip.AddrFrom16(c.addr).Unmap()) {
			return
		}
		for m := c.more; m != nil; m = m.next {
			if !yield(netip.AddrFrom16(m.addr).Unmap()) {
				return
			}
		}
	}
}

// has says whether a is one of the client's addresses.
func (c *Client) has(a netip.Addr) bool {
	for b := range c.Addrs() {
		if a == b {
			return true
		}
	}
	return false
}

// Describe gives everything about the client at once. It allocates.
func (c *Client) Describe() Description {
	g := c.group.Value()
	d := Description{
		Kind: g.kind, Namespace: g.namespace, Pod: c.Pod(), UID: c.UID(), WorkloadKind: g.workloadKind, Workload: g.workload,
		Node: c.Node(), ServiceAccount: g.serviceAccount, Addrs: slices.Collect(c.Addrs()),
	}
	if g.labels != "" {
		d.Labels = maps.Collect(c.Labels())
	}
	return d
}

// same says whether two clients are told alike in all they have.
func (c *Client) same(o *Client) bool {
	if c.group != o.group || c.node != o.node || c.pod != o.pod || c.tail != o.tail || c.uid != o.uid ||
		c.dash != o.dash ||
		c.addr != o.addr || c.start != o.start {
		return false
	}
	m, n := c.more, o.more
	for m != nil && n != nil && m.addr == n.addr {
		m, n = m.next, n.next
	}
	return m == nil && n == nil
}

func joinLabels(labels map[string]string) string {
	if len(labels) == 0 {
		return ""
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString(k)
		b.WriteByte(0)
		b.WriteString(strings.ReplaceAll(labels[k], "\x00", ""))
		b.WriteByte(0)
	}
	return b.String()
}

func splitLabels(s string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for s != "" {
			k, rest, _ := strings.Cut(s, "\x00")
			v, after, _ := strings.Cut(rest, "\x00")
			if !yield(k, v) {
				return
			}
			s = after
		}
	}
}
