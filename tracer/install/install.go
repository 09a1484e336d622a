// Package install brings dnstrail to a cluster and takes it away again: the objects of build/kubernetes, and
// CoreDNS's image and Corefile. It changes what is there by as little as it can, notes what was there before, and
// brings exactly that back.
//
// CoreDNS's image comes before its Corefile, because the stock image does not start with "dnstrail" in the Corefile;
// the way back is the reverse.
package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/dnstrail/dnstrail/tracer/kube"
)

// Options say what is installed. The zero value is the manifests as they are.
type Options struct {
	// Image is dnstrail's, of the agent and the store; CoreDNSImage is CoreDNS's with the plugin. "": the manifests'.
	Image, CoreDNSImage string
	// AgentArgs are further arguments of the agent.
	AgentArgs []string
	// TracerOnly leaves CoreDNS as it is.
	TracerOnly bool
	// Timeout is how long each rollout may take.
	Timeout time.Duration
	// Out is told of each step, a line each.
	Out io.Writer
}

// pollInterval is how often a rollout is looked at.
const pollInterval = 500 * time.Millisecond

// ErrAbsent says that dnstrail install has not been run in the cluster.
var ErrAbsent = errors.New("dnstrail is not installed")

func (o *Options) say(format string, args ...any) { fmt.Fprintf(o.Out, format+"\n", args...) }

// plan is what is there, and what is to be.
type plan struct {
	parts   *parts
	coredns *coredns // nil where it is left alone
	before  *undo    // of an installation that is there; may be nil

	deployment *unstructured.Unstructured // CoreDNS's, with our image
	corefile   string                     // with our block
	blocks     int                        // how many server blocks are to get it
}

