package identity

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
)

// DefaultGrace is how long a deleted pod is still found: its last queries may be answered, and its spans finished, after it is gone.
const DefaultGrace = time.Minute

// forgetNodes is how often nodes that no pod is on any more are forgotten.
const forgetNodes = 10 * time.Minute

// KubernetesOptions say what is read from the Kubernetes API.
type KubernetesOptions struct {
	// Core reads pods (list and watch are needed) and nodes (where allowed; else nodes are known by their pods).
	Core typedcorev1.CoreV1Interface
	// Metadata reads who owns ReplicaSets and Jobs, where allowed; nil, or where it is not allowed, goes by their names.
	Metadata metadata.Interface
	// Node, if not empty, restricts all to that node and its pods, for an agent that runs on each: every other address is Unknown.
	Node string
	// Local is the name of the node that this process is on: loopback and link-local addresses are told as it. Empty: they are Unknown.
	Local string
	// Labels are the keys of the pod labels to keep. Each set of values that differs makes a group of its own in memory.
	Labels []string
	// Grace is how long a deleted pod is still found; 0 means DefaultGrace.
	Grace time.Duration
}

// Kubernetes is a source: it follows the pods of a cluster, and keeps what it knows when the API cannot be reached.
type Kubernetes struct {
	index *Index
	opts  KubernetesOptions

	// Under index.mu:
	owners  owners
	deleted []deletion // in order of time
	statics map[*Client]uid
	nodes   map[string]*Client        // those that the API told; others are known by their pods
	podNets map[string][]netip.Prefix // by node
	tidied  time.Time

	watches map[string]*watchState
	stop    context.CancelFunc
	done    sync.WaitGroup
}

type deletion struct {
	client *Client
	until  time.Time
}

// NewKubernetes starts following a cluster's pods. It does not wait for them: see [Index.Synced]. Stop it with Close.
func NewKubernetes(o KubernetesOptions) *Kubernetes {
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	o.Labels = slices.Compact(slices.Sorted(slices.Values(o.Labels)))
	ctx, cancel := context.WithCancel(context.Background())
	k := &Kubernetes{
		index:   NewIndex(),
		opts:    o,
		owners:  owners{},
		statics: map[*Client]uid{},
		nodes:   map[string]*Client{},
		podNets: map[string][]netip.Prefix{},
		watches: map[string]*watchState{},
		tidied:  time.Now(),
		stop:    cancel,
	}
	if o.Local != "" {
		k.index.local.Store(NewClient(Description{Kind: Node, Node: o.Local}))
	}
	k.start(ctx)
	return k
}

// Index is what is known of the cluster.
func (k *Kubernetes) Index() *Index { return k.index }

// Close stops following. The index stays as it is.
func (k *Kubernetes) Close() {
	k.stop()
	k.done.Wait()
}

// start starts a watch for each kind of object, and the clock.
func (k *Kubernetes) start(ctx context.Context) {
	pods := k.opts.Core.Pods(metav1.NamespaceAll)
	podFields := "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed)
	nodeFields := ""
	if k.opts.Node != "" {
		podFields += ",spec.nodeName=" + k.opts.Node
		nodeFields = "metadata.name=" + k.opts.Node
	}
	podWatch := k.watch(ctx, "pods", lister(pods.List, pods.Watch, podFields, k.opts.Core), &corev1.Pod{}, true, &podStore{k})

	nodes := k.opts.Core.Nodes()
	k.watch(ctx, "nodes", lister(nodes.List, nodes.Watch, nodeFields, k.opts.Core), &corev1.Node{}, false, &nodeStore{k})

	var ownerWatches []*watchState
	if k.opts.Metadata != nil {
		for _, r := range []struct {
			kind     string
			resource schema.GroupVersionResource
		}{
			{"ReplicaSet", schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}},
			{"Job", schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}},
		} {
			m := k.opts.Metadata.Resource(r.resource)
			ownerWatches = append(ownerWatches, k.watch(ctx, r.resource.Resource, lister(m.List, m.Watch, "", k.opts.Metadata), &metav1.PartialObjectMetadata{}, false,
				&ownerStore{k: k, kind: r.kind}))
		}
	}
	// Pods come after their owners, where these can be read, so that few have to be told again.
	for _, w := range k.watches {
		if w != podWatch {
			k.done.Go(func() { w.run(ctx) })
		}
	}
	k.done.Go(func() {
		for _, w := range ownerWatches {
			w.wait(ctx, 10*time.Second)
		}
		podWatch.run(ctx)
	})
	k.done.Go(func() { k.tick(ctx) })
}

// tick forgets what has been gone for long enough.
func (k *Kubernetes) tick(ctx context.Context) {
	t := time.NewTicker(max(k.opts.Grace/4, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			k.index.mu.Lock()
			k.forget(now)
			k.index.mu.Unlock()
		}
	}
}

