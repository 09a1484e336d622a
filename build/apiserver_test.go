package build

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	_ "github.com/coredns/coredns/plugin/whoami"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/dnstrail/dnstrail/test/apiserver"
)

// CoreDNS counts its clients by what a real API server says of them; while the server is away it goes on doing so, over
// a reload too, and says that it is away. It needs the programs of test/kube: see make test-kube.
func TestRealAPIServerAwayFromCoreDNS(t *testing.T) {
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
	if _, err := api.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	yes := true
	pod, err := api.CoreV1().Pods("shop").Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-abc-1", Labels: map[string]string{"pod-template-hash": "abc"},
			OwnerReferences: []metav1.OwnerReference{
				{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-abc", UID: "11111111-2222-4333-8444-555555555555",
					Controller: &yes},
			}},
		Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Name: "c", Image: "example.org/c"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "127.0.0.1", PodIPs: []corev1.PodIP{{IP: "127.0.0.1"}}}
	if _, err := api.CoreV1().Pods("shop").UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := s.Kubeconfig(apiserver.Admin)
	if err != nil {
		t.Fatal(err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	caddy.Quiet = true
	input := caddy.CaddyfileInput{ServerTypeName: "dns", Contents: fmt.Appendf(nil, `
.:0 {
    bind 127.0.0.1
    dnstrail {
        endpoint none
        identity kubernetes kubeconfig %s
    }
    prometheus %s
    whoami
}
`, kubeconfig, metrics)}
	coredns, err := caddy.Start(input)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := coredns.Stop(); err != nil {
			t.Error(err)
		}
	})

	ask := func() {
		t.Helper()
		if _, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion("example.org.", dns.TypeA),
			coredns.Servers()[0].LocalAddr().String()); err != nil {
			t.Fatal(err)
		}
	}
	// value adds up the samples of a metric whose labels have all the words.
	value := func(name string, words ...string) (sum float64) {
		t.Helper()
		resp, err := http.Get("http://" + metrics + "/metrics") //nolint:noctx // a test
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
	lines:
		for line := range strings.Lines(string(body)) {
			if !strings.HasPrefix(line, name+"{") {
				continue
			}
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			var v float64
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err != nil {
				t.Fatal(err)
			}
			sum += v
		}
		return sum
	}
	until := func(what string, cond func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited a minute in vain until %s", what)
			}
		}
	}
	web := func() float64 {
		return value("coredns_dnstrail_client_requests_total", `client_namespace="shop"`, `client_workload="web"`,
			`client_workload_kind="Deployment"`)
	}
	watch := func(metric string) float64 { return value("coredns_dnstrail_identity_"+metric, `resource="pods"`) }

	until("the pods are read", func() bool { return watch("synced") == 1 })
	before := web()
	ask()
	if got := web() - before; got != 1 {
		t.Errorf("%v queries of the workload were counted, want 1", got)
	}

	s.StopAPI()
	errors := watch("watch_errors_total")
	until("the failures are told", func() bool { return watch("watch_errors_total") > errors })
	last := watch("last_event_timestamp_seconds")
	if coredns, err = coredns.Restart(input); err != nil {
		t.Fatal(err)
	}
	before = web()
	ask()
	if got := web() - before; got != 1 {
		t.Errorf("with the API away, and after a reload: %v queries of the workload were counted, want 1", got)
	}
	if watch("synced") != 1 || watch("last_event_timestamp_seconds") != last {
		t.Error("with the API away: what was known was forgotten, or the API is said to have spoken")
	}
}
