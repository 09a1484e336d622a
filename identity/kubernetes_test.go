package identity

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	metafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
)

// uuid gives the UID of pod n.
func uuid(n int) types.UID {
	return types.UID(fmt.Sprintf("%08x-0000-4000-8000-%012x", n, n))
}

// podAt makes a running pod, started n seconds after some moment.
func podAt(n int, name string, ips ...string) *corev1.Pod {
	start := metav1.NewTime(time.Unix(1_800_000_000+int64(n), 0))
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, UID: uuid(n), CreationTimestamp: start,
			Labels: map[string]string{"app": "cart", "secret": "s"},
		},
		Spec: corev1.PodSpec{NodeName: "node-1", ServiceAccountName: "cart-sa"},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, StartTime: &start, HostIP: "192.168.0.1", HostIPs: []corev1.HostIP{{IP: "192.168.0.1"},
				{IP: "fd00::1"}},
		},
	}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	if len(ips) > 0 {
		p.Status.PodIP = ips[0]
	}
	return p
}

func hostNetwork(p *corev1.Pod) *corev1.Pod {
	p.Spec.HostNetwork = true
	p.Status.PodIPs = []corev1.PodIP{{IP: "192.168.0.1"}, {IP: "fd00::1"}}
	return p
}

func nodeLocal(p *corev1.Pod) *corev1.Pod {
	p.Namespace = "kube-system"
	p.Labels = map[string]string{"k8s-app": "node-local-dns"}
	p.OwnerReferences = controlledBy("DaemonSet", "node-local-dns", "d")
	return p
}

func (k *Kubernetes) at(addr string) *Client { return k.index.Lookup(netip.MustParseAddr(addr)) }

func (k *Kubernetes) later(t time.Time) {
	k.index.mu.Lock()
	defer k.index.mu.Unlock()
	k.forget(t)
}

// who tells a client in short: kind, pod or node.
func who(c *Client) string {
	switch {
	case c.Pod() != "":
		return c.Kind().String() + " " + c.Pod()
	case c.Node() != "":
		return c.Kind().String() + " " + c.Node()
	}
	return c.Kind().String()
}

