package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dnstrail/dnstrail/tracer/doctor"
	"github.com/dnstrail/dnstrail/tracer/kube"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// fault is one made in the cluster: make makes it and gives how it is mended.
type fault struct {
	name          string
	make          func() (mend func() error, err error)
	where, causes []string // any of them is right
	node          string   // whose tracer's word it is, where that is another than the client's
	either        bool     // it may be the word of either's
	rounds        int      // of lookups, one where 0: some may go to a server that the fault does not stand before
	domain        string   // what is looked up is in this domain, example.com where ""
	unwell        []string // what doctor finds FAIL meanwhile; nil: it is not asked
}

// apart gives a pod of the Deployment, and the node of a CoreDNS that is not on the same.
func (t *trial) apart(ctx context.Context, pods []corev1.Pod) (*corev1.Pod, string, error) {
	servers, err := t.cluster.Client.CoreV1().Pods(kube.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: "k8s-app=kube-dns",
	})
	if err != nil {
		return nil, "", err
	}
	for i, p := range pods {
		for _, s := range servers.Items {
			if p.Labels["app"] == "cart" && kube.Ready(&s) && s.Spec.NodeName != p.Spec.NodeName {
				return &pods[i], s.Spec.NodeName, nil
			}
		}
	}
	return nil, "", errors.New("no CoreDNS runs on another node than a pod")
}

// dropped makes a rule on a machine that drops, and gives how it is taken away.
func dropped(m string, rule ...string) (func() error, error) {
	iptables := func(verb string) error {
		args := append([]string{"netns", "exec", netnsName(m), "iptables", "-w", verb}, rule...)
		return command("ip", args...)
	}
	return func() error { return iptables("-D") }, iptables("-I")
}

// lostBetween drops DNS between the pods of two nodes on the switch, which no agent sees.
func lostBetween() (func() error, error) {
	nft := func(args string) error {
		return command("ip", append([]string{"netns", "exec", netnsName(underlay), "nft"}, strings.Fields(args)...)...)
	}
	mend := func() error { return nft("delete table bridge fault") }
	for _, args := range []string{
		"add table bridge fault",
		"add chain bridge fault lost { type filter hook forward priority 0 ; }",
		"add rule bridge fault lost ip saddr " + pods + " ip daddr " + pods + " udp dport 53 drop",
	} {
		if err := nft(args); err != nil {
			return nil, errors.Join(err, mend())
		}
	}
	return mend, nil
}

func (t *trial) faults(ctx context.Context, pods []corev1.Pod) error {
	cart, other, err := t.apart(ctx, pods)
	if err != nil {
		return err
	}
	all := []fault{
		{
			name: "a rule drops the pod's DNS on its node", make: func() (func() error, error) {
				return dropped(cart.Spec.NodeName, "FORWARD", "-s", cart.Status.PodIP, "-p", "udp", "-j", "DROP")
			}, where: []string{"node"}, causes: []string{"policy-drop"},
		},
		{
			name: "a rule drops the pod's DNS on CoreDNS's node", make: func() (func() error, error) {
				return dropped(other, "FORWARD", "-s", cart.Status.PodIP, "-p", "udp", "-j", "DROP")
			}, where: []string{"node"}, causes: []string{"policy-drop"}, node: other, rounds: 5,
		},
		{
			name: "UDP 53 is lost between the nodes", make: lostBetween,
			where: []string{"between-nodes"}, causes: []string{"no-reply-seen", "not-seen-further"}, rounds: 5,
			domain: "shop.svc.cluster.local",
		},
		{
			name: "kube-dns without endpoints", make: func() (func() error, error) {
				patch := func(label string) error {
					_, err := t.cluster.Client.CoreV1().Services(kube.Namespace).Patch(ctx, "kube-dns", types.MergePatchType,
						[]byte(`{"spec":{"selector":{"k8s-app":"`+label+`"}}}`), metav1.PatchOptions{FieldManager: "kubecluster"})
					return err
				}
				err := patch("nobody")
				time.Sleep(3 * time.Second) // for kube-proxy
				return func() error { return patch("kube-dns") }, err
			}, where: []string{"service"}, causes: []string{"no-endpoints"}, unwell: []string{
				"kube-dns", nodes[0].name + " reachability", nodes[0].name + " reachability", // over UDP and TCP
				nodes[1].name + " reachability", nodes[1].name + " reachability",
			},
		},
		{
			name: "CoreDNS stands still", make: func() (func() error, error) {
				pids := t.processes(programs["CoreDNS"])
				if len(pids) == 0 {
					return nil, errors.New("no CoreDNS runs")
				}
				return func() error { return freeze(pids, false) }, freeze(pids, true)
			}, where: []string{"coredns-socket", "coredns"}, causes: []string{"not-read", "no-answer", "stuck"}, either: true,
		},
		{
			name: "the upstream is silent", make: silentUpstream,
			where: []string{"upstream"}, causes: []string{"timeout"},
		},
	}
	for i, f := range all {
		if err := t.fault(ctx, cart, f, fmt.Sprintf("fault%d-%d", i, time.Now().Unix())); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		time.Sleep(3 * time.Second) // what was mended is used again
	}
	return nil
}

