package dnstrail

import (
	"context"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/identity"
)

// told sets what plugin kubernetes says of a pod.
func told(ctx context.Context, namespace, pod string) {
	for k, v := range map[string]string{"client-namespace": namespace, "client-pod-name": pod,
		"client-label/app": "cart"} {
		metadata.SetValueFunc(ctx, "kubernetes/"+k, func() string { return v })
	}
}

func TestClientFromMetadataOfKubernetes(t *testing.T) {
	var got []*query
	d := &Dnstrail{
		Next:   test.NextHandler(dns.RcodeSuccess, nil),
		config: config{ids: identityConfig{source: identityMetadata, labels: []string{"app", "absent"}}},
		keep:   keeper{workloads: []workload{{namespace: "shop"}}},
	}
	d.observe = func(q *query, _ bool) { got = append(got, q) }
	d.chain = walk(d.Next)
	ask := func(early bool, pod string) *query {
		t.Helper()
		got = nil
		ctx := metadata.ContextWithMetadata(t.Context())
		r := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
		w := dnstest.NewRecorder(&test.ResponseWriter{})
		if early { // dnstrail is asked for its metadata, and then kubernetes
			ctx = d.Metadata(ctx, request.Request{W: w, Req: r})
		}
		if pod != "" {
			told(ctx, "shop", pod)
		}
		if _, err := plugin.NextOrFailure("test", d, ctx, w, r); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 {
			t.Fatalf("%d queries were counted", len(got))
		}
		if f := metadata.ValueFunc(ctx, "dnstrail/pod"); early && f() != pod {
			t.Errorf("metadata says %q asked, want %q", f(), pod)
		}
		return got[0]
	}
	for _, early := range []bool{false, true} {
		c := ask(early, "cart-1").client
		if c.Kind() != identity.Pod || c.Namespace() != "shop" || c.Pod() != "cart-1" ||
			c.Describe().Labels["app"] != "cart" {
			t.Errorf("early %v: got %+v", early, c.Describe())
		}
		q := ask(early, "cart-1")
		if q.client != c {
			t.Errorf("early %v: made anew", early)
		}
		if q.reason != byClient {
			t.Errorf("early %v: not kept by its client's namespace", early)
		}
		if q := ask(early, ""); q.client.Kind() != identity.Unknown || q.reason != notKept {
			t.Errorf("early %v: nothing said: got %+v, %v", early, q.client.Describe(), q.reason)
		}
	}
}