func TestAddressesAreTold(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name string
		do   func(k *Kubernetes, s *podStore)
		want map[string]string // address -> who
	}{
		{"nothing is known before the first list", func(*Kubernetes, *podStore) {}, map[string]string{"10.0.0.1": "unknown"}},
		{"outside after it", func(_ *Kubernetes, s *podStore) { s.replace(nil, now) },
			map[string]string{"10.0.0.1": "external"}},
		{"dual stack and more addresses than that", func(_ *Kubernetes, s *podStore) {
			s.put(podAt(1, "a", "10.0.0.1", "fd01::1", "10.9.0.1"), now)
		}, map[string]string{"10.0.0.1": "pod a", "fd01::1": "pod a", "10.9.0.1": "pod a", "192.168.0.1": "node node-1",
			"fd00::1": "node node-1"}},
		{"status of an old kubelet", func(_ *Kubernetes, s *podStore) {
			p := podAt(1, "a", "10.0.0.1")
			p.Status.PodIPs, p.Status.HostIPs = nil, nil
			s.put(p, now)
		}, map[string]string{"10.0.0.1": "pod a", "192.168.0.1": "node node-1"}},
		{"pod in the host's network is its node", func(_ *Kubernetes, s *podStore) {
			s.put(hostNetwork(podAt(1, "proxy")), now)
			s.put(hostNetwork(podAt(2, "cni")), now)
		}, map[string]string{"192.168.0.1": "node node-1", "fd00::1": "node node-1"}},
		{"address assigned later", func(_ *Kubernetes, s *podStore) {
			s.put(podAt(1, "a"), now)
			s.put(podAt(1, "a", "10.0.0.1"), now)
		}, map[string]string{"10.0.0.1": "pod a"}},
		{"new sandbox, new address", func(_ *Kubernetes, s *podStore) {
			s.replace(nil, now)
			s.put(podAt(1, "a", "10.0.0.1", "fd01::1"), now)
			s.put(podAt(1, "a", "10.0.0.2", "fd01::1"), now)
		}, map[string]string{"10.0.0.1": "external", "10.0.0.2": "pod a", "fd01::1": "pod a"}},
		{"reused while the old pod still ends", func(_ *Kubernetes, s *podStore) {
			s.put(podAt(1, "old", "10.0.0.1"), now)
			s.put(podAt(2, "new", "10.0.0.1"), now)
			s.put(podAt(1, "old", "10.0.0.1"), now) // a late update of the old one
		}, map[string]string{"10.0.0.1": "pod new"}},
		{"reused, told in the wrong order", func(_ *Kubernetes, s *podStore) {
			s.put(podAt(2, "new", "10.0.0.1"), now)
			s.put(podAt(1, "old", "10.0.0.1"), now)
			s.delete(podAt(1, "old", "10.0.0.1"), now)
		}, map[string]string{"10.0.0.1": "pod new"}},
		{"reused by an older pod after the younger is gone", func(_ *Kubernetes, s *podStore) {
			s.put(podAt(2, "young", "10.0.0.1"), now)
			s.delete(podAt(2, "young", "10.0.0.1"), now)
			s.put(podAt(1, "older", "10.0.0.1"), now)
		}, map[string]string{"10.0.0.1": "pod older"}},
		{"deleted: still found", func(_ *Kubernetes, s *podStore) {
			s.put(podAt(1, "a", "10.0.0.1"), now)
			s.delete(podAt(1, "a", "10.0.0.1"), now)
		}, map[string]string{"10.0.0.1": "pod a"}},
		{"deleted: forgotten after its grace", func(k *Kubernetes, s *podStore) {
			s.replace(nil, now)
			s.put(podAt(1, "a", "10.0.0.1"), now)
			s.delete(podAt(1, "a", "10.0.0.1"), now)
			k.later(now.Add(2 * DefaultGrace))
		}, map[string]string{"10.0.0.1": "external"}},
		{"run to its end: as if deleted", func(k *Kubernetes, s *podStore) {
			s.replace(nil, now)
			p := podAt(1, "a", "10.0.0.1")
			s.put(p, now)
			p = p.DeepCopy()
			p.Status.Phase = corev1.PodSucceeded
			s.put(p, now)
			k.later(now.Add(2 * DefaultGrace))
		}, map[string]string{"10.0.0.1": "external"}},
		{"deleted, and back in the next list", func(k *Kubernetes, s *podStore) {
			s.put(podAt(1, "a", "10.0.0.1"), now)
			s.replace(nil, now)
			s.replace([]any{podAt(1, "a", "10.0.0.1")}, now)
			k.later(now.Add(2 * DefaultGrace))
		}, map[string]string{"10.0.0.1": "pod a"}},
		{"missed its deletion: gone with the next list", func(k *Kubernetes, s *podStore) {
			s.put(podAt(1, "a", "10.0.0.1"), now)
			s.put(podAt(2, "b", "10.0.0.2"), now)
			s.replace([]any{podAt(2, "b", "10.0.0.2")}, now)
			k.later(now.Add(2 * DefaultGrace))
		}, map[string]string{"10.0.0.1": "external", "10.0.0.2": "pod b"}},
		{"NodeLocal DNSCache speaks for its node", func(_ *Kubernetes, s *podStore) {
			s.put(podAt(5, "a", "10.0.0.1"), now)
			s.put(hostNetwork(nodeLocal(podAt(1, "cache-1"))), now)
			s.put(podAt(6, "b", "10.0.0.2"), now)
		}, map[string]string{"192.168.0.1": "nodelocaldns cache-1", "fd00::1": "nodelocaldns cache-1", "10.0.0.1": "pod a"}},
		{"NodeLocal DNSCache replaced", func(k *Kubernetes, s *podStore) {
			s.put(hostNetwork(nodeLocal(podAt(1, "cache-1"))), now)
			s.delete(hostNetwork(nodeLocal(podAt(1, "cache-1"))), now)
			s.put(hostNetwork(nodeLocal(podAt(2, "cache-2"))), now)
			k.later(now.Add(2 * DefaultGrace))
		}, map[string]string{"192.168.0.1": "nodelocaldns cache-2"}},
		{"NodeLocal DNSCache removed", func(k *Kubernetes, s *podStore) {
			s.put(podAt(5, "a", "10.0.0.1"), now)
			s.put(hostNetwork(nodeLocal(podAt(1, "cache-1"))), now)
			s.delete(hostNetwork(nodeLocal(podAt(1, "cache-1"))), now)
			k.later(now.Add(2 * DefaultGrace))
		}, map[string]string{"192.168.0.1": "node node-1", "fd00::1": "node node-1"}},
		{"NodeLocal DNSCache with an address of its own", func(_ *Kubernetes, s *podStore) {
			s.put(nodeLocal(podAt(1, "cache-1", "10.0.0.9")), now)
		}, map[string]string{"10.0.0.9": "nodelocaldns cache-1", "192.168.0.1": "node node-1"}},
		{"a node's address goes to another node", func(_ *Kubernetes, s *podStore) {
			s.put(podAt(1, "a", "10.0.0.1"), now)
			p := podAt(2, "b", "10.0.0.2")
			p.Spec.NodeName = "node-2"
			s.put(p, now)
			s.put(podAt(1, "a", "10.0.0.1"), now)
		}, map[string]string{"192.168.0.1": "node node-2"}},
		{"node told by the API", func(k *Kubernetes, _ *podStore) {
			(&nodeStore{k}).put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-9"},
				Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
					{Type: corev1.NodeHostName, Address: "node-9"}, {Type: corev1.NodeInternalIP,
						Address: "192.168.0.9"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.9"},
				}}}, now)
		}, map[string]string{"192.168.0.9": "node node-9", "203.0.113.9": "node node-9"}},
		{"a pod that is not known yet, where nodes' networks are", func(k *Kubernetes, s *podStore) {
			s.replace(nil, now)
			n := &nodeStore{k}
			n.replace([]any{
				&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"},
					Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24", "fd00:1::/64"}}},
				&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.2.0/24"}}},
			}, now)
			n.put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "c"},
				Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.3.0/24"}}}, now)
			n.delete(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "b"}}, now)
		}, map[string]string{"10.244.1.7": "unknown", "fd00:1::7": "unknown", "10.244.2.7": "external",
			"10.244.3.7": "unknown", "::ffff:10.244.3.7": "unknown", "192.0.2.1": "external"}},
		{"loopback and link-local are nobody in particular", func(_ *Kubernetes, s *podStore) { s.replace(nil, now) },
			map[string]string{
				"127.0.0.1": "unknown", "::1": "unknown", "169.254.20.10": "unknown", "fe80::1%eth0": "unknown",
			}},
		{"node without pods is forgotten", func(k *Kubernetes, s *podStore) {
			s.put(podAt(1, "a", "10.0.0.1"), now)
			s.replace(nil, now)
			k.later(now.Add(2 * DefaultGrace)) // the pod goes
			k.later(now.Add(2 * DefaultGrace).Add(forgetNodes))
		}, map[string]string{"192.168.0.1": "external"}},
		{"node without pods that the API tells stays", func(k *Kubernetes, s *podStore) {
			s.replace(nil, now)
			(&nodeStore{k}).put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-9"},
				Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
					{Type: corev1.NodeInternalIP, Address: "192.168.0.9"},
				}}}, now)
			k.later(now.Add(forgetNodes))
		}, map[string]string{"192.168.0.9": "node node-9"}},
	} {
		k := newKubernetes(KubernetesOptions{})
		tt.do(k, &podStore{k})
		for addr, want := range tt.want {
			if got := who(k.at(addr)); got != want {
				t.Errorf("%s: %s is %q, want %q", tt.name, addr, got, want)
			}
		}
	}
}

