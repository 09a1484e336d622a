package main

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/lab"
)

// story is one thing that is shown: a command in a pod, and what has to come of it.
type story struct {
	title   string
	look    string // what to look at in the trace
	pod     string // the workload
	command []string
	// during is a fault that is there while the command runs.
	during func(*scene) (lab.Undo, error)
	fails  bool // the command is to fail
	want   []want
}

// want is one lookup that the command makes. All are of type A.
type want struct {
	name  string // as sent
	rcode string // "": no answer
	// cache is what the plugin is to say about its cache, "" for anything.
	cache string
	// upstream says that CoreDNS asked the upstream.
	upstream bool
	atLeast  time.Duration
	// where is the verdict's, "answered" if empty; cause is one of the verdict's.
	where, cause string
}

const slow = 600 * time.Millisecond

var stories = []story{
	{
		title:   "A name of the cluster",
		look:    "one trace from the process in its pod to the plugin that answered: no upstream",
		pod:     "cart",
		command: []string{"getent", "ahostsv4", "checkout"},
		want:    []want{{name: "checkout.shop.svc.cluster.local.", rcode: "NOERROR"}},
	},
	{
		title:   "A name of the Internet, asked for the first time",
		look:    "cache misses, forward asks the upstream: nearly all of the time is there",
		pod:     "cart",
		command: []string{"dig", "+noall", "+answer", "www.example.com"},
		want: []want{{name: "www.example.com.", rcode: "NOERROR", cache: "miss", upstream: true,
			atLeast: 20 * time.Millisecond}},
	},
	{
		title:   "The same again",
		look:    "cache hits, nothing below it",
		pod:     "cart",
		command: []string{"dig", "+noall", "+answer", "www.example.com"},
		want:    []want{{name: "www.example.com.", rcode: "NOERROR", cache: "hit"}},
	},
	{
		title:   "The service's other address: IPv6 from pod to CoreDNS",
		look:    "the same path in the other family",
		pod:     "cart",
		command: []string{"dig", "@" + lab.ServiceV6.String(), "+noall", "+answer", "www.example.net"},
		want:    []want{{name: "www.example.net.", rcode: "NOERROR", cache: "miss", upstream: true}},
	},
	{
		title:   "A name that does not exist, through the search list (ndots:5)",
		look:    "one name, four lookups: what the search list costs",
		pod:     "checkout",
		command: []string{"getent", "ahostsv4", "ledger.corp"},
		fails:   true,
		want: []want{
			{name: "ledger.corp.shop.svc.cluster.local.", rcode: "NXDOMAIN"},
			{name: "ledger.corp.svc.cluster.local.", rcode: "NXDOMAIN"},
			{name: "ledger.corp.cluster.local.", rcode: "NXDOMAIN"},
			{name: "ledger.corp.", rcode: "NXDOMAIN", upstream: true},
		},
	},
	{
		title:   "A slow upstream, asked by a Go program",
		look:    "the upstream attempt took the time, not CoreDNS and not the network",
		pod:     "checkout",
		command: []string{"lookup", "api.payments.example.com."},
		want:    []want{{name: "api.payments.example.com.", rcode: "NOERROR", cache: "miss", upstream: true, atLeast: slow}},
	},
	{
		title:   "A lookup that is lost: node-1 drops what it forwards to UDP port 53",
		look:    "no answer, and where and why in words",
		pod:     "cart",
		command: []string{"dig", "+tries=1", "+time=2", "+noall", "+answer", "status.example.org"},
		fails:   true,
		during: func(s *scene) (lab.Undo, error) {
			return s.cluster.Node("node-1").Drop(lab.DropRule{Hook: lab.Forward, Proto: unix.IPPROTO_UDP, DstPort: 53})
		},
		want: []want{{name: "status.example.org.", where: "node", cause: "policy-drop"}},
	},
}