// look reads the cluster, and changes nothing.
func (o *Options) look(ctx context.Context, c *kube.Cluster) (*plan, error) {
	p := &plan{}
	account := ""
	var err error
	if p.before, err = loadUndo(ctx, c); err != nil {
		return nil, err
	}
	if !o.TracerOnly {
		if p.coredns, err = findCoreDNS(ctx, c); err != nil {
			return nil, fmt.Errorf("CoreDNS: %w (--tracer-only leaves it alone)", err)
		}
		account = p.coredns.account()
		if p.deployment, err = p.coredns.changed(o.CoreDNSImage); err != nil {
			return nil, fmt.Errorf("CoreDNS's Deployment: %w", err)
		}
		if p.corefile, p.blocks, err = AddBlock(p.coredns.corefile()); err != nil {
			return nil, fmt.Errorf("CoreDNS: %w: add a dnstrail block yourself (build/kubernetes/corefile.yaml)", err)
		}
	}
	if p.parts, err = o.objects(account); err != nil {
		return nil, err
	}
	for _, u := range p.parts.all() {
		if err := foreign(ctx, c.Dynamic, u); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// DryRun writes what Install would apply and change, as YAML with words in comments, and changes nothing.
func DryRun(ctx context.Context, c *kube.Cluster, o Options) error {
	p, err := o.look(ctx, c)
	if err != nil {
		return err
	}
	for _, u := range p.parts.all() {
		if err := o.yaml(u.Object); err != nil {
			return err
		}
	}
	if p.coredns == nil {
		o.say("# CoreDNS is left as it is.")
		return nil
	}
	if by := p.coredns.keeper(); by != "" {
		return o.tell(p, by)
	}
	o.say("# Then CoreDNS's Deployment %s gets this container, and starts anew:", p.deployment.GetName())
	after := &coredns{deployment: p.deployment, container: p.coredns.container}
	if err := o.yaml(after.server()); err != nil {
		return err
	}
	o.say("# Then ConfigMap %s, %s becomes, and CoreDNS starts anew:", p.coredns.config.GetName(), p.coredns.key)
	o.say("%s", p.corefile)
	return nil
}

func (o *Options) yaml(object any) error {
	b, err := yaml.Marshal(object)
	if err != nil {
		return err
	}
	o.say("---\n%s", b)
	return nil
}

// tell says what to change where another keeps CoreDNS.
func (o *Options) tell(p *plan, keeper string) error {
	o.say("# CoreDNS is left as it is, since %s keeps it. There, first change the container of Deployment %s to:", keeper,
		p.deployment.GetName())
	after := &coredns{deployment: p.deployment, container: p.coredns.container}
	if err := o.yaml(after.server()); err != nil {
		return err
	}
	o.say("# and when its pods run, the Corefile to:\n%s", p.corefile)
	return nil
}

// Install brings dnstrail to the cluster, or makes what is there as the options say.
func Install(ctx context.Context, c *kube.Cluster, o Options) error {
	p, err := o.look(ctx, c)
	if err != nil {
		return err
	}
	if err := apply(ctx, c.Dynamic, append(p.parts.rights, p.parts.store...)); err != nil {
		return err
	}
	// The store's Service is there before the pods that are given its address.
	if err := o.rollout(ctx, c, "Deployment", "dnstrail-store"); err != nil {
		return err
	}
	o.say("the store is ready")
	if err := apply(ctx, c.Dynamic, p.parts.agent); err != nil {
		return err
	}
	if err := o.rollout(ctx, c, "DaemonSet", "dnstrail-agent"); err != nil {
		return err
	}
	o.say("the agents are ready")
	switch {
	case p.coredns == nil:
		o.say("CoreDNS is left as it is")
		return nil
	case p.coredns.keeper() != "":
		return o.tell(p, p.coredns.keeper())
	}
	return o.changeCoreDNS(ctx, c, p)
}

// changeCoreDNS changes the image, waits, and changes the Corefile. If the pods do not come up, it takes all back.
func (o *Options) changeCoreDNS(ctx context.Context, c *kube.Cluster, p *plan) error {
	u := p.before
	if u == nil {
		u = &undo{
			Deployment: p.deployment.GetName(), ConfigMap: p.coredns.config.GetName(), Key: p.coredns.key,
			TemplateBefore: p.coredns.template(), CorefileBefore: p.coredns.corefile(),
		}
		u.TemplateAfter, u.CorefileAfter = u.TemplateBefore, u.CorefileBefore
	}
	// First of all the note: whatever happens from here on, uninstall knows what was there.
	if err := u.save(ctx, c); err != nil {
		return err
	}
	err := o.changeBoth(ctx, c, p, u)
	if err == nil {
		return nil
	}
	if p.before != nil {
		return fmt.Errorf("CoreDNS: %w (dnstrail uninstall brings back what was there before dnstrail)", err)
	}
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.Timeout)
	defer cancel()
	if e := o.restore(back, c, u); e != nil {
		return fmt.Errorf("CoreDNS: %w; and it could not be taken back: %w", err, e)
	}
	if e := deleteUndo(back, c); e != nil {
		return fmt.Errorf("CoreDNS: %w; it was taken back, but not the note of it: %w", err, e)
	}
	return fmt.Errorf("CoreDNS: %w (it is as it was before)", err)
}

func (o *Options) changeBoth(ctx context.Context, c *kube.Cluster, p *plan, u *undo) error {
	template := func(d *unstructured.Unstructured) map[string]any { return (&coredns{deployment: d}).template() }
	if !equalJSON(template(p.deployment), p.coredns.template()) {
		after, err := deploymentsOf(c).Update(ctx, p.deployment,
			metav1.UpdateOptions{FieldManager: manager})
		if err != nil {
			return err
		}
		u.TemplateAfter = template(after)
		if err := u.save(ctx, c); err != nil {
			return err
		}
	}
	if err := o.rollout(ctx, c, "Deployment", u.Deployment); err != nil {
		return err
	}
	o.say("CoreDNS runs with the plugin's image")
	if p.blocks == 0 {
		o.say("its Corefile has dnstrail already")
		return nil
	}
	if err := o.setCorefile(ctx, c, u, p.corefile); err != nil {
		return err
	}
	u.CorefileAfter = p.corefile
	if err := u.save(ctx, c); err != nil {
		return err
	}
	d, err := deploymentsOf(c).Get(ctx, u.Deployment, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if err := mark(d, p.corefile); err != nil {
		return err
	}
	if d, err = deploymentsOf(c).Update(ctx, d, metav1.UpdateOptions{FieldManager: manager}); err != nil {
		return err
	}
	u.TemplateAfter = template(d)
	if err := u.save(ctx, c); err != nil {
		return err
	}
	if err := o.rollout(ctx, c, "Deployment", u.Deployment); err != nil {
		return err
	}
	o.say("CoreDNS runs with dnstrail in %d server blocks of its Corefile", p.blocks)
	return nil
}

func (o *Options) setCorefile(ctx context.Context, c *kube.Cluster, u *undo, corefile string) error {
	cm, err := configMapsOf(c).Get(ctx, u.ConfigMap, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if err := unstructured.SetNestedField(cm.Object, corefile, "data", u.Key); err != nil {
		return err
	}
	_, err = configMapsOf(c).Update(ctx, cm, metav1.UpdateOptions{FieldManager: manager})
	return err
}

// restore brings CoreDNS back: its Corefile, then its image. It says where others' later changes stay.
func (o *Options) restore(ctx context.Context, c *kube.Cluster, u *undo) error {
	cm, err := configMapsOf(c).Get(ctx, u.ConfigMap, metav1.GetOptions{})
	if err != nil {
		return err
	}
	now, _, _ := unstructured.NestedString(cm.Object, "data", u.Key)
	corefile, wholeCorefile, err := u.corefileWithout(now)
	if err != nil {
		return fmt.Errorf("take dnstrail out of the Corefile yourself, then run this again: %w", err)
	}
	if corefile != now {
		if err := o.setCorefile(ctx, c, u, corefile); err != nil {
			return err
		}
	}
	d, err := deploymentsOf(c).Get(ctx, u.Deployment, metav1.GetOptions{})
	if err != nil {
		return err
	}
	found := &coredns{deployment: d}
	template, wholeTemplate := u.reversed(found.template())
	if !equalJSON(template, found.template()) {
		if err := unstructured.SetNestedMap(d.Object, template, "spec", "template"); err != nil {
			return err
		}
		_, err = deploymentsOf(c).Update(ctx, d, metav1.UpdateOptions{FieldManager: manager})
		if err != nil {
			return err
		}
	}
	if err := o.rollout(ctx, c, "Deployment", u.Deployment); err != nil {
		return err
	}
	for _, s := range []struct {
		what  string
		whole bool
	}{{"Corefile", wholeCorefile}, {"Deployment", wholeTemplate}} {
		if s.whole {
			o.say("CoreDNS's %s is as it was", s.what)
		} else {
			o.say("CoreDNS's %s has nothing of dnstrail any more; what others changed in it since stays", s.what)
		}
	}
	return nil
}

// Uninstall brings back what was there before Install.
func Uninstall(ctx context.Context, c *kube.Cluster, o Options) error {
	u, err := loadUndo(ctx, c)
	if err != nil {
		return err
	}
	if u != nil {
		if err := o.restore(ctx, c, u); err != nil {
			return fmt.Errorf("CoreDNS: %w", err)
		}
	}
	p, err := o.objects("")
	if err != nil {
		return err
	}
	n, err := remove(ctx, c.Dynamic, p.all())
	if err != nil {
		return err
	}
	if err := o.gone(ctx, c, p); err != nil {
		return err
	}
	if err := deleteUndo(ctx, c); err != nil {
		return err
	}
	if u == nil && n == 0 {
		return ErrAbsent
	}
	o.say("dnstrail's %d objects are gone", n)
	return nil
}

func deleteUndo(ctx context.Context, c *kube.Cluster) error {
	err := configMapsOf(c).Delete(ctx, undoName, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// gone waits until the objects are not there any more, their pods neither.
func (o *Options) gone(ctx context.Context, c *kube.Cluster, p *parts) error {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	for {
		left := ""
		for _, u := range p.all() {
			there, err := clientOf(c.Dynamic, u).Get(ctx, u.GetName(), metav1.GetOptions{})
			if err == nil && there.GetLabels()[managedBy] == manager {
				left = u.GetKind() + " " + u.GetName()
			}
		}
		if left == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is still there after %s", left, o.Timeout)
		case <-time.After(pollInterval):
		}
	}
}

// rollout waits until all pods of a workload are of its latest template, and ready.
func (o *Options) rollout(ctx context.Context, c *kube.Cluster, kind, name string) error {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	for {
		done, selector, err := rolledOut(ctx, c, kind, name)
		if err == nil && done {
			return nil
		}
		if ctx.Err() == nil && err != nil {
			return err
		}
		why := ""
		if selector != "" {
			pods, err := c.Client.CoreV1().Pods(kube.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
			if err == nil {
				why = stuck(pods.Items)
			}
		}
		if why != "" {
			return fmt.Errorf("%s %s does not come up: %s", kind, name, why)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s %s is not ready after %s: kubectl -n %s describe pods -l %s tells more", kind, name, o.Timeout,
				kube.Namespace, selector)
		case <-time.After(pollInterval):
		}
	}
}

func rolledOut(ctx context.Context, c *kube.Cluster, kind, name string) (done bool, selector string, err error) {
	if kind == "DaemonSet" {
		d, err := c.Client.AppsV1().DaemonSets(kube.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		s := d.Status
		return s.ObservedGeneration >= d.Generation && s.UpdatedNumberScheduled == s.DesiredNumberScheduled &&
				s.NumberReady == s.DesiredNumberScheduled && s.DesiredNumberScheduled > 0,
			metav1.FormatLabelSelector(d.Spec.Selector), nil
	}
	d, err := c.Client.AppsV1().Deployments(kube.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, "", err
	}
	return deploymentDone(d), metav1.FormatLabelSelector(d.Spec.Selector), nil
}

func deploymentDone(d *appsv1.Deployment) bool {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	return s.ObservedGeneration >= d.Generation &&
		s.UpdatedReplicas == want && s.Replicas == want && s.ReadyReplicas == want
}
