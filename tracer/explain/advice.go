package explain

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// scene is what advice may name.
type scene struct {
	where                string
	place                string // the machine that the stage is on, in words
	node, pod, namespace string // the client's
	service, server      string // the address asked, and what it was translated to; "" if not known
	transport            string
	tunnel               bool     // the last place it was seen at was inside a tunnel's packet
	upstreams            []string // that failed
	name, qtype          string
	port                 string // the client's; "" if not known
	full                 bool   // CoreDNS had as many queries at its upstreams as it may
	asked, behind        string // the port asked, and the one it was translated to; behind is "" where they are one
}

func newScene(t *trace.Trace, v trace.Verdict) scene {
	who := t.Asker()
	s := scene{
		where: v.Where, node: cmp.Or(who.Node, "the client's node"), pod: who.Pod, namespace: who.Namespace,
		transport: cmp.Or(t.Transport(), "udp"), name: cmp.Or(t.Name(), "NAME"), qtype: cmp.Or(t.Type(), "A"),
	}
	s.place = here(t, v, s.node)
	if who.Address.IsValid() {
		s.port = strconv.Itoa(int(who.Address.Port()))
	}
	if to := t.Asked().Address; to.IsValid() {
		s.service = to.Addr().String()
	}
	if to := t.Translated(); to.IsValid() {
		s.server = to.Addr().String()
		if asked := t.Asked().Address; asked.IsValid() && asked.Port() != to.Port() {
			s.asked, s.behind = strconv.Itoa(int(asked.Port())), strconv.Itoa(int(to.Port()))
		}
	}
	client := t.Client()
	for _, sp := range t.Spans {
		if client != nil && sp.Attributes.String(semconv.Segment) != "" && sp.SameSender(client) &&
			sp.Parent == t.ID.ClientSpanID() {
			s.tunnel, _ = sp.Attributes.Bool(semconv.SegmentTunnel)
		}
		if sp.Kind == trace.KindClient && sp.From(semconv.ScopePlugin) && sp.Status == trace.StatusError &&
			sp.Peer().IsValid() {
			if up := sp.Peer().Addr().String(); !strings.Contains(strings.Join(s.upstreams, " "), up) {
				s.upstreams = append(s.upstreams, up)
			}
		}
	}
	if server := t.Server(); verdict.Where(v.Where) == verdict.Upstream && len(s.upstreams) > 0 {
		// There CoreDNS is the client, and who was asked is its upstream.
		s.server = s.upstreams[len(s.upstreams)-1]
		s.service, s.asked, s.behind, s.pod = s.server, "", "", ""
		if server != nil {
			s.pod, s.namespace = server.String(semconv.K8SPodName), server.String(semconv.K8SNamespaceName)
		}
	} else if server != nil {
		s.full = server.Attributes.String(semconv.FailureCause) == semconv.FailedByLimit
	}
	return s
}

func (s *scene) here() string { return s.place }

// here names the machine that a verdict's stage is on: by the tracer that said so, by the owner of the network
// namespace of the drop, else by the stage.
func here(t *trace.Trace, v trace.Verdict, clientNode string) string {
	if v.Node != "" {
		return v.Node
	}
	if o := v.DropAt.Owner; o.Kind == semconv.OwnerPod {
		return "the network namespace of " + o.String() // nsenter -t PID -n enters it
	} else if o.Kind == semconv.OwnerNode || o.Kind == semconv.OwnerHost {
		return o.Name
	}
	if netns := v.DropAt.NetNS; netns != 0 && netns != nodeNetNS(t) {
		return fmt.Sprintf("the machine of network namespace %d (lsns -t net tells which)", netns)
	}
	switch verdict.Where(v.Where) {
	case verdict.CoreDNSSocket, verdict.CoreDNS, verdict.Upstream:
		return "the CoreDNS pod's node"
	}
	return clientNode
}

// nodeNetNS gives the network namespace of the client's node, where the query came out of the pod; 0 if it was not
// seen.
func nodeNetNS(t *trace.Trace) uint32 {
	for _, s := range t.Spans {
		if s.Stage() == verdict.PodLink && !s.IsAnswer() {
			return s.Finish().NetNS
		}
	}
	return 0
}

