package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dnstrail/dnstrail/tracer/kube"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
)

// helmLimit is how long a step of helm may take.
const helmLimit = "3m"

// helm installs the chart by helm, upgrades it, rolls it back and takes it away, while lookups are made, and holds that
// the store has rows of them each time. CoreDNS stays as it is: it is not the chart's.
func (t *trial) helm(ctx context.Context) error {
	if err := t.tag(); err != nil {
		return err
	}
	pods, err := t.pods(ctx)
	if err != nil {
		return err
	}
	repository, version, _ := strings.Cut(dnstrailImage, ":")
	_, next, _ := strings.Cut(nextImage, ":")
	values := []string{"--set", "image.repository=" + repository, "--set", "agent.extraArgs={--netns=/proc/self/ns/net}"}
	step := func(what string, args ...string) error {
		began := time.Now()
		cmd := exec.CommandContext(ctx, t.want.helm, args...) // #nosec G204 -- of this program's own words
		cmd.Env = append(os.Environ(), "KUBECONFIG="+t.kubeconfig(), "HELM_CACHE_HOME="+t.run("helm"),
			"HELM_CONFIG_HOME="+t.run("helm"), "HELM_DATA_HOME="+t.run("helm"))
		out, err := cmd.CombinedOutput()
		t.check(err == nil, "helm %s in %.1f s", what, time.Since(began).Seconds())
		if err != nil {
			return fmt.Errorf("helm %s: %w: %s", what, err, bytes.TrimSpace(out))
		}
		return nil
	}
	in := []string{"--namespace", kube.Namespace, "--wait", "--timeout", helmLimit}
	with := func(verb, tag string, more ...string) []string {
		return slices.Concat([]string{verb, "dnstrail", t.want.chart, "--set", "image.tag=" + tag}, values, more)
	}
	if err := step("lint --strict", "lint", "--strict", t.want.chart); err != nil {
		return err
	}
	steps := []struct {
		what, image string
		args        []string
	}{
		{"install", dnstrailImage, with("install", version)},
		{"upgrade", nextImage, with("upgrade", next, "--set", "otlp.protocol=http/protobuf")},
		{"rollback", dnstrailImage, []string{"rollback", "dnstrail"}},
	}
	for _, s := range steps {
		err := t.during(ctx, pods, "helm "+s.what, func() error { return step(s.what, append(s.args, in...)...) })
		if err != nil {
			return err
		}
		if err := t.agentsRun(ctx, s.what, s.image); err != nil {
			return err
		}
		if err := t.rowsCome(ctx, s.what); err != nil {
			return err
		}
	}
	return step("uninstall", append([]string{"uninstall", "dnstrail"}, in...)...)
}

// agentsRun holds that every agent is of an image, and ready.
func (t *trial) agentsRun(ctx context.Context, what, image string) error {
	list, err := t.cluster.Client.CoreV1().Pods(kube.Namespace).List(
		ctx, metav1.ListOptions{LabelSelector: kube.AgentLabels})
	if err != nil {
		return err
	}
	n := 0
	for _, p := range list.Items {
		if kube.Ready(&p) && p.Spec.Containers[0].Image == image {
			n++
		}
	}
	t.check(n == len(nodes), "after helm %s %d of %d agents are ready and of %s", what, n, len(nodes), image)
	return nil
}

// rowsCome looks names up, and holds that the store has a row of each.
func (t *trial) rowsCome(ctx context.Context, what string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pods, err := t.pods(ctx)
	if err != nil {
		return err
	}
	mark := fmt.Sprintf("helm-%s-%d", what, time.Now().Unix())
	made, err := t.ask(ctx, pods, mark, 10)
	if err != nil {
		return err
	}
	time.Sleep(settle)
	base, err := t.cluster.Store(ctx)
	if err != nil {
		return err
	}
	rows, err := rowapi.NewStoreClient(base, nil)
	if err != nil {
		return err
	}
	seen := 0
	err = rows.Lookups(ctx, &output.Filter{Names: []string{mark + "-*"}}, 0, false, func(*output.Row) error {
		seen++
		return nil
	})
	t.check(err == nil && seen == 2*made, "after helm %s %d of %d lookups are rows", what, seen, 2*made)
	return err
}
