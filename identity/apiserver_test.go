package identity_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/test/apiserver"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// The source against a real API server, with the rights that CoreDNS has and with more, while the server is away and
// when it is back. It needs the programs of test/kube: make test-kube builds them and sets DNSTRAIL_KUBE to where they
// are.
func TestRealAPIServer(t *testing.T) {
	bin := os.Getenv("DNSTRAIL_KUBE")
	if bin == "" {
		t.Skip("DNSTRAIL_KUBE is not set: make test-kube builds a Kubernetes API server (some minutes) and runs this " +
			"against it")
	}
	ctx := t.Context()
	s, err := apiserver.Start(ctx, bin, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	api, err := kubernetes.NewForConfig(s.Config(apiserver.Admin))
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, api: api}
	c.namespace("shop")
	c.stockRole()

	web := c.replicaSet("web-abc", "Deployment", "web")
	orphan := c.replicaSet("orphan-abc", "", "")
	c.pod("web-abc-1", "node-1", web, "10.0.0.1", "fd00::1")
	c.pod("orphan-abc-1", "node-1", orphan, "10.0.0.2")
	c.pod("alone", "node-2", nil, "10.0.0.3")

	t.Run("with the rights of CoreDNS", func(t *testing.T) {
		x, source := follow(t, s, apiserver.CoreDNS, "", 0)
		c.t = t
		c.is(x, "10.0.0.1", "pod shop/web-abc-1 Deployment/web")
		c.is(x, "fd00::1", "pod shop/web-abc-1 Deployment/web")
		c.is(x, "10.0.0.2", "pod shop/orphan-abc-1 Deployment/orphan") // all that names tell
		c.is(x, "10.0.0.3", "pod shop/alone Pod/alone")
		c.is(x, "192.168.0.1", "node node-1")
		c.is(x, "10.0.0.9", "external")
		for _, w := range source.Kubernetes().Watches() {
			if pods := w.Resource == "pods"; pods != w.Synced || pods == w.Forbidden {
				t.Errorf("%+v", w)
			}
		}
	})

	t.Run("with the right to read owners", func(t *testing.T) {
		x, _ := follow(t, s, apiserver.Admin, "", 0)
		c.t = t
		c.is(x, "10.0.0.1", "pod shop/web-abc-1 Deployment/web")
		c.is(x, "10.0.0.2", "pod shop/orphan-abc-1 ReplicaSet/orphan-abc")
	})

	t.Run("one node", func(t *testing.T) {
		x, _ := follow(t, s, apiserver.Admin, "node-2", 0)
		c.t = t
		c.is(x, "10.0.0.3", "pod shop/alone Pod/alone")
		c.is(x, "10.0.0.1", "unknown") // a pod of another node, for all that is known
	})

	t.Run("server away and back", func(t *testing.T) {
		x, source := follow(t, s, apiserver.CoreDNS, "", 0)
		c.t = t
		failed := func() int64 {
			for _, w := range source.Kubernetes().Watches() {
				if w.Resource == "pods" {
					return w.Errors
				}
			}
			return 0
		}
		before := failed()
		s.StopAPI()
		within(t, time.Minute, "failures are counted", func() bool { return failed() > before })
		c.is(x, "10.0.0.1", "pod shop/web-abc-1 Deployment/web")
		c.is(x, "10.0.0.9", "external")
		if err := s.StartAPI(ctx); err != nil {
			t.Fatal(err)
		}
		c.pod("later", "node-1", nil, "10.0.0.4")
		within(t, 2*time.Minute, "the new pod is known",
			func() bool { return x.Lookup(netip.MustParseAddr("10.0.0.4")).Pod() == "later" })
		c.is(x, "10.0.0.1", "pod shop/web-abc-1 Deployment/web")
	})

	t.Run("many pods", func(t *testing.T) {
		n, err := strconv.Atoi(os.Getenv("DNSTRAIL_KUBE_PODS"))
		if err != nil {
			n = 2000
		}
		c.t = t
		c.crowd(n)
		before, began := memory(), time.Now()
		x, _ := follow(t, s, apiserver.CoreDNS, "", time.Second) // another grace: a source of its own, that reads all anew
		synced := time.Since(began)
		after := memory()
		if addrs, uids := x.Size(); uids < n || addrs < n {
			t.Errorf("%d addresses and %d pods are known, want %d at least", addrs, uids, n)
		}
		t.Logf("%d pods: read in %v, %d bytes a pod stay (the connection and the fixed costs among them)", n,
			synced.Round(time.Millisecond), (after-before)/uint64(n))
		runtime.KeepAlive(x)
	})
}