// exec gives the words that run a command in the client's pod.
func (s *scene) exec(command string) string {
	if s.pod == "" {
		return command
	}
	return fmt.Sprintf("kubectl exec -n %s %s -- %s", s.namespace, s.pod, command)
}

func (s *scene) target() string { return cmp.Or(s.server, s.service, "the DNS server's address") }

// pastTheTunnel is where to look for a query that left inside a tunnel's packet.
func pastTheTunnel(s *scene) []string {
	return []string{
		"what lies between the nodes: it left " + s.node + " inside a tunnel's packet, and firewalls and security groups " +
			"must pass that, both ways (VXLAN: UDP 8472 or 4789; GENEVE: UDP 6081; IP in IP: protocol 4), not port 53; that " +
			"ping between the nodes passes says nothing about it",
		"whether it arrives: run the dnstrail agent on the other node too, or there: tcpdump -ni any 'udp port 8472 or " +
			"4789 or 6081 or ip proto 4'",
	}
}

// causes tells, for a cause, what to look at. A cause means the same at every stage; where to look is in the scene.
var causes = map[verdict.Cause]func(*scene) []string{
	verdict.CausePolicyDrop: func(s *scene) []string {
		return []string{
			"rules that drop port 53 on " + s.here() + ": nft list ruleset; iptables-save -c | grep -E 'DROP|REJECT'",
			"network policies of both ends: kubectl get networkpolicy -A (egress of " + cmp.Or(s.namespace, "the client") +
				" to kube-system, UDP and TCP 53)",
		}
	},
	verdict.CauseNoRoute: func(s *scene) []string {
		return []string{"the route on " + s.here() + ": ip route get " + s.target(), "the pod's own: " +
			s.exec("ip route get "+cmp.Or(s.service, s.target()))}
	},
	verdict.CauseNeighbour: func(s *scene) []string {
		return []string{"the neighbor entries on " + s.here() + ": ip neigh show nud failed; the next hop is down, or " +
			"does not answer ARP (IPv6: neighbor solicitation)", "the route that leads there: ip route get " + s.target()}
	},
	verdict.CauseRPFilter: func(s *scene) []string {
		return []string{"reverse-path filtering on " + s.here() + ": sysctl -a | grep '\\.rp_filter' (1 drops what comes " +
			"in by another device than its answer would leave by)"}
	},
	verdict.CauseTooBig: func(s *scene) []string {
		return []string{"the MTU of every device on the way: ip -d link (an overlay takes 50 bytes and more)",
			"the EDNS buffer size: CoreDNS's bufsize plugin with 1232, so that large answers are truncated and asked for by " +
				"TCP instead of being cut to fragments"}
	},
	verdict.CauseFragment: func(s *scene) []string {
		return []string{"firewalls and network policies on the way that judge by port: a later fragment has none, and is " +
			"dropped", "the EDNS buffer size: CoreDNS's bufsize plugin with 1232, so that large answers are truncated and " +
			"asked for by TCP instead of being cut to fragments"}
	},
	verdict.CauseTunnel: func(s *scene) []string {
		return []string{"the tunnel device on " + s.here() + ": ip -d link show type vxlan (identifier, port, local " +
			"address), bridge fdb show, ip neigh: do they know the other nodes as they are now?", "the CNI's agent on both " +
			"nodes: it writes these entries"}
	},
	verdict.CauseChecksum: func(s *scene) []string {
		return []string{"whether a device on the way leaves checksums to hardware that is not there: ethtool -K DEVICE " +
			"tx off (with VXLAN: tx-checksum-ip-generic off) on the sending node, and try again"}
	},
	verdict.CauseNoListener: func(s *scene) []string {
		if verdict.Where(s.where) == verdict.Upstream {
			return []string{
				"whether a DNS server runs at " + s.target() + ": " + s.exec("dig @"+s.target()+" "+s.name+" "+s.qtype),
				"the addresses of forward in the Corefile, and those of the resolv.conf that it names",
			}
		}
		return []string{"who listens at " + s.target() + " port 53: ss -lun in the CoreDNS pod",
			"whether that address is a running CoreDNS: kubectl get endpointslices -n kube-system -l " +
				"kubernetes.io/service-name=kube-dns; kubectl get pods -n kube-system -l k8s-app=kube-dns -o wide"}
	},
	verdict.CauseBufferFull: func(s *scene) []string {
		return []string{"whether CoreDNS gets enough CPU: throttling (container_cpu_cfs_throttled_periods_total), " +
			"queries a second and replicas", "the socket's queue and its drops: ss -lunm sport = 53 in the CoreDNS pod; the " +
			"limit: sysctl net.core.rmem_default"}
	},
	verdict.CauseNotRead: func(s *scene) []string {
		return []string{"the state of the CoreDNS process: ps -o stat,wchan,args -C coredns (T: stopped; D: waiting for " +
			"the disk)", "whether it gets any CPU: throttling, other load on its node"}
	},
	verdict.CauseSocketClosed: func(s *scene) []string {
		return []string{"whether CoreDNS restarted then: kubectl get pods -n kube-system -l k8s-app=kube-dns (RESTARTS), " +
			"kubectl logs --previous"}
	},
	verdict.CauseClientGone: func(s *scene) []string {
		return []string{"how long the client waits: options timeout and attempts in its /etc/resolv.conf, or its own " +
			"deadline; the answer came after that", "what took the time: see the longest step above"}
	},
	verdict.CauseQueueFull: func(s *scene) []string {
		return []string{"the queues on " + s.here() + ": tc -s qdisc; cat /proc/net/softnet_stat (second column: dropped)"}
	},
	verdict.CauseNoAnswer: func(s *scene) []string {
		return []string{"why CoreDNS wrote no answer: its log; plugins that drop on purpose (acl with drop, erratic, " +
			"ratelimit); a panic (coredns_panics_total)", "the Corefile: kubectl get configmap -n kube-system coredns -o yaml"}
	},
	verdict.CauseUntranslated: func(s *scene) []string {
		return []string{"whether kube-proxy (or its replacement) runs on " + s.node + " and has rules for " +
			cmp.Or(s.service, "the service") + ": nft list ruleset | grep " + cmp.Or(s.service, "ADDRESS"), "whether the " +
			"service has ready endpoints: kubectl get endpointslices -n kube-system -l kubernetes.io/service-name=kube-dns"}
	},
	verdict.CauseNoReply: func(s *scene) []string {
		if s.tunnel {
			return pastTheTunnel(s)
		}
		return []string{
			fmt.Sprintf("what lies between the nodes: firewalls and security groups must pass %s 53 from %s to %s, both "+
				"ways; that ping or TCP 80 pass says nothing about it", strings.ToUpper(s.transport), s.node, s.target()),
			"whether it arrives: run the dnstrail agent on the other node too, or there: tcpdump -ni any port 53 and host " +
				s.target(),
		}
	},
	verdict.CauseVanished: func(s *scene) []string {
		if s.tunnel {
			return pastTheTunnel(s)
		}
		return []string{
			"the last place it was seen, above, and what comes after it: a virtual switch, a CNI's eBPF program, another node",
			fmt.Sprintf("for a way between nodes: firewalls and security groups must pass %s 53 both ways",
				strings.ToUpper(s.transport)),
		}
	},
	verdict.CauseTimeout: func(s *scene) []string {
		up := "the upstreams of the Corefile's forward"
		if len(s.upstreams) > 0 {
			up = strings.Join(s.upstreams, ", ")
		}
		return []string{"whether the upstream answers from the CoreDNS pod's network: dig @" + up + " " + s.name + " " +
			s.qtype, "forward's health checks and failover: coredns_forward_healthcheck_broken_total, " +
			"coredns_proxy_request_duration_seconds"}
	},
	verdict.CauseServerError: func(s *scene) []string {
		return []string{"CoreDNS's log, with the plugins errors and log on, for " + s.name,
			"the upstreams that it asked: see the steps above"}
	},
	verdict.CauseRefused: func(s *scene) []string {
		if s.full {
			return []string{
				"how often it happens: coredns_forward_max_concurrent_rejects_total; the limit: max_concurrent in the Corefile",
				"why so many queries wait: upstreams that are slow or silent (coredns_proxy_request_duration_seconds)",
			}
		}
		return []string{"which server refuses: CoreDNS has no server block or plugin for " + s.name +
			", an acl blocks the client, or the upstream refused"}
	},
	verdict.CauseWrongSource: func(s *scene) []string {
		return []string{"a translation on the way back that is missing: the client asked " +
			cmp.Or(s.service, "one address") + " and another one answered; look for asymmetric routes and for conntrack " +
			"entries that were flushed: conntrack -L -p udp --dport 53",
			"where client and server are on one node: sysctl net.bridge.bridge-nf-call-iptables (and -ip6tables) must be 1, " +
				"or frames of one bridge pass the translation by (modprobe br_netfilter)",
			"where the answer took long: sysctl net.netfilter.nf_conntrack_udp_timeout on " + s.node +
				" must be longer than a client waits, or the entry is gone when the answer comes"}
	},
	verdict.CauseUnexpectedAnswer: func(s *scene) []string {
		return []string{
			"what changes the question on the way: CoreDNS's rewrite without a rule for the answer (answer auto, or rules " +
				"that do not continue), a proxy, a middlebox that answers for others",
			"what comes back: " + s.exec("dig +noall +comments +question "+s.name+" "+s.qtype) +
				" (\"Question section mismatch\", \"ID mismatch\")",
		}
	},
	verdict.CauseClosed: func(s *scene) []string {
		return []string{
			"why " + s.target() + " closes connections: its log, a restart, its limit of TCP connections or idle time (RFC " +
				"7766, section 6.2.3: clients must expect it, and ask again)",
			"whether a proxy or load balancer between ends them",
		}
	},
	verdict.CauseNoPort: func(s *scene) []string {
		return []string{
			"who holds the client's local ports: " + s.exec("ss -uanp") + "; " + s.exec("ss -tanp"),
			"their range: " + s.exec("sysctl net.ipv4.ip_local_port_range net.ipv4.ip_local_reserved_ports"),
		}
	},
	verdict.CauseUnsent: func(s *scene) []string {
		return []string{
			"what the client itself says: " + s.exec("dig @"+cmp.Or(s.service, s.target())+" "+s.name),
			"eBPF programs at its cgroup (a data path's, for a service without endpoints): bpftool cgroup tree",
			"its local ports: " + s.exec("ss -uanp"),
		}
	},
	verdict.CauseHopLimit: func(s *scene) []string {
		return []string{
			"whether routes lead in a circle: " + s.exec("traceroute -n -U -p 53 "+s.target()),
			"what the sender allows: " + s.exec("sysctl net.ipv4.ip_default_ttl net.ipv6.conf.all.hop_limit"),
		}
	},
	verdict.CausePortExhausted: func(s *scene) []string {
		return []string{
			"how many flows are masqueraded to " + s.target() + " on " + s.here() + ": conntrack -L -p udp --dport 53 | wc " +
				"-l; conntrack -S (insert_failed)",
			"the port range of the masquerade rule: nft list ruleset | grep -i masquerade (a range, to :PORT-PORT, must be " +
				"large; random-fully helps against clashes); better, do not masquerade pod to pod",
		}
	},
	verdict.CauseTooLate: func(s *scene) []string {
		advice := []string{"what took the time: the longest step above", "how long the client waits: options timeout and " +
			"attempts in its /etc/resolv.conf (glibc: 5 s, twice), or a deadline of its own"}
		if len(s.upstreams) > 0 {
			advice = append(advice, "the upstreams that failed first: "+strings.Join(s.upstreams, ", ")+
				"; forward waits 2 s for each attempt")
		}
		return advice
	},
	verdict.CauseNoEndpoints: func(s *scene) []string {
		return []string{"the service's endpoints: kubectl get endpointslices -n kube-system -l " +
			"kubernetes.io/service-name=kube-dns; CoreDNS pods that are not ready are none: kubectl get pods -n kube-system " +
			"-l k8s-app=kube-dns",
			"whether the service is for local endpoints alone: kubectl get service -n kube-system kube-dns -o " +
				"jsonpath='{.spec.internalTrafficPolicy}' (Local: a node without a CoreDNS of its own drops the queries)"}
	},
	verdict.CauseDeadEndpoint: func(s *scene) []string {
		return []string{"whether " + s.target() + " is a CoreDNS that runs: kubectl get pods -n kube-system -l " +
			"k8s-app=kube-dns -o wide", "if not: kube-proxy on " + s.node + " keeps a stale rule or conntrack entry: its " +
			"log; conntrack -D -p udp --orig-dst " + cmp.Or(s.service, "ADDRESS") + " --dport 53",
			"a client that keeps its source port keeps the old entry alive, too: conntrack -D -p udp --orig-port-src " +
				cmp.Or(s.port, "PORT") + " on " + s.node}
	},
	verdict.CauseInsertRace: func(s *scene) []string {
		return []string{"the client sends A and AAAA at once from one socket, and both make a conntrack entry: use " +
			"NodeLocal DNSCache, or options use-vc or single-request-reopen in its resolv.conf (glibc)", "the counter: " +
			"conntrack -S (insert_failed) on " + s.here()}
	},
	verdict.CauseConntrack: func(s *scene) []string {
		return []string{"the connection-tracking table on " + s.here() + ": sysctl net.netfilter.nf_conntrack_count " +
			"net.netfilter.nf_conntrack_max; who fills it: conntrack -L | head", "raise nf_conntrack_max (kube-proxy: " +
			"--conntrack-max-per-core)"}
	},
	verdict.CauseRejected: func(s *scene) []string {
		return []string{"who rejects: a REJECT rule on " + s.here() + ": nft list ruleset; iptables-save | grep REJECT",
			"whether the service has endpoints: kube-proxy rejects for one that has none: kubectl get endpointslices -n " +
				"kube-system"}
	},
	verdict.CauseEvicted: func(*scene) []string {
		return []string{
			"what the agent says that it lost: dnstrail_losses_total, and the foot of dnstrail observe",
			"the agent's --memory and --max-in-flight, where more lookups were unanswered at once than it holds: the " +
				"client that has the most gives up its own first",
		}
	},
	verdict.CauseDropped: func(s *scene) []string {
		return []string{"the kernel's reason, above, on " + s.here() +
			": its meaning stands in include/net/dropreason-core.h; counters: nstat -az"}
	},
}

