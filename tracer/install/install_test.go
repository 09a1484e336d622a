package install

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// kubeadmDeployment is what install reads of kubeadm's.
const kubeadmDeployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  replicas: 2
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      containers:
      - name: coredns
        image: registry.k8s.io/coredns/coredns:v1.15.0
        args: [-conf, /etc/coredns/Corefile]
        resources: {limits: {memory: 170Mi}, requests: {cpu: 100m, memory: 70Mi}}
      volumes:
      - name: config-volume
        configMap: {name: coredns, items: [{key: Corefile, path: Corefile}]}
`

func deployment(t *testing.T, text string) *coredns {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		t.Fatal(err)
	}
	d := &coredns{deployment: u, config: &unstructured.Unstructured{Object: map[string]any{}}}
	d.container = d.serverContainer()
	return d
}

func env(c map[string]any) map[string]string {
	found := map[string]string{}
	list, _ := c["env"].([]any)
	for _, e := range list {
		m, _ := e.(map[string]any)
		name, _ := m["name"].(string)
		found[name], _ = m["value"].(string)
	}
	return found
}

func memory(c map[string]any) string {
	text, _, _ := unstructured.NestedString(c, "resources", "limits", "memory")
	return text
}

func TestChangeOfCoreDNS(t *testing.T) {
	d := deployment(t, kubeadmDeployment)
	if name, key := d.corefileSource(); name != "coredns" || key != "Corefile" {
		t.Errorf("its Corefile is in %q, %q", name, key)
	}
	after, err := d.changed("registry.example/coredns:v1")
	if err != nil {
		t.Fatal(err)
	}
	c := (&coredns{deployment: after, container: d.container}).server()
	if c["image"] != "registry.example/coredns:v1" || memory(c) != "300Mi" {
		t.Errorf("image %v, memory %v", c["image"], memory(c))
	}
	e := env(c)
	if e["OTEL_EXPORTER_OTLP_ENDPOINT"] != "grpc://$(DNSTRAIL_STORE_SERVICE_HOST):4317" {
		t.Errorf("environment %v", e)
	}
	if _, ok := e["NODE_NAME"]; !ok {
		t.Errorf("no NODE_NAME in %v", e)
	}
	if e["DNSTRAIL_OTLP_TOKEN_FILE"] != "/var/run/secrets/dnstrail/token" {
		t.Errorf("environment %v", e)
	}
	b, err := yaml.Marshal([]any{c["volumeMounts"], after.Object["spec"]})
	if err != nil || strings.Count(string(b), "name: dnstrail-token") != 3 ||
		!strings.Contains(string(b), "audience: dnstrail") {
		t.Errorf("%v, its token is not there, in a volume and a mount:\n%s", err, b)
	}
	if again, err := (&coredns{deployment: after, container: d.container}).changed(
		"registry.example/coredns:v1"); err != nil || !equalJSON(again, after) {
		t.Errorf("%v, changed once more it is %v", err, again)
	}
	if d.server()["image"] != "registry.k8s.io/coredns/coredns:v1.15.0" || len(env(d.server())) != 0 {
		t.Error("what was read has changed, too")
	}
}

func TestChangeKeepsWhatTheOwnerSet(t *testing.T) {
	text := strings.Replace(kubeadmDeployment, "memory: 170Mi", "memory: 1Gi", 1)
	text = strings.Replace(text, "        args:",
		"        env: [{name: OTEL_EXPORTER_OTLP_ENDPOINT, value: \"grpc://192.0.2.1:4317\"}]\n        args:", 1)
	d := deployment(t, text)
	after, err := d.changed("x")
	if err != nil {
		t.Fatal(err)
	}
	c := (&coredns{deployment: after, container: d.container}).server()
	if e := env(c); e["OTEL_EXPORTER_OTLP_ENDPOINT"] != "grpc://192.0.2.1:4317" || memory(c) != "1Gi" {
		t.Errorf("environment %v, memory %s", e, memory(c))
	}
}

// undoOf gives the note of a change as install makes it.
func undoOf(t *testing.T, d *coredns) *undo {
	t.Helper()
	after, err := d.changed("registry.example/coredns:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := mark(after, "x"); err != nil {
		t.Fatal(err)
	}
	return &undo{TemplateBefore: d.template(), TemplateAfter: (&coredns{deployment: after}).template()}
}

func TestUndoBringsBackExactlyWhatWasThere(t *testing.T) {
	u := undoOf(t, deployment(t, kubeadmDeployment))
	got, whole := u.reversed(u.TemplateAfter)
	if !whole || !equalJSON(got, u.TemplateBefore) {
		t.Errorf("whole %v: %v", whole, got)
	}
	for _, now := range []string{kubeadm, "after"} {
		u := undo{CorefileBefore: kubeadm, CorefileAfter: "after"}
		if got, whole, err := u.corefileWithout(now); got != kubeadm || !whole || err != nil {
			t.Errorf("Corefile %q, %v, %v", got, whole, err)
		}
	}
}

func TestUndoKeepsWhatOthersChangedSince(t *testing.T) {
	u := undoOf(t, deployment(t, kubeadmDeployment))
	now := (&unstructured.Unstructured{Object: u.TemplateAfter}).DeepCopy().Object
	err := unstructured.SetNestedField(now, "now", "metadata", "annotations", "kubectl.kubernetes.io/restartedAt")
	if err != nil {
		t.Fatal(err)
	}
	got, whole := u.reversed(now)
	annotations, _, _ := unstructured.NestedStringMap(got, "metadata", "annotations")
	if whole || len(annotations) != 1 || annotations["kubectl.kubernetes.io/restartedAt"] != "now" {
		t.Errorf("whole %v, annotations %v", whole, annotations)
	}
	unstructured.RemoveNestedField(got, "metadata", "annotations")
	if !equalJSON(got, u.TemplateBefore) {
		t.Errorf("but for the annotation it is %v, want %v", got, u.TemplateBefore)
	}

	now = (&unstructured.Unstructured{Object: u.TemplateAfter}).DeepCopy().Object
	byName(now)["coredns"]["image"] = "the owner's"
	if got, _ := u.reversed(now); byName(got)["coredns"]["image"] != "the owner's" {
		t.Errorf("the owner's image became %v", byName(got)["coredns"]["image"])
	}

	after, _, err := AddBlock(kubeadm)
	if err != nil {
		t.Fatal(err)
	}
	u = &undo{CorefileBefore: kubeadm, CorefileAfter: after}
	edited := strings.Replace(after, "cache 30", "cache 60", 1)
	want := strings.Replace(kubeadm, "cache 30", "cache 60", 1)
	if got, whole, err := u.corefileWithout(edited); got != want || whole || err != nil {
		t.Errorf("whole %v, %v:\n%s", whole, err, got)
	}
}

func TestKeeper(t *testing.T) {
	for _, tt := range []struct{ name, old, with, want string }{
		{"kubeadm", "", "", ""},
		{"the CoreDNS chart", "k8s-app: kube-dns}}", "k8s-app: kube-dns, app.kubernetes.io/managed-by: Helm}}", "Helm"},
		{"an add-on manager", "k8s-app: kube-dns}}",
			"k8s-app: kube-dns, addonmanager.kubernetes.io/mode: Reconcile}}", "add-on manager"},
		{"k3s", "labels: {k8s-app: kube-dns}}\nspec", "annotations: {objectset.rio.cattle.io/id: \"\"}}\nspec", "k3s"},
		{"an operator", "labels: {k8s-app: kube-dns}}\nspec",
			"ownerReferences: [{kind: DNS, name: default}]}\nspec", "DNS default"},
	} {
		d := deployment(t, strings.Replace(kubeadmDeployment, tt.old, tt.with, 1))
		if got := d.keeper(); !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestObjects(t *testing.T) {
	o := Options{Image: "registry.example/dnstrail:v1", AgentArgs: []string{"--give-up=3s"}}
	p, err := o.objects("dns")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, u := range p.all() {
		kinds[u.GetKind()]++
		if u.GetLabels()[managedBy] != manager {
			t.Errorf("%s %s is not marked as ours", u.GetKind(), u.GetName())
		}
		if u.GetKind() == "ConfigMap" || u.GetName() == "coredns" {
			t.Errorf("%s %s is the cluster's", u.GetKind(), u.GetName())
		}
		err := eachContainer(u, func(c map[string]any) error {
			if c["image"] != o.Image {
				t.Errorf("%s: image %v", u.GetName(), c["image"])
			}
			args, _, _ := unstructured.NestedStringSlice(c, "args")
			if c["name"] == "agent" && args[len(args)-1] != "--give-up=3s" {
				t.Errorf("arguments %q", args)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if u.GetKind() == "ClusterRoleBinding" {
			account := "name: dns\n"
			if u.GetName() == "dnstrail-store" {
				account = "name: dnstrail-store\n"
			}
			b, err := yaml.Marshal(u.Object["subjects"])
			if err != nil || !strings.Contains(string(b), account) || strings.Contains(string(b), "name: coredns") {
				t.Errorf("%v, the role is for %s", err, b)
			}
		}
	}
	if kinds["DaemonSet"] != 1 || kinds["Deployment"] != 1 || kinds["Service"] != 2 || kinds["ClusterRoleBinding"] != 3 {
		t.Errorf("objects %v", kinds)
	}
	if p, err = (&Options{}).objects(""); err != nil {
		t.Fatal(err)
	}
	for _, u := range p.rights {
		subjects, _, _ := unstructured.NestedSlice(u.Object, "subjects")
		if u.GetKind() == "ClusterRoleBinding" && len(subjects) != 1 {
			t.Errorf("without CoreDNS the role is for %v", subjects)
		}
	}
	if image, err := defaultImage(); err != nil || !strings.Contains(image, "dnstrail") {
		t.Errorf("the image is %q, %v", image, err)
	}
}

func TestStuck(t *testing.T) {
	waiting := func(reason string, restarts int32) []corev1.Pod {
		state := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "m"}}
		return []corev1.Pod{{Status: corev1.PodStatus{
			ContainerStatuses: []corev1.ContainerStatus{{RestartCount: restarts, State: state}},
		}}}
	}
	for _, tt := range []struct {
		reason   string
		restarts int32
		want     bool
	}{
		{"ContainerCreating", 0, false}, {"CrashLoopBackOff", 1, false}, {"CrashLoopBackOff", 2, true},
		{"ImagePullBackOff", 0, true},
	} {
		if got := stuck(waiting(tt.reason, tt.restarts)); (got != "") != tt.want {
			t.Errorf("%s after %d restarts: %q", tt.reason, tt.restarts, got)
		}
	}
}
