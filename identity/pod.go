package identity

import (
	"net/netip"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The label by which the pods of NodeLocal DNSCache are known
// (kubernetes/kubernetes, cluster/addons/dns/nodelocaldns/nodelocaldns.yaml).
const (
	labelApp     = "k8s-app"
	nodeLocalApp = "node-local-dns"
)

// annotationStatic holds the UID that the kubelet gave to a static pod; the API gave its mirror another.
const annotationStatic = "kubernetes.io/config.hash"

// record is what is kept of a pod while it is on its way into the index. It is small, because at the start there are as
// many of them as pods.
type record struct {
	object

	client *Client
	static uid  // the kubelet's UID of a static pod
	ended  bool // has run to its end: its address may be another's
}

// describePod reads a pod. It gives nil for one without a usable UID, which the API never sends.
func describePod(p *corev1.Pod, chosen []string, known owners) *record {
	if _, _, ok := parseUID(string(p.UID)); !ok {
		return nil
	}
	w := known.of(&p.ObjectMeta, p.Spec.NodeName)
	d := Description{
		Kind: Pod, Namespace: p.Namespace, Pod: p.Name, UID: string(p.UID), WorkloadKind: w.kind, Workload: w.name,
		Node: p.Spec.NodeName, ServiceAccount: p.Spec.ServiceAccountName,
	}
	for _, l := range chosen {
		if v, ok := p.Labels[l]; ok {
			if d.Labels == nil {
				d.Labels = make(map[string]string, len(chosen))
			}
			d.Labels[l] = v
		}
	}
	r := &record{
		object: object{p.Namespace, p.Name},
		ended:  p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	r.static, _, _ = parseUID(p.Annotations[annotationStatic])
	var nodeAddrs []netip.Addr
	for _, ip := range p.Status.HostIPs {
		nodeAddrs = appendAddr(nodeAddrs, ip.IP)
	}
	if len(nodeAddrs) == 0 {
		nodeAddrs = appendAddr(nodeAddrs, p.Status.HostIP)
	}
	if p.Labels[labelApp] == nodeLocalApp {
		d.Kind = NodeLocalDNS
	}
	switch {
	case !p.Spec.HostNetwork:
		for _, ip := range p.Status.PodIPs {
			d.Addrs = appendAddr(d.Addrs, ip.IP)
		}
		if len(d.Addrs) == 0 {
			d.Addrs = appendAddr(d.Addrs, p.Status.PodIP)
		}
	case d.Kind == NodeLocalDNS:
		d.Addrs = nodeAddrs // nearly all that a node asks, this pod asks
	}
	r.client = newClient(d, lastSign(p))
	r.client.node = unique.Make(host{p.Spec.NodeName, pack(nodeAddrs)})
	return r
}

// lastSign gives the latest time, in seconds since 1970, at which the pod is known to have come by its addresses or to
// have had them: a pod that outlives its node's reboot keeps its start, but has a new sandbox and its containers start
// again.
func lastSign(p *corev1.Pod) uint32 {
	at := seconds(p.CreationTimestamp)
	if p.Status.StartTime != nil {
		at = seconds(*p.Status.StartTime)
	}
	for i := range p.Status.Conditions {
		c := &p.Status.Conditions[i]
		if c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionTrue {
			at = max(at, seconds(c.LastTransitionTime))
		}
	}
	for i := range p.Status.ContainerStatuses {
		if run := p.Status.ContainerStatuses[i].State.Running; run != nil {
			at = max(at, seconds(run.StartedAt))
		}
	}
	return at
}

// pack writes addresses one after the other, 16 bytes each, with IPv4 as mapped into IPv6.
func pack(addrs []netip.Addr) string {
	b := make([]byte, 0, 16*len(addrs))
	for _, a := range addrs {
		a16 := a.As16()
		b = append(b, a16[:]...)
	}
	return string(b)
}

// unpack reads what pack wrote.
func unpack(s string) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(s)/16)
	for ; len(s) >= 16; s = s[16:] {
		addrs = append(addrs, netip.AddrFrom16([16]byte([]byte(s[:16]))).Unmap())
	}
	return addrs
}

func appendAddr(addrs []netip.Addr, s string) []netip.Addr {
	if a, err := netip.ParseAddr(s); err == nil {
		return append(addrs, a)
	}
	return addrs // empty: not assigned yet
}

// seconds gives a time in whole seconds since 1970, as Kubernetes keeps it.
func seconds(t metav1.Time) uint32 {
	if s := t.Unix(); s > 0 {
		return uint32(min(s, 1<<32-1))
	}
	return 0
}