// advice gives what to look at next for a lookup that did not end well.
func advice(t *trace.Trace, v trace.Verdict) []string {
	if v.Where == "" || v.Where == trace.Answered {
		return nil
	}
	s := newScene(t, v)
	tell := causes[verdict.Cause(v.Cause)]
	if tell == nil {
		return nil
	}
	if more := s.pastTheTranslation(verdict.Cause(v.Cause)); more != "" {
		return append(tell(&s), more)
	}
	return tell(&s)
}

// pastTheTranslation is what to know of a query that was translated to another port than it asked; "" for the others.
func (s *scene) pastTheTranslation(cause verdict.Cause) string {
	if s.behind == "" {
		return ""
	}
	if to, err := netip.ParseAddr(s.server); err == nil && to.IsLoopback() {
		return "who redirects port " + s.asked + " in the client's pod to " + net.JoinHostPort(s.server, s.behind) +
			" (a rule of nat OUTPUT: " + s.exec("nft list ruleset") + "; " + s.exec("iptables -t nat -S OUTPUT") +
			"), and whether the proxy there runs: " + s.exec("ss -lunp sport = "+s.behind)
	}
	if cause == verdict.CausePolicyDrop || cause == verdict.CauseRejected {
		return "rules and network policies for port " + s.behind + ", not " + s.asked +
			": they are judged after the translation, and must allow that port"
	}
	return "the server's own port is " + s.behind + ", behind the service's " + s.asked +
		": if its side is not seen, add it to the agent's --port (" + s.asked + "," + s.behind + ")"
}
