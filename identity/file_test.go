package identity

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const example = `clients:
- addresses: [10.244.1.10, "fd00:10:244:1::10"]
  namespace: shop
  pod: cart-7f9c5d4b8-x2x7k
  uid: 5e2a1b6c-3d4f-4a5b-8c6d-7e8f9a0b1c2d
  workload: {kind: Deployment, name: cart}
  node: node-1
  serviceAccount: cart-sa
  labels: {app: cart, tier: web}
- addresses: [192.168.100.1]
  node: node-1
- addresses: [10.244.1.11]
  namespace: shop
  pod: debug
`

func write(t *testing.T, path, content string) {
	t.Helper()
	// As kubectl and editors do: a new file in place of the old one.
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, content string, warn func(error)) (*File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "identity.yaml")
	write(t, path, content)
	f, err := OpenFile(path, 5*time.Millisecond, warn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f, path
}

func TestFileTellsClients(t *testing.T) {
	f, _ := open(t, example, nil)
	cart := Description{
		Kind: Pod, Namespace: "shop", Pod: "cart-7f9c5d4b8-x2x7k", UID: "5e2a1b6c-3d4f-4a5b-8c6d-7e8f9a0b1c2d",
		WorkloadKind: "Deployment", Workload: "cart", Node: "node-1", ServiceAccount: "cart-sa",
		Labels: map[string]string{"app": "cart", "tier": "web"},
		Addrs:  []netip.Addr{netip.MustParseAddr("10.244.1.10"), netip.MustParseAddr("fd00:10:244:1::10")},
	}
	node := Description{Kind: Node, Node: "node-1", Addrs: []netip.Addr{netip.MustParseAddr("192.168.100.1")}}
	debug := Description{
		Kind: Pod, Namespace: "shop", Pod: "debug", WorkloadKind: "Pod", Workload: "debug",
		Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.11")},
	}
	for _, tt := range []struct {
		name, addr string
		want       Description
	}{
		{"IPv4", "10.244.1.10", cart},
		{"IPv4 mapped into IPv6", "::ffff:10.244.1.10", cart},
		{"IPv6", "fd00:10:244:1::10", cart},
		{"IPv6 with a zone", "fd00:10:244:1::10%eth0", cart},
		{"node", "192.168.100.1", node},
		{"pod that nothing owns", "10.244.1.11", debug},
		{"not in the file", "10.244.1.12", Description{Kind: External}},
	} {
		if got := f.Index().Lookup(netip.MustParseAddr(tt.addr)).Describe(); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
	for _, uid := range []string{cart.UID, strings.ReplaceAll(cart.UID, "-", "_"), strings.ToUpper(cart.UID)} {
		if got := f.Index().LookupUID(uid).Describe(); !reflect.DeepEqual(got, cart) {
			t.Errorf("UID %s: got %+v", uid, got)
		}
	}
	for _, uid := range []string{"", "5e2a", cart.UID + "0", strings.Replace(cart.UID, "5", "6", 1)} {
		if got := f.Index().LookupUID(uid); got.Kind() != Unknown {
			t.Errorf("UID %q: got %+v", uid, got.Describe())
		}
	}
	if got := f.Index().Lookup(netip.Addr{}); got.Kind() != Unknown {
		t.Errorf("no address: got %v", got.Kind())
	}
}

func TestFileInJSON(t *testing.T) {
	f, _ := open(t, `{"clients":[{"addresses":["10.0.0.1"],"namespace":"a","pod":"b"}]}`, nil)
	if got := f.Index().Lookup(netip.MustParseAddr("10.0.0.1")); got.Pod() != "b" {
		t.Errorf("got %+v", got.Describe())
	}
}

func TestFileErrorsNameTheirPlace(t *testing.T) {
	for _, tt := range []struct{ name, content, want string }{
		{"unknown field", "clients:\n- addresses: [10.0.0.1]\n  nod: n\n", "f.yaml: line 3: field nod not found in a client"},
		{"unknown field of workload", "clients:\n- workload: {kin: x}\n", "f.yaml: line 2: field kin not found in workload"},
		{"unknown field at the top", "client: []\n", "f.yaml: line 1: field client not found beside clients"},
		{"not an address", "clients:\n- node: n\n  addresses:\n  - 10.0.0\n",
			`f.yaml: line 4: addresses: "10.0.0" is not an IP address`},
		{"zone", "clients:\n- addresses: [fe80::1%eth0]\n", "has a zone"},
		{"address twice", "clients:\n- {addresses: [10.0.0.1], node: a}\n- {addresses: [\"::ffff:10.0.0.1\"], node: b}\n",
			"f.yaml: line 3: address 10.0.0.1 stands in line 2 already"},
		{"UID", "clients:\n- {addresses: [10.0.0.1], node: a, uid: 5e2a}\n", `f.yaml: line 2: uid: "5e2a" is not a UUID`},
		{"nothing to find it by", "clients:\n- {node: a}\n", "f.yaml: clients[0]: neither addresses nor uid"},
		{"nothing to call it", "clients:\n- {addresses: [10.0.0.1]}\n", "f.yaml: clients[0]: none of pod, workload and node"},
		{"half a workload", "clients:\n- {addresses: [10.0.0.1], workload: {name: a}}\n",
			"workload: want both kind and name"},
		{"pod without namespace", "clients:\n- {addresses: [10.0.0.1], pod: a}\n", `pod "a" has no namespace`},
		{"a list where a client goes", "clients:\n- [a]\n", "f.yaml: line 2: cannot unmarshal !!seq, want a client"},
		{"not YAML", "clients: [\n", "f.yaml: line 1"},
		{"two documents", "clients: []\n---\nclients: []\n", "f.yaml: a second document"},
	} {
		if _, err := ParseFile("f.yaml", []byte(tt.content)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := OpenFile(filepath.Join(t.TempDir(), "none.yaml"), 0, nil); err == nil ||
		!strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("missing file: got %v", err)
	}
}

func TestFileIsReadAgainWhenItChanges(t *testing.T) {
	warned := make(chan error, 10)
	f, path := open(t, example, func(err error) { warned <- err })
	x := f.Index()
	v6 := netip.MustParseAddr("fd00:10:244:1::10")
	before := x.Lookup(v6)

	write(t, path, "clients:\n- nonsense: 1\n")
	select {
	case err := <-warned:
		if !strings.Contains(err.Error(), "line 2") {
			t.Errorf("the warning reads %q", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("no warning about the wrong file")
	}
	if x.Lookup(v6) != before {
		t.Error("a wrong file changed what was known")
	}

	write(t, path, strings.Replace(example, "10.244.1.11", "10.244.1.12", 1))
	addr := netip.MustParseAddr("10.244.1.12")
	for deadline := time.Now().Add(5 * time.Second); x.Lookup(addr).Pod() != "debug"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the changed file was not taken")
		}
	}
	f.Close()
	if x.Lookup(v6) != before {
		t.Error("a client that did not change was replaced")
	}
	if got := x.Lookup(netip.MustParseAddr("10.244.1.11")); got.Kind() != External {
		t.Errorf("an address that is gone from the file is still %+v", got.Describe())
	}
	if taken, refused := f.Reloads(); taken != 1 || refused != 1 {
		t.Errorf("counted %d taken and %d refused, want 1 and 1", taken, refused)
	}
	// The pod with a UID, the one without; the node is none.
	if addrs, clients := x.Size(); addrs != 4 || clients != 2 {
		t.Errorf("the index holds %d addresses and %d clients, want 4 and 2", addrs, clients)
	}
}

func TestFileAddressesMoveBetweenClients(t *testing.T) {
	entry := func(addr, pod string) string {
		return "- {addresses: [" + addr + "], namespace: shop, pod: " + pod + "}\n"
	}
	x := NewIndex()
	for _, tt := range []struct {
		content string
		want    map[string]string
	}{
		{entry("10.0.0.1", "a") + entry("10.0.0.2", "b") + entry("10.0.0.3", "c"),
			map[string]string{"10.0.0.1": "pod a", "10.0.0.2": "pod b", "10.0.0.3": "pod c"}},
		{entry("10.0.0.2", "a") + entry("10.0.0.1", "b") + entry("10.0.0.3", "c"),
			map[string]string{"10.0.0.1": "pod b", "10.0.0.2": "pod a", "10.0.0.3": "pod c"}},
		{entry("10.0.0.3", "a") + entry("10.0.0.2", "b") + entry("10.0.0.1", "c"),
			map[string]string{"10.0.0.1": "pod c", "10.0.0.2": "pod b", "10.0.0.3": "pod a"}},
		{entry("10.0.0.2", "c"), map[string]string{"10.0.0.1": "external", "10.0.0.2": "pod c", "10.0.0.3": "external"}},
	} {
		clients, err := ParseFile("f", []byte("clients:\n"+tt.content))
		if err != nil {
			t.Fatal(err)
		}
		x.replace(clients, time.Now())
		for addr, want := range tt.want {
			if got := who(x.Lookup(netip.MustParseAddr(addr))); got != want {
				t.Errorf("%s: %s is %q, want %q", tt.content, addr, got, want)
			}
		}
		if addrs, n := x.Size(); addrs != len(clients) || n != len(clients) || len(x.contested) != 0 {
			t.Errorf("%d addresses, %d clients, %d contested, of %d in the file", addrs, n, len(x.contested), len(clients))
		}
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte(`{"clients":[{"addresses":["10.0.0.1"],"node":"a"}]}`))
	f.Add([]byte("clients:\n- &a {addresses: [10.0.0.1], node: a}\n- *a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		clients, err := ParseFile("f", b)
		if err != nil {
			return
		}
		x := NewIndex()
		x.replace(clients, time.Now())
		for _, d := range clients {
			for _, a := range d.Addrs {
				if c := x.Lookup(a); c.Kind() != d.Kind || c.Pod() != d.Pod {
					t.Fatalf("%s: found %+v, want %+v", a, c.Describe(), d)
				}
			}
		}
	})
}