// put takes in a pod as it is now. Callers hold index.mu.
func (k *Kubernetes) put(r *record, now time.Time) {
	x, c := k.index, r.client
	old := x.uids.get(keyOf(c.uid))
	if r.ended {
		if old != nil {
			k.deletePod(old, now)
		}
		return
	}
	if old != nil && old.same(c) {
		delete(x.gone, old)
		c = old
	} else {
		x.put(old, c)
		if old != nil {
			delete(x.gone, old)
			delete(k.statics, old)
		}
	}
	if r.static != (uid{}) && r.static != c.uid {
		x.uids.put(keyOf(r.static), c)
		k.statics[c] = r.static
	}
	if c.Node() != "" && !k.nodeKnown(c.Node(), r.nodeAddrs) {
		k.putNode(c.Node(), r.nodeAddrs, c.start)
	}
}

// nodeKnown says whether all the addresses are the node's already, as nearly always. Callers hold index.mu.
func (k *Kubernetes) nodeKnown(node string, addrs []netip.Addr) bool {
	for _, a := range addrs {
		if c := k.index.addrs.get(keyOf(a.As16())); c == nil || c.Node() != node || c.Kind() == Pod {
			return false
		}
	}
	return true
}

// putNode makes a node known at addresses. Where a NodeLocal DNSCache of the same node is, it stays. Callers hold index.mu.
func (k *Kubernetes) putNode(node string, addrs []netip.Addr, start uint32) {
	x := k.index
	c := newClient(Description{Kind: Node, Node: node, Addrs: addrs}, start)
	for a := range c.Addrs() {
		k := keyOf(a.As16())
		cur := x.addrs.get(k)
		if cur == nil || cur.Node() != node && x.yields(cur, c) || cur.Kind() == Pod && x.yields(cur, c) {
			x.addrs.put(k, c)
		}
	}
}

// deletePod marks a pod as gone; it is found until its grace is over or its address is another's. Callers hold index.mu.
func (k *Kubernetes) deletePod(c *Client, now time.Time) {
	if _, already := k.index.gone[c]; already {
		return
	}
	until := now.Add(k.opts.Grace)
	k.index.gone[c] = until
	k.deleted = append(k.deleted, deletion{c, until})
}

// forget drops pods whose grace is over, and now and then nodes without pods. Callers hold index.mu.
func (k *Kubernetes) forget(now time.Time) {
	x, n := k.index, 0
	for n < len(k.deleted) && now.After(k.deleted[n].until) {
		d := k.deleted[n]
		n++
		if until, gone := x.gone[d.client]; gone && until.Equal(d.until) { // else it came back, or was replaced
			k.drop(d.client)
		}
	}
	if n == len(k.deleted) {
		k.deleted = nil
	} else {
		k.deleted = k.deleted[n:]
	}
	if now.Sub(k.tidied) < forgetNodes || !x.Synced() {
		return
	}
	k.tidied = now
	inUse := map[string]bool{}
	x.uids.all(func(_ key, c *Client) bool { inUse[c.Node()] = true; return true })
	var unused []*Client
	x.addrs.all(func(_ key, c *Client) bool {
		if c.Kind() == Node && !inUse[c.Node()] && k.nodes[c.Node()] == nil {
			unused = append(unused, c)
		}
		return true
	})
	for _, c := range unused {
		x.drop(c)
	}
}

// drop forgets a pod. The addresses of a NodeLocal DNSCache fall back to its node. Callers hold index.mu.
func (k *Kubernetes) drop(c *Client) {
	x := k.index
	if s, ok := k.statics[c]; ok {
		x.uids.remove(keyOf(s), c)
		delete(k.statics, c)
	}
	var addrs []netip.Addr
	if c.Kind() == NodeLocalDNS {
		for a := range c.Addrs() {
			if x.addrs.get(keyOf(a.As16())) == c {
				addrs = append(addrs, a)
			}
		}
	}
	x.drop(c)
	if len(addrs) > 0 && c.Node() != "" {
		k.putNode(c.Node(), addrs, 0)
	}
}

// podStore takes in pods from client-go's reflector.
type podStore struct{ k *Kubernetes }

// read makes a record of what the reflector gives: a pod as it came, or what transform made of it.
func (s *podStore) read(obj any) *record {
	switch o := obj.(type) {
	case *record:
		return o
	case *corev1.Pod:
		s.k.index.mu.Lock()
		defer s.k.index.mu.Unlock()
		return describePod(o, s.k.opts.Labels, s.k.owners)
	}
	return nil
}

// transform is applied to the pods of the first list as they arrive, so that they are not all held whole.
func (s *podStore) transform(obj any) (any, error) {
	if r := s.read(obj); r != nil {
		return r, nil
	}
	return obj, nil
}