// follow gives a source that has read all it may.
func follow(t *testing.T, s *apiserver.Server, user, node string, grace time.Duration) (*identity.Index,
	*identity.Source) {
	t.Helper()
	kubeconfig, err := s.Kubeconfig(user)
	if err != nil {
		t.Fatal(err)
	}
	source, err := identity.AcquireKubernetes(identity.KubernetesConfig{Kubeconfig: kubeconfig, Node: node, Grace: grace})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Release)
	within(t, 5*time.Minute, "all is read", func() bool {
		for _, w := range source.Kubernetes().Watches() {
			if !w.Synced && !w.Forbidden {
				return false
			}
		}
		return true
	})
	return source.Index(), source
}

func within(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain until %s", limit, what)
		}
	}
}

func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// cluster fills the API server.
type cluster struct {
	t   *testing.T
	api kubernetes.Interface
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) is(x *identity.Index, addr, want string) {
	c.t.Helper()
	k := x.Lookup(netip.MustParseAddr(addr))
	got := k.Kind().String()
	switch {
	case k.Pod() != "":
		got += fmt.Sprintf(" %s/%s %s/%s", k.Namespace(), k.Pod(), k.WorkloadKind(), k.Workload())
	case k.Node() != "":
		got += " " + k.Node()
	}
	if got != want {
		c.t.Errorf("%s is %q, want %q", addr, got, want)
	}
}

func (c *cluster) namespace(name string) {
	_, err := c.api.CoreV1().Namespaces().Create(
		c.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	c.must(err)
}

// stockRole grants what the role of CoreDNS's own manifest grants on pods (coredns/deployment,
// kubernetes/coredns.yaml.sed).
func (c *cluster) stockRole() {
	ctx := c.t.Context()
	_, err := c.api.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "coredns"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "pods", "namespaces"},
				Verbs: []string{"list", "watch"}},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
		},
	}, metav1.CreateOptions{})
	c.must(err)
	_, err = c.api.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "coredns"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "coredns"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: apiserver.CoreDNS}},
	}, metav1.CreateOptions{})
	c.must(err)
}

// replicaSet makes a ReplicaSet as a Deployment's, or one on its own if kind is empty.
func (c *cluster) replicaSet(name, kind, owner string) *appsv1.ReplicaSet {
	labels := map[string]string{"pod-template-hash": "abc"}
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: labels},
		Spec: appsv1.ReplicaSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec("")},
		},
	}
	if kind != "" {
		yes := true
		rs.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: owner,
			UID: "11111111-2222-4333-8444-555555555555", Controller: &yes}}
	}
	rs, err := c.api.AppsV1().ReplicaSets("shop").Create(c.t.Context(), rs, metav1.CreateOptions{})
	c.must(err)
	return rs
}

func spec(node string) corev1.PodSpec {
	return corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "example.org/c"}}}
}

// pod makes a running pod.
func (c *cluster) pod(name, node string, rs *appsv1.ReplicaSet, ips ...string) {
	c.must(c.tryPod(c.t.Context(), name, node, rs, ips...))
}

func (c *cluster) tryPod(ctx context.Context, name, node string, rs *appsv1.ReplicaSet, ips ...string) error {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: spec(node)}
	if rs != nil {
		yes := true
		p.Labels = rs.Labels
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: rs.Name, UID: rs.UID,
			Controller: &yes}}
	}
	p, err := c.api.CoreV1().Pods("shop").Create(ctx, p, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	now := metav1.Now()
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, StartTime: &now, PodIP: ips[0],
		HostIP: "192.168.0." + node[len(node)-1:], HostIPs: []corev1.HostIP{{IP: "192.168.0." + node[len(node)-1:]}},
	}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	_, err = c.api.CoreV1().Pods("shop").UpdateStatus(ctx, p, metav1.UpdateOptions{})
	return err
}

// crowd makes n pods of deployments of twenty.
func (c *cluster) crowd(n int) {
	next := make(chan int)
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	for range 32 {
		wg.Go(func() {
			for i := range next {
				rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
					Name: fmt.Sprintf("checkout-api-%04d-7f9c5d4b8", i/20), UID: "11111111-2222-4333-8444-555555555555",
					Labels: map[string]string{"pod-template-hash": "7f9c5d4b8", "app": "checkout", "tier": "backend"},
				}}
				ip := netip.AddrFrom4([4]byte{10, byte(1 + i>>16), byte(i >> 8), byte(i)}).String()
				if err := c.tryPod(c.t.Context(), fmt.Sprintf("%s-%05d", rs.Name, i), fmt.Sprint("node-", i%10), rs,
					ip); err != nil {
					once.Do(func() { failed = err })
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	c.must(failed)
}
