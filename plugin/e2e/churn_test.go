package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	"go.opentelemetry.io/collector/pdata/ptrace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestChurn: a thousand pods a second come and go while queries from their addresses are served. Who is told as the
// client is always one that has, or had until just now, the address.
func TestChurn(t *testing.T) {
	const addresses, pods = 500, 3000
	ip := func(n int) string { return fmt.Sprintf("10.0.%d.%d", n>>8, n&0xff) }
	pod := func(i int) map[string]any {
		addr := ip(i % addresses)
		meta := map[string]any{
			"name": fmt.Sprintf("pod-%s-%d", strings.ReplaceAll(addr, ".", "-"),
				i), "namespace": "shop", "resourceVersion": fmt.Sprint(i + 2),
			"uid": fmt.Sprintf("00000000-0000-4000-8000-%012d", i), "creationTimestamp": time.Now().UTC().Format(time.RFC3339),
			// One workload: the metrics, which all tests here share, tell no more than a thousand apart.
			"ownerReferences": []any{map[string]any{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "0",
				"controller": true}},
		}
		return map[string]any{
			"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": map[string]any{"nodeName": "node-1"},
			"status": map[string]any{"phase": "Running", "podIP": addr, "podIPs": []any{map[string]any{"ip": addr}},
				"startTime": time.Now().UTC().Format(time.RFC3339)},
		}
	}
	done := make(chan struct{})
	var stream sync.Once
	var took time.Duration // set before done is closed
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Query().Get("sendInitialEvents") != "":
			w.WriteHeader(http.StatusBadRequest) // an API server without WatchList: the client lists
			_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
				Status: "Failure", Reason: metav1.StatusReasonInvalid, Code: 400})
		case r.URL.Query().Get("watch") == "":
			_, _ = fmt.Fprint(w, `{"apiVersion":"v1","kind":"List","metadata":{"resourceVersion":"1"},"items":[]}`)
		default:
			w.(http.Flusher).Flush()
			if strings.HasSuffix(r.URL.Path, "/pods") {
				stream.Do(func() {
					defer close(done)
					out, began := json.NewEncoder(w), time.Now()
					for i := range pods {
						_ = out.Encode(map[string]any{"type": "ADDED", "object": pod(i)})
						if i >= addresses/2 {
							_ = out.Encode(map[string]any{"type": "DELETED", "object": pod(i - addresses/2)})
						}
						w.(http.Flusher).Flush()
						time.Sleep(time.Until(began.Add(time.Duration(i) * time.Millisecond)))
					}
					took = time.Since(began)
				})
			}
			<-r.Context().Done()
		}
	}))
	t.Cleanup(func() {
		// Not Close, which waits: the informer lives on for a while after CoreDNS, in case of a reload.
		_ = api.Listener.Close()
		api.CloseClientConnections()
	})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {server: %q}\ncontexts:\n- "+
		"name: c\n  context: {cluster: c, user: u}\nusers:\n- name: u\n  user: {}\ncurrent-context: c\n", api.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, up := newCollector(t), newUpstream(t, answering(3600))
	s := start(t, ".:0 {\nbind 127.0.0.1\nprometheus 127.0.0.1:0\ne2e_server\ndnstrail {\nendpoint grpc://$COLLECTOR\n"+
		"identity kubernetes kubeconfig $FILE\nsample 5%\n}\nerrors\ncache 3600\nforward . $UP\n}",
		"COLLECTOR", c.grpc, "FILE", kubeconfig, "UP", up.addr)
	srv := s.inner(t)
	var asked atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				addr := &net.UDPAddr{IP: net.ParseIP(ip(rand.IntN(addresses))), Port: 1024 + rand.IntN(60000)}
				w := &sink{ResponseWriter: test.ResponseWriter{RemoteIP: addr.IP.String()}, addr: addr}
				ctx := context.WithValue(context.WithValue(context.Background(), dnsserver.Key{}, srv), dnsserver.LoopKey{}, 0)
				q := query("churn.example.", dns.TypeA)
				srv.ServeDNS(ctx, w, q)
				asked.Add(1)
				time.Sleep(200 * time.Microsecond)
			}
		})
	}
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the pods were not read within a minute")
	}
	wg.Wait()
	told := 0
	for end := time.Now().Add(5 * time.Second); told == 0 && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, sp := range c.spans() {
			name, _ := sp.attrs["dnstrail.client.pod.name"].(string)
			addr, _ := sp.attrs["client.address"].(string)
			if sp.Kind() != ptrace.SpanKindServer || name == "" {
				continue
			}
			told++
			if !strings.HasPrefix(name, "pod-"+strings.ReplaceAll(addr, ".", "-")+"-") {
				t.Errorf("the client %s was told as %s", addr, name)
			}
		}
	}
	t.Logf("%d queries while %d pods came and %d went in %v; %d recorded spans name their pod", asked.Load(), pods,
		pods-addresses/2, took.Round(time.Millisecond), told)
	if told == 0 {
		t.Error("no span names a pod")
	}
}