// fault makes one, looks a name up, asks what became of it as a user does, and mends the fault.
func (t *trial) fault(ctx context.Context, pod *corev1.Pod, f fault, label string) error {
	mend, err := f.make()
	if err != nil {
		return err
	}
	domain := f.domain
	if domain == "" {
		domain = "example.com"
	}
	name := label + "-%d." + domain
	_, err = t.exec(ctx, pod, "/pod", "look", "-n", strconv.Itoa(max(f.rounds, 1)), "-limit", "4s", name+".")
	var out, found []byte
	if err == nil { // looked at before it is mended: an answer that comes then would be another fault, a late one
		time.Sleep(settle)
		out, err = t.dnstrail(ctx, "observe", "--since", "2m", "--name", label+"-*", "-o", "jsonl")
	}
	if err == nil && f.unwell != nil {
		found, _ = t.dnstrail(ctx, "doctor", "-o", "json") // it fails, since it finds the fault
	}
	if e := mend(); e != nil {
		return fmt.Errorf("mending it: %w", e)
	}
	if err != nil {
		return err
	}
	t.verdict(f, out)
	if f.unwell != nil {
		failed := failures(found)
		t.check(slices.Equal(failed, f.unwell), "%s: doctor finds %q at fault", f.name, failed)
	}
	return nil
}

// failures gives what a doctor found FAIL.
func failures(jsonl []byte) []string {
	var failed []string
	err := doctor.ReadJSON(bytes.NewReader(jsonl), func(f doctor.Finding) {
		if f.State == doctor.Fail {
			failed = append(failed, f.What)
		}
	})
	if err != nil {
		failed = append(failed, err.Error())
	}
	return failed
}

// verdict holds the last word on each lookup of a fault against what is true.
func (t *trial) verdict(f fault, jsonl []byte) {
	last := map[string]output.Row{}
	for line := range bytes.Lines(jsonl) {
		var r output.Row
		if err := json.Unmarshal(line, &r); err != nil {
			t.check(false, "%s: %v", f.name, err)
			return
		}
		if r.Verdict.Where != trace.Answered { // a SERVFAIL of an upstream's silence is no lost lookup, but a fault
			last[r.TraceID] = r
		}
	}
	t.check(len(last) > 0, "%s: %d lookups that failed are shown", f.name, len(last))
	for id, r := range last {
		v := r.Verdict
		t.check(slices.Contains(f.where, v.Where) && slices.Contains(f.causes, v.Cause) && (f.either || v.Node == f.node),
			"%s: %s/%s (%s) %s: %s", f.name, v.Where, v.Cause, v.Certainty, id, v.Text)
	}
}