func (s *podStore) put(obj any, now time.Time) {
	r := s.read(obj)
	if r == nil {
		return
	}
	s.k.index.mu.Lock()
	defer s.k.index.mu.Unlock()
	s.k.put(r, now)
}

func (s *podStore) delete(obj any, now time.Time) {
	r := s.read(obj)
	if r == nil {
		return
	}
	s.k.index.mu.Lock()
	defer s.k.index.mu.Unlock()
	if c := s.k.index.uids.get(keyOf(r.client.uid)); c != nil {
		s.k.deletePod(c, now)
	}
}

// replace takes in a whole list: pods that are not in it have gone meanwhile.
func (s *podStore) replace(objs []any, now time.Time) {
	listed := make(map[uid]struct{}, len(objs))
	for i, obj := range objs {
		if r := s.read(obj); r != nil {
			listed[r.client.uid] = struct{}{}
			s.put(r, now)
		}
		objs[i] = nil
	}
	s.k.index.mu.Lock()
	defer s.k.index.mu.Unlock()
	var missing []*Client
	s.k.index.uids.all(func(_ key, c *Client) bool {
		if _, ok := listed[c.uid]; !ok {
			missing = append(missing, c)
		}
		return true
	})
	for _, c := range missing {
		s.k.deletePod(c, now)
	}
	s.k.index.synced(s.k.opts.Node == "")
}

// nodeStore takes in nodes.
type nodeStore struct{ k *Kubernetes }

func (s *nodeStore) transform(obj any) (any, error) { return obj, nil }

func (s *nodeStore) put(obj any, _ time.Time) {
	s.k.index.mu.Lock()
	defer s.k.index.mu.Unlock()
	if n, ok := obj.(*corev1.Node); ok && s.add(n) {
		s.k.index.pods.Store(newPrefixes(s.k.podNets))
	}
}

// add takes in a node and says whether its pods' networks are news. Callers hold index.mu.
func (s *nodeStore) add(n *corev1.Node) bool {
	var addrs []netip.Addr
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			addrs = appendAddr(addrs, a.Address)
		}
	}
	start := seconds(n.CreationTimestamp)
	c := newClient(Description{Kind: Node, Node: n.Name, Addrs: addrs}, start)
	if old := s.k.nodes[n.Name]; old == nil || !old.same(c) {
		s.k.nodes[n.Name] = c
		s.k.putNode(n.Name, addrs, start)
	}
	var nets []netip.Prefix
	for _, cidr := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(cidr); err == nil {
			nets = append(nets, p)
		}
	}
	if slices.Equal(nets, s.k.podNets[n.Name]) {
		return false
	}
	s.k.podNets[n.Name] = nets
	return true
}

func (s *nodeStore) delete(obj any, _ time.Time) {
	if n, ok := obj.(*corev1.Node); ok {
		s.k.index.mu.Lock()
		defer s.k.index.mu.Unlock()
		delete(s.k.nodes, n.Name) // its addresses stay until no pod is on it
		delete(s.k.podNets, n.Name)
		s.k.index.pods.Store(newPrefixes(s.k.podNets))
	}
}

func (s *nodeStore) replace(objs []any, _ time.Time) {
	s.k.index.mu.Lock()
	defer s.k.index.mu.Unlock()
	listed := map[string]bool{}
	for _, obj := range objs {
		if n, ok := obj.(*corev1.Node); ok {
			listed[n.Name] = true
			s.add(n)
		}
	}
	maps.DeleteFunc(s.k.nodes, func(name string, _ *Client) bool { return !listed[name] })
	maps.DeleteFunc(s.k.podNets, func(name string, _ []netip.Prefix) bool { return !listed[name] })
	s.k.index.pods.Store(newPrefixes(s.k.podNets))
}

// ownerStore takes in the metadata of ReplicaSets or Jobs.
type ownerStore struct {
	k    *Kubernetes
	kind string
}

func (s *ownerStore) transform(obj any) (any, error) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return obj, nil
	}
	s.put(m, time.Time{})
	return &object{m.Namespace, m.Name}, nil
}

func (s *ownerStore) put(obj any, _ time.Time) {
	if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
		s.k.index.mu.Lock()
		defer s.k.index.mu.Unlock()
		s.k.owners.learn(s.kind, &m.ObjectMeta)
	}
}

func (s *ownerStore) delete(obj any, _ time.Time) {
	if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
		s.k.index.mu.Lock()
		defer s.k.index.mu.Unlock()
		delete(s.k.owners, m.UID)
	}
}

func (s *ownerStore) replace(objs []any, now time.Time) {
	for _, obj := range objs {
		s.put(obj, now) // nothing to do for what transform has seen
	}
	// What went away between two lists stays in owners: a few bytes for each exception to the rule of names.
}