func TestPodsAreFoundByUID(t *testing.T) {
	k := newKubernetes(KubernetesOptions{Labels: []string{"app", "absent"}})
	s, now := &podStore{k}, time.Now()
	s.put(podAt(1, "a", "10.0.0.1"), now)
	s.put(hostNetwork(podAt(2, "proxy")), now)
	static := hostNetwork(podAt(3, "etcd-node-1"))
	static.Annotations = map[string]string{"kubernetes.io/config.hash": "0123456789abcdef0123456789abcdef"}
	static.OwnerReferences = controlledBy("Node", "node-1", "n")
	s.put(static, now)

	a := k.index.LookupUID(string(uuid(1)))
	got := fmt.Sprintf("%+v", a.Describe())
	want := fmt.Sprintf("%+v", Description{
		Kind: Pod, Namespace: "shop", Pod: "a",
		UID: string(uuid(1)), WorkloadKind: "Pod", Workload: "a", Node: "node-1", ServiceAccount: "cart-sa",
		Labels: map[string]string{"app": "cart"}, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
	})
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := who(k.index.LookupUID(string(uuid(2)))); got != "pod proxy" {
		t.Errorf("the tracer finds a pod in the host's network as %q", got)
	}
	for _, u := range []string{string(uuid(3)), "0123456789abcdef0123456789abcdef"} {
		if got := k.index.LookupUID(u); got.Pod() != "etcd-node-1" || got.Workload() != "etcd" ||
			got.UID() != string(uuid(3)) {
			t.Errorf("static pod by %s: %+v", u, got.Describe())
		}
	}
	s.replace(nil, now)
	k.later(now.Add(2 * DefaultGrace))
	if addrs, uids := k.index.Size(); addrs != 2 || uids != 0 || len(k.statics) != 0 {
		t.Errorf("after all pods are gone: %d addresses (2 of the node), %d UIDs, %d static", addrs, uids, len(k.statics))
	}
}

