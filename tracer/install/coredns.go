package install

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	manifests "github.com/dnstrail/dnstrail/build/kubernetes"
	"github.com/dnstrail/dnstrail/tracer/kube"
)

var (
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	configMaps  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
)

func deploymentsOf(c *kube.Cluster) dynamic.ResourceInterface {
	return c.Dynamic.Resource(deployments).Namespace(kube.Namespace)
}

func configMapsOf(c *kube.Cluster) dynamic.ResourceInterface {
	return c.Dynamic.Resource(configMaps).Namespace(kube.Namespace)
}

// corefileMark is the annotation on CoreDNS's pods that tells which Corefile they were started for.
const corefileMark = "dnstrail.io/corefile"

// coredns is CoreDNS as it is set up in the cluster: its Deployment and the ConfigMap of its Corefile.
type coredns struct {
	deployment *unstructured.Unstructured
	config     *unstructured.Unstructured
	key        string // of the Corefile in the ConfigMap
	container  int
}

// dnsLabels select CoreDNS's Deployment: kubeadm, k3s, RKE2, EKS and others label it so.
const dnsLabels = "k8s-app=kube-dns"

// findCoreDNS reads CoreDNS's Deployment and Corefile.
func findCoreDNS(ctx context.Context, c *kube.Cluster) (*coredns, error) {
	list, err := deploymentsOf(c).List(ctx, metav1.ListOptions{LabelSelector: dnsLabels})
	if err != nil {
		return nil, err
	}
	for _, d := range list.Items {
		found := &coredns{deployment: &d}
		if found.container = found.serverContainer(); found.container < 0 {
			continue
		}
		name, key := found.corefileSource()
		if name == "" {
			return nil, fmt.Errorf("the Corefile of Deployment %s is in no ConfigMap", d.GetName())
		}
		found.key = key
		found.config, err = configMapsOf(c).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if found.corefile() == "" {
			return nil, fmt.Errorf("ConfigMap %s has no %s", name, key)
		}
		return found, nil
	}
	return nil, fmt.Errorf("no Deployment in %s with label %s runs CoreDNS", kube.Namespace, dnsLabels)
}

// containers gives those of the Deployment's pods; a change of one changes the Deployment.
func (d *coredns) containers() []any {
	c, _, _ := unstructured.NestedFieldNoCopy(d.deployment.Object, "spec", "template", "spec", "containers")
	list, _ := c.([]any)
	return list
}

// server gives the container that is CoreDNS.
func (d *coredns) server() map[string]any {
	m, _ := d.containers()[d.container].(map[string]any)
	return m
}

// serverContainer gives which container it is, or -1.
func (d *coredns) serverContainer() int {
	return slices.IndexFunc(d.containers(), func(c any) bool {
		m, _ := c.(map[string]any)
		image, _ := m["image"].(string)
		return m["name"] == "coredns" || strings.Contains(image, "coredns")
	})
}

// corefileSource gives the ConfigMap of the Corefile and the key in it, or "".
func (d *coredns) corefileSource() (name, key string) {
	volumes, _, _ := unstructured.NestedSlice(d.deployment.Object, "spec", "template", "spec", "volumes")
	for _, v := range volumes {
		m, _ := v.(map[string]any)
		cm, ok := m["configMap"].(map[string]any)
		if !ok {
			continue
		}
		items, _ := cm["items"].([]any)
		for _, i := range items {
			if item, _ := i.(map[string]any); item["path"] == "Corefile" {
				name, _ = cm["name"].(string)
				key, _ = item["key"].(string)
				return name, key
			}
		}
		if n, _ := cm["name"].(string); len(items) == 0 && n == d.deployment.GetName() {
			return n, "Corefile"
		}
	}
	return "", ""
}

func (d *coredns) corefile() string {
	text, _, _ := unstructured.NestedString(d.config.Object, "data", d.key)
	return text
}

func (d *coredns) account() string {
	name, _, _ := unstructured.NestedString(d.deployment.Object, "spec", "template", "spec", "serviceAccountName")
	return cmp.Or(name, "default")
}

func (d *coredns) template() map[string]any {
	t, _, _ := unstructured.NestedMap(d.deployment.Object, "spec", "template")
	return t
}

