package dnstrail

import "testing"

func TestSearchPathMiss(t *testing.T) {
	for _, tt := range []struct {
		name string
		want bool
	}{
		// What ndots:5 makes of api.stripe.com in namespace shop.
		{"api.stripe.com.shop.svc.cluster.local.", true},
		{"api.stripe.com.svc.cluster.local.", true},
		{"api.stripe.com.cluster.local.", true},
		{"api.stripe.com.", false},
		// of a name of two labels
		{"stripe.com.shop.svc.cluster.local.", true},
		{"stripe.com.svc.cluster.local.", true},
		{"stripe.com.cluster.local.", true},
		{"Stripe.COM.shop.SVC.Cluster.Local", true},
		// under a country's domain: in doubt at first
		{"orf.at.shop.svc.cluster.local.", false},
		{"orf.at.svc.cluster.local.", false},
		{"orf.at.cluster.local.", true},
		{"www.orf.at.shop.svc.cluster.local.", true},
		// of a name that was complete in the cluster
		{"cart.shop.svc.cluster.local.shop.svc.cluster.local.", true},
		{"cart.shop.svc.shop.svc.cluster.local.", true},
		// of a short name
		{"cart.svc.cluster.local.", true},
		{"cart.cluster.local.", true},
		// What people mean.
		{"cart.shop.svc.cluster.local.", false},
		{"db-0.postgres.shop.svc.cluster.local.", false},
		{"_http._tcp.cart.shop.svc.cluster.local.", false},
		{"10-244-1-10.shop.pod.cluster.local.", false},
		{"dns-version.cluster.local.", false},
		{"web.app.shop.svc.cluster.local.", false},
		{"shop.dev.svc.cluster.local.", false},
		{"svc.cluster.local.", false},
		{"cluster.local.", false},
		{"notcluster.local.", false},
		{"example.org.", false},
		{".", false},
		{"", false},
		{"..svc.cluster.local", true}, // no such name can be on the wire, but it must not panic
		{"a..b.c.svc.cluster.local", true},
	} {
		if got := searchPathMiss(tt.name, "cluster.local"); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func FuzzSearchPathMiss(f *testing.F) {
	f.Add("api.stripe.com.shop.svc.cluster.local.")
	f.Add("....svc.cluster.local.")
	f.Fuzz(func(_ *testing.T, name string) { searchPathMiss(name, "cluster.local") })
}

func BenchmarkSearchPathMiss(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		searchPathMiss("api.stripe.com.shop.svc.cluster.local.", "cluster.local")
	}
}