func TestAnUpdateThatChangesNothingKeepsTheClient(t *testing.T) {
	k := newKubernetes(KubernetesOptions{})
	s, now := &podStore{k}, time.Now()
	s.put(podAt(1, "a", "10.0.0.1", "fd01::1"), now)
	before := k.at("10.0.0.1")
	p := podAt(1, "a", "10.0.0.1", "fd01::1")
	p.Labels["other"] = "label"
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady}}
	s.put(p, now)
	if k.at("10.0.0.1") != before || k.index.LookupUID(string(uuid(1))) != before {
		t.Error("the client was replaced")
	}
}

// fakeCore says what the fake API cannot do; client-go asks the client for it.
type fakeCore struct{ typedcorev1.CoreV1Interface }

func (fakeCore) IsWatchListSemanticsUnSupported() bool { return true }

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s in vain until %s", what)
		}
	}
}

func metaScheme() *runtime.Scheme {
	s := metafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(s); err != nil {
		panic(err)
	}
	return s
}

func partial(group, kind, name string, u types.UID, labels map[string]string,
	refs []metav1.OwnerReference) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: group + "/v1", Kind: kind},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: u, Labels: labels, OwnerReferences: refs},
	}
}

func TestOwnAddressesAreTheNode(t *testing.T) {
	k := NewKubernetes(KubernetesOptions{Core: fakeCore{fake.NewClientset().CoreV1()}, Local: "node-7"})
	t.Cleanup(k.Close)
	for _, addr := range []string{"127.0.0.1", "169.254.20.10", "::1"} {
		if got := who(k.at(addr)); got != "node node-7" {
			t.Errorf("%s is %q", addr, got)
		}
	}
}