// keeper names who keeps CoreDNS as it is and would take back a change: an operator, an add-on manager, helm; "" for
// nobody.
func (d *coredns) keeper() string {
	for _, o := range []*unstructured.Unstructured{d.deployment, d.config} {
		for _, owner := range o.GetOwnerReferences() {
			return owner.Kind + " " + owner.Name
		}
		for k, v := range o.GetLabels() {
			switch {
			case k == managedBy && v != manager:
				return v
			case k == "addonmanager.kubernetes.io/mode" && v == "Reconcile":
				return "the cluster's add-on manager"
			case k == "eks.amazonaws.com/component":
				return "EKS's add-on (if it is managed by EKS)"
			}
		}
		for k := range o.GetAnnotations() {
			switch {
			case strings.HasPrefix(k, "objectset.rio.cattle.io/"):
				return "k3s's or RKE2's manifest controller (/var/lib/rancher/*/server/manifests)"
			case strings.HasPrefix(k, "meta.helm.sh/"):
				return "helm"
			}
		}
	}
	return ""
}

// changed gives the Deployment with what the patch says in its server's container. What the owner set stays: an
// environment variable of the same name, a memory limit that is higher.
func (d *coredns) changed(image string) (*unstructured.Unstructured, error) {
	want, err := patched()
	if err != nil {
		return nil, err
	}
	after := &coredns{deployment: d.deployment.DeepCopy(), container: d.container}
	c := after.server()
	c["image"] = cmp.Or(image, want.Image)
	env, _ := c["env"].([]any)
	for _, e := range want.Env {
		if slices.ContainsFunc(env, func(h any) bool { m, _ := h.(map[string]any); return m["name"] == e["name"] }) {
			continue
		}
		env = append(env, e)
	}
	c["env"] = env
	mounts, _ := c["volumeMounts"].([]any)
	if more := missing(mounts, want.VolumeMounts, "mountPath"); len(more) > 0 {
		c["volumeMounts"] = append(mounts, more...)
	}
	at := []string{"spec", "template", "spec", "volumes"}
	volumes, _, err := unstructured.NestedSlice(after.deployment.Object, at...)
	if err != nil {
		return nil, err
	}
	if more := missing(volumes, want.Volumes, "name"); len(more) > 0 {
		if err := unstructured.SetNestedSlice(after.deployment.Object, append(volumes, more...), at...); err != nil {
			return nil, err
		}
	}
	limit, found, err := unstructured.NestedString(c, "resources", "limits", "memory")
	if err != nil {
		return nil, err
	}
	if found {
		has, err := resource.ParseQuantity(limit)
		if err != nil {
			return nil, err
		}
		wants, err := resource.ParseQuantity(want.Memory)
		if err != nil {
			return nil, err
		}
		if has.Cmp(wants) < 0 {
			if err := unstructured.SetNestedField(c, want.Memory, "resources", "limits", "memory"); err != nil {
				return nil, err
			}
		}
	}
	return after.deployment, nil
}

// missing gives those of wanted that none in have is like, by the value of a key.
func missing(have []any, wanted []map[string]any, key string) (more []any) {
	for _, w := range wanted {
		if !slices.ContainsFunc(have, func(h any) bool { m, _ := h.(map[string]any); return m[key] == w[key] }) {
			more = append(more, w)
		}
	}
	return more
}

// patch is what build/kubernetes/coredns-patch.yaml changes in CoreDNS's container.
type patch struct {
	Image, Memory              string
	Env, VolumeMounts, Volumes []map[string]any
}

func patched() (*patch, error) {
	var doc struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Image             string
						Env, VolumeMounts []map[string]any
						Resources         struct{ Limits struct{ Memory string } }
					}
					Volumes []map[string]any
				}
			}
		}
	}
	if err := yaml.Unmarshal([]byte(manifests.CoreDNSPatch), &doc); err != nil {
		return nil, err
	}
	spec := doc.Spec.Template.Spec
	c := spec.Containers[0]
	return &patch{c.Image, c.Resources.Limits.Memory, c.Env, c.VolumeMounts, spec.Volumes}, nil
}

// mark notes on the pods which Corefile they are started for, so that a change of it starts them anew.
func mark(d *unstructured.Unstructured, corefile string) error {
	sum := sha256.Sum256([]byte(corefile))
	return unstructured.SetNestedField(d.Object, hex.EncodeToString(sum[:8]),
		"spec", "template", "metadata", "annotations", corefileMark)
}

// undo is what CoreDNS was before, and what it was made.
type undo struct {
	Deployment, ConfigMap, Key    string
	TemplateBefore, TemplateAfter map[string]any
	CorefileBefore, CorefileAfter string
}

func (u *undo) save(ctx context.Context, c *kube.Cluster) error {
	b, err := json.Marshal(u)
	if err != nil {
		return err
	}
	o := undoObject()
	if err := unstructured.SetNestedField(o.Object, string(b), "data", "undo"); err != nil {
		return err
	}
	_, err = configMapsOf(c).Apply(ctx, undoName, o,
		metav1.ApplyOptions{FieldManager: manager, Force: true})
	return err
}

