package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/dnstrail/dnstrail/tracer/doctor"
	"github.com/dnstrail/dnstrail/tracer/report"
)

// walks is how many walks are tried until one goes to a CoreDNS of the other node.
const walks = 8

// laptop tries what a user of the cluster calls, with nothing but a kubeconfig.
func (t *trial) laptop(ctx context.Context, pods []corev1.Pod) error {
	out, err := t.dnstrail(ctx, "status")
	t.check(err == nil, "status: %v", err)
	fmt.Printf("%s\n", bytes.TrimSpace(out))
	for p := range slices.Values(pods) {
		if p.Labels["app"] == "cart" || p.Labels["app"] == "probe" {
			t.walk(ctx, &p)
		}
	}
	began := time.Now()
	out, err = t.dnstrail(ctx, "walk", "kubernetes.default.svc.cluster.local", "SRV")
	t.check(err == nil && bytes.Contains(out, []byte("coredns-")), "walk from a pod of its own in %.1f s: %v",
		time.Since(began).Seconds(), err)
	_, err = t.dnstrail(ctx, "walk", "example.com", "--from", "shop/nobody")
	t.check(err != nil && strings.Contains(err.Error(), "nobody"), "walk from a pod that is not there: %v", err)
	t.doctor(ctx)
	return t.tables(ctx)
}

// walk walks from a pod until the walk went over both nodes.
func (t *trial) walk(ctx context.Context, p *corev1.Pod) {
	from := p.Namespace + "/" + p.Name
	for try := 1; ; try++ {
		began := time.Now()
		out, err := t.dnstrail(ctx, "walk", "kubernetes.default.svc.cluster.local", "--from", from)
		text := string(out)
		both := strings.Contains(text, nodes[0].name) && strings.Contains(text, nodes[1].name)
		if err == nil && !both && strings.Contains(text, "coredns-") && try < walks {
			continue // a CoreDNS of the same node answered
		}
		ok := err == nil && both && strings.Contains(text, "coredns-") && strings.Contains(text, p.Name)
		t.check(ok, "walk %d from %s over both nodes and CoreDNS in %.1f s: %v", try, from, time.Since(began).Seconds(), err)
		if !ok {
			fmt.Println(text)
		}
		return
	}
}

// doctor must find nothing at fault, and have looked at each node, the store and CoreDNS.
func (t *trial) doctor(ctx context.Context) {
	began := time.Now()
	out, err := t.dnstrail(ctx, "doctor", "-o", "json")
	took := time.Since(began).Seconds()
	var well []string
	e := doctor.ReadJSON(bytes.NewReader(out), func(f doctor.Finding) {
		if f.State == doctor.Pass {
			well = append(well, f.What)
		} else {
			fmt.Printf("      %s: %s: %s\n", f.State, f.What, f.Is)
		}
	})
	t.check(err == nil && e == nil, "doctor in %.1f s: %v %v", took, err, e)
	for _, want := range []string{"store", "CoreDNS", "kube-dns", nodes[0].name, nodes[1].name} {
		t.check(slices.Contains(well, want), "doctor finds %s well", want)
	}
}

// tables asks for what is counted of the pods' lookups.
func (t *trial) tables(ctx context.Context) error {
	mark := fmt.Sprintf("table-%d", time.Now().Unix())
	pods, err := t.pods(ctx)
	if err != nil {
		return err
	}
	made, err := t.ask(ctx, pods, mark, 10)
	if err != nil {
		return err
	}
	time.Sleep(settle)
	name := mark + "-*"
	out, err := t.dnstrail(ctx, "report", "-o", "json", "--since", "5m", "--name", name)
	var r report.Report
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	t.check(err == nil && r.Lookups == 2*made, "report is about %d of %d lookups: %v", r.Lookups, 2*made, err)
	out, err = t.dnstrail(ctx, "top", "--once", "--window", "5m", "--by", "pod", "--name", name)
	head := fmt.Sprintf("%d lookups in ", 2*made)
	t.check(err == nil && bytes.HasPrefix(out, []byte(head)), "top counts %d lookups: %v", 2*made, err)
	for _, p := range pods {
		there := bytes.Contains(out, []byte(p.Name))
		t.check(there, "top has a line of %s", p.Name)
		if !there {
			fmt.Printf("%s\n", out)
		}
	}
	return nil
}

// tracerOnly installs what leaves CoreDNS alone, and takes it away.
func (t *trial) tracerOnly(ctx context.Context) error {
	if err := t.timed(ctx, "install --tracer-only",
		append([]string{"install", "--tracer-only"}, installFlags...)...); err != nil {
		return err
	}
	out, err := t.dnstrail(ctx, "status")
	t.check(err == nil && bytes.Contains(out, []byte("in 0 of ")), "status after --tracer-only: %v", err)
	return t.timed(ctx, "uninstall", "uninstall")
}

// upgrade brings another image to what is installed while the pods look names up: no lookup may fail of it.
func (t *trial) upgrade(ctx context.Context, pods []corev1.Pod) error {
	if err := t.tag(); err != nil {
		return err
	}
	args := []string{"upgrade", "--no-probe"}
	for _, f := range installFlags {
		args = append(args, strings.NewReplacer(dnstrailImage, nextImage, corednsImage, nextCoreDNSImage).Replace(f))
	}
	err := t.during(ctx, pods, "upgrade", func() error { return t.timed(ctx, "upgrade", args...) })
	if err != nil {
		return err
	}
	out, err := t.dnstrail(ctx, "status")
	t.check(err == nil && bytes.Contains(out, []byte(nextImage)) && bytes.Contains(out, []byte(nextCoreDNSImage)),
		"status tells the images of the upgrade: %v", err)
	return nil
}

// during makes the pods look names up without a pause while something is done, and holds that none failed.
func (t *trial) during(ctx context.Context, pods []corev1.Pod, what string, do func() error) error {
	stop := make(chan struct{})
	type result struct {
		answered int
		err      error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		for i := 0; r.err == nil; i++ {
			select {
			case <-stop:
				done <- r
				return
			default:
			}
			n, err := t.ask(ctx, pods, fmt.Sprintf("during%d-%d", i, time.Now().Unix()), 20)
			r.answered += n
			r.err = err
		}
		<-stop
		done <- r
	}()
	err := do()
	close(stop)
	r := <-done
	t.check(r.err == nil && r.answered > 0, "%s: %d names were looked up meanwhile, and all answered: %v", what,
		r.answered, r.err)
	return err
}