func TestSourceFollowsTheAPI(t *testing.T) {
	hash := map[string]string{"pod-template-hash": "abc"}
	p := podAt(1, "web-abc-1", "10.0.0.1")
	p.Labels, p.OwnerReferences = hash, controlledBy("ReplicaSet", "web-abc", "r1")
	orphan := podAt(2, "old-abc-1", "10.0.0.2")
	orphan.Labels, orphan.OwnerReferences = hash, controlledBy("ReplicaSet", "old-abc", "r2")
	api := fake.NewClientset(p, orphan)
	meta := metafake.NewSimpleMetadataClient(metaScheme(),
		partial("apps", "ReplicaSet", "web-abc", "r1", hash, controlledBy("Deployment", "web", "d1")),
		partial("apps", "ReplicaSet", "old-abc", "r2", hash, nil))
	k := NewKubernetes(KubernetesOptions{Core: fakeCore{api.CoreV1()}, Metadata: meta, Grace: 20 * time.Millisecond})
	t.Cleanup(k.Close)
	eventually(t, "all is read", func() bool {
		for _, w := range k.Watches() {
			if !w.Synced {
				return false
			}
		}
		return k.Index().Synced()
	})
	if got := k.at("10.0.0.1"); got.WorkloadKind() != "Deployment" || got.Workload() != "web" {
		t.Errorf("got %+v", got.Describe())
	}
	if got := k.at("10.0.0.2"); got.WorkloadKind() != "ReplicaSet" || got.Workload() != "old-abc" {
		t.Errorf("a ReplicaSet without its Deployment: got %+v", got.Describe())
	}
	ctx := context.Background()
	if _, err := api.CoreV1().Pods("shop").Create(ctx, podAt(3, "new", "10.0.0.3"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new pod is known", func() bool { return k.at("10.0.0.3").Pod() == "new" })
	if err := api.CoreV1().Pods("shop").Delete(ctx, "new", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deleted pod is forgotten", func() bool { return k.at("10.0.0.3").Kind() == External })
	if k.Index().LastEvent().IsZero() {
		t.Error("no time of a last event")
	}
}

func TestSourceDoesWithoutWhatItMayNotRead(t *testing.T) {
	p := podAt(1, "web-abc-1", "10.0.0.1")
	p.Labels, p.OwnerReferences = map[string]string{"pod-template-hash": "abc"},
		controlledBy("ReplicaSet", "web-abc", "r1")
	api := fake.NewClientset(p)
	meta := metafake.NewSimpleMetadataClient(metaScheme())
	forbid := func(a clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: a.GetResource().Resource}, "",
			errors.New("no"))
	}
	api.PrependReactor("list", "nodes", forbid)
	meta.PrependReactor("list", "*", forbid)
	k := NewKubernetes(KubernetesOptions{Core: fakeCore{api.CoreV1()}, Metadata: meta})
	t.Cleanup(k.Close)
	eventually(t, "the pods are read and the rest is refused", func() bool {
		refused := 0
		for _, w := range k.Watches() {
			if w.Forbidden {
				refused++
			}
		}
		return k.Index().Synced() && refused == 3
	})
	if got := k.at("10.0.0.1"); got.WorkloadKind() != "Deployment" || got.Workload() != "web" {
		t.Errorf("got %+v", got.Describe())
	}
	if got := who(k.at("192.168.0.1")); got != "node node-1" {
		t.Errorf("the node is told as %q", got)
	}
	for _, w := range k.Watches() {
		if pods := w.Resource == "pods"; w.Synced != pods || w.Forbidden == pods || (w.Errors > 0) == pods {
			t.Errorf("%+v", w)
		}
	}
}

func TestAPIAwayKeepsWhatIsKnown(t *testing.T) {
	api := fake.NewClientset(podAt(1, "a", "10.0.0.1"))
	var away atomic.Bool
	api.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		if away.Load() {
			return true, nil, errors.New("connection refused")
		}
		return false, nil, nil
	})
	k := NewKubernetes(KubernetesOptions{Core: fakeCore{api.CoreV1()}})
	eventually(t, "the pods are read", k.Index().Synced)
	k.Close()

	away.Store(true)
	k2 := NewKubernetes(KubernetesOptions{Core: fakeCore{api.CoreV1()}})
	t.Cleanup(k2.Close)
	eventually(t, "the failures are counted", func() bool { return k2.Watches()[1].Errors > 0 })
	if k2.Index().Synced() || k2.at("10.0.0.1").Kind() != Unknown {
		t.Error("a source that has read nothing calls an address outside")
	}
	if got := k.at("10.0.0.1").Pod(); got != "a" {
		t.Errorf("after the source was closed: %q", got)
	}
	away.Store(false)
	eventually(t, "it comes back", k2.Index().Synced)
}