// loadUndo gives nil where nothing was changed.
func loadUndo(ctx context.Context, c *kube.Cluster) (*undo, error) {
	o, err := configMapsOf(c).Get(ctx, undoName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, _, _ := unstructured.NestedString(o.Object, "data", "undo")
	u := &undo{}
	if err := json.Unmarshal([]byte(text), u); err != nil {
		return nil, fmt.Errorf("ConfigMap %s: %w", undoName, err)
	}
	return u, nil
}

// reversed gives the pods' template without our changes. Where others have changed it since, only what is ours is
// taken back; whole tells that the template is the one from before.
func (u *undo) reversed(now map[string]any) (template map[string]any, whole bool) {
	if equalJSON(now, u.TemplateAfter) {
		return u.TemplateBefore, true
	}
	template = (&unstructured.Unstructured{Object: now}).DeepCopy().Object
	before, after, is := byName(u.TemplateBefore), byName(u.TemplateAfter), byName(template)
	for name, c := range is {
		b, a := before[name], after[name]
		if b == nil || a == nil {
			continue
		}
		if equalJSON(c["image"], a["image"]) {
			c["image"] = b["image"]
		}
		reverseList(c, b, a, "env")
		reverseList(c, b, a, "volumeMounts")
		at := []string{"resources", "limits", "memory"}
		isLimit, _, _ := unstructured.NestedString(c, at...)
		ours, _, _ := unstructured.NestedString(a, at...)
		if was, found, _ := unstructured.NestedString(b, at...); found && isLimit == ours {
			_ = unstructured.SetNestedField(c, was, at...)
		}
	}
	specOf := func(t map[string]any) map[string]any { s, _ := t["spec"].(map[string]any); return s }
	if spec := specOf(template); spec != nil {
		reverseList(spec, specOf(u.TemplateBefore), specOf(u.TemplateAfter), "volumes")
	}
	unstructured.RemoveNestedField(template, "metadata", "annotations", corefileMark)
	if left, found, _ := unstructured.NestedMap(template, "metadata", "annotations"); found && len(left) == 0 {
		unstructured.RemoveNestedField(template, "metadata", "annotations")
	}
	return template, equalJSON(template, u.TemplateBefore)
}

// reverseList takes out of a list in an object what is there as we set it and was not there before.
func reverseList(object, before, after map[string]any, key string) {
	was, _ := before[key].([]any)
	ours, _ := after[key].([]any)
	list, _ := object[key].([]any)
	list = slices.DeleteFunc(slices.Clone(list), func(e any) bool {
		same := func(o any) bool { return equalJSON(o, e) }
		return slices.ContainsFunc(ours, same) && !slices.ContainsFunc(was, same)
	})
	if object[key] = list; len(list) == 0 {
		delete(object, key)
	}
}

// byName gives the containers of a pod template.
func byName(template map[string]any) map[string]map[string]any {
	list, _, _ := unstructured.NestedFieldNoCopy(template, "spec", "containers")
	containers, _ := list.([]any)
	found := map[string]map[string]any{}
	for _, c := range containers {
		if m, ok := c.(map[string]any); ok {
			name, _ := m["name"].(string)
			found[name] = m
		}
	}
	return found
}

// equalJSON compares as JSON, in which a number has one form only.
func equalJSON(a, b any) bool {
	normal := func(v any) (n any) {
		if j, err := json.Marshal(v); err == nil {
			_ = json.Unmarshal(j, &n)
		}
		return n
	}
	return reflect.DeepEqual(normal(a), normal(b))
}

// corefileWithout gives the Corefile without our changes; whole tells that it is the one from before.
func (u *undo) corefileWithout(now string) (corefile string, whole bool, err error) {
	if now == u.CorefileAfter {
		return u.CorefileBefore, true, nil
	}
	if now == u.CorefileBefore {
		return now, true, nil
	}
	corefile, _, err = RemoveBlocks(now)
	return corefile, corefile == u.CorefileBefore, err
}

// stuck says why a workload's pods do not start, or "".
func stuck(pods []corev1.Pod) string {
	for _, p := range pods {
		for _, s := range p.Status.ContainerStatuses {
			w := s.State.Waiting
			if w == nil {
				continue
			}
			switch w.Reason {
			case "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName",
				"CreateContainerConfigError", "CreateContainerError":
			case "CrashLoopBackOff":
				if s.RestartCount < 2 {
					continue
				}
			default:
				continue
			}
			return fmt.Sprintf("pod %s: %s: %s", p.Name, w.Reason, w.Message)
		}
	}
	return ""
}