func TestOneNodeKnowsNothingOfTheRest(t *testing.T) {
	k := newKubernetes(KubernetesOptions{Node: "node-1"})
	(&podStore{k}).replace([]any{podAt(1, "a", "10.0.0.1")}, time.Now())
	for addr, want := range map[string]string{"10.0.0.1": "pod a", "192.168.0.1": "node node-1", "10.0.0.2": "unknown",
		"192.0.2.1": "unknown"} {
		if got := who(k.at(addr)); got != want {
			t.Errorf("%s is %q, want %q", addr, got, want)
		}
	}
	if !k.index.Synced() {
		t.Error("not synced after a whole list")
	}
}

// A thousand pods a second come and go, and addresses with them, while others look up. For -race.
func TestChurn(t *testing.T) {
	k := newKubernetes(KubernetesOptions{Grace: 50 * time.Millisecond})
	s := &podStore{k}
	const addresses = 512
	var stop atomic.Bool
	var wg sync.WaitGroup
	var looked atomic.Int64
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				n := rand.IntN(addresses)
				c := k.index.Lookup(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}))
				// Whoever it is, it is whole: the pod's number is in its name and in its UID.
				if c.Kind() == Pod && k.index.LookupUID(c.UID()).Kind() == Pod && c.Pod()[:4] != "pod-" {
					t.Errorf("half a pod: %+v", c.Describe())
				}
				looked.Add(1)
			}
		})
	}
	const pods = 2000
	began := time.Now()
	for i := range pods {
		now := time.Now()
		ip := netip.AddrFrom4([4]byte{10, 0, byte(i % addresses >> 8), byte(i % addresses)}).String()
		s.put(podAt(i, fmt.Sprint("pod-", i)), now)
		s.put(podAt(i, fmt.Sprint("pod-", i), ip), now)
		if i >= 256 {
			s.delete(podAt(i-256, fmt.Sprint("pod-", i-256),
				netip.AddrFrom4([4]byte{10, 0, byte((i - 256) % addresses >> 8), byte((i - 256) % addresses)}).String()), now)
		}
		k.later(now)
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Millisecond)))
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d look-ups while %d pods came in %v", looked.Load(), pods, time.Since(began).Round(time.Millisecond))
	k.later(time.Now().Add(time.Hour))
	for i := range pods {
		c := k.index.LookupUID(string(uuid(i)))
		if alive := i >= pods-256; (c.Kind() == Pod) != alive {
			t.Fatalf("pod %d: %+v, alive: %v", i, c.Describe(), alive)
		}
	}
	if addrs, uids := k.index.Size(); addrs != 256+2 || uids != 256 {
		t.Errorf("%d addresses and %d UIDs are left, want 258 (2 of the node) and 256", addrs, uids)
	}
}

// BenchmarkPodComesAndGoes is a pod that is created, gets its address and is deleted, in a cluster of 100,000: three
// events.
func BenchmarkPodComesAndGoes(b *testing.B) {
	k := newKubernetes(KubernetesOptions{Grace: time.Second})
	s, now := &podStore{k}, time.Now()
	for i := range 100_000 {
		s.put(podAt(i, fmt.Sprint("pod-", i), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()),
			now)
	}
	i := 0
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		n := 200_000 + i
		ip := netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}).String()
		now = now.Add(time.Millisecond)
		s.put(podAt(n, "new"), now)
		s.put(podAt(n, "new", ip), now)
		s.delete(podAt(n, "new", ip), now)
		k.later(now)
		i++
	}
}
