// Package build holds what dnstrail is deployed with; its tests hold that against the programs.
package build

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/dnstrail/dnstrail/link/otlpenv"
	dnstrail "github.com/dnstrail/dnstrail/plugin"
	"github.com/dnstrail/dnstrail/test/apiserver"
)

func TestMain(m *testing.M) {
	directives, err := dnstrail.WithDirective(dnsserver.Directives)
	if err == nil {
		err = dnsserver.SetDirectives(directives)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// manifests reads every object of a file, strictly: an unknown or doubled field is an error.
func manifests(t *testing.T, path string) []runtime.Object {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, path, string(b))
}

func objects(t *testing.T, path, text string) []runtime.Object {
	t.Helper()
	s := kjson.NewSerializerWithOptions(kjson.DefaultMetaFactory, scheme.Scheme, scheme.Scheme,
		kjson.SerializerOptions{Yaml: true, Strict: true})
	var out []runtime.Object
	for _, doc := range regexp.MustCompile(`(?m)^---$`).Split(text, -1) {
		if !strings.Contains(doc, "apiVersion:") {
			continue
		}
		o, _, err := s.Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		out = append(out, o)
	}
	if len(out) == 0 {
		t.Errorf("%s: no objects", path)
	}
	return out
}

func TestManifestsAreKubernetesObjects(t *testing.T) {
	for _, f := range []string{"rbac.yaml", "agent.yaml", "corefile.yaml", "store.yaml"} {
		for _, o := range manifests(t, filepath.Join("kubernetes", f)) {
			switch o := o.(type) {
			case *appsv1.DaemonSet:
				checkAgent(t, f, o)
				checkToken(t, f, o.Spec.Template.Spec, true)
			case *appsv1.Deployment:
				checkStore(t, f, o)
			case *corev1.ConfigMap:
				checkCorefile(t, f, o.Data["Corefile"])
			}
		}
	}
	checkPatch(t, "hindsight-agent-patch.yaml", "DaemonSet")
	checkPatch(t, "hindsight-coredns-patch.yaml", "Deployment")
	b, err := os.ReadFile("kubernetes/coredns-patch.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects(t, "coredns-patch.yaml", "apiVersion: apps/v1\nkind: Deployment\n"+string(b)) {
		if d, ok := o.(*appsv1.Deployment); ok {
			checkToken(t, "coredns-patch.yaml", d.Spec.Template.Spec, true)
		}
	}
}

// checkPatch reads a patch as the object that it is for: what it mounts, it has a volume for, and its agent's flags
// exist.
func checkPatch(t *testing.T, file, kind string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("kubernetes", file))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects(t, file, "apiVersion: apps/v1\nkind: "+kind+"\n"+string(b)) {
		var pod corev1.PodSpec
		switch o := o.(type) {
		case *appsv1.DaemonSet:
			pod = o.Spec.Template.Spec
		case *appsv1.Deployment:
			pod = o.Spec.Template.Spec
		default:
			t.Fatalf("%s is a %T", file, o)
		}
		if len(pod.Containers) != 1 || len(pod.Volumes) != 1 || len(pod.Containers[0].VolumeMounts) != 1 ||
			pod.Containers[0].VolumeMounts[0].Name != pod.Volumes[0].Name || pod.Volumes[0].Secret == nil {
			t.Errorf("%s: it does not mount the Secret", file)
		}
		man, err := os.ReadFile("../docs/man/dnstrail-agent.1")
		if err != nil {
			t.Fatal(err)
		}
		for _, arg := range pod.Containers[0].Args {
			flag, _, _ := strings.Cut(arg, "=")
			if strings.HasPrefix(flag, "--") && !strings.Contains(strings.ReplaceAll(string(man), `\-`, "-"), flag) {
				t.Errorf("%s: the agent has no flag %s", file, flag)
			}
		}
	}
}

// A real API server takes every object, strictly and without storing it. It needs the programs of test/kube: see make
// test-kube.
func TestRealAPIServerTakesTheManifests(t *testing.T) {
	bin := os.Getenv("DNSTRAIL_KUBE")
	if bin == "" {
		t.Skip("DNSTRAIL_KUBE is not set: make test-kube builds a Kubernetes API server (some minutes) and runs this " +
			"against it")
	}
	s, err := apiserver.Start(t.Context(), bin, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	client, err := dynamic.NewForConfig(s.Config(apiserver.Admin))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "kustomization.yaml") || strings.HasSuffix(f, "-patch.yaml") {
			continue // a patch is no object: checkPatch reads it as the one that it is for
		}
		for _, o := range manifests(t, f) {
			m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
			if err != nil {
				t.Fatal(err)
			}
			u := &unstructured.Unstructured{Object: m}
			gvk := o.GetObjectKind().GroupVersionKind()
			resource, _ := meta.UnsafeGuessKindToResource(gvk)
			_, err = client.Resource(resource).Namespace(u.GetNamespace()).Create(t.Context(), u,
				metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict})
			if err != nil {
				t.Errorf("%s: %s %s: %v", f, gvk.Kind, u.GetName(), err)
			}
		}
	}
}

// checkAgent holds a DaemonSet against what the tracer asks for (tracer/bpf/check.go); test/deploy runs the agent so.
func checkAgent(t *testing.T, file string, d *appsv1.DaemonSet) {
	t.Helper()
	c := d.Spec.Template.Spec.Containers[0]
	for _, want := range []corev1.Capability{"BPF", "PERFMON", "NET_ADMIN", "SYSLOG", "DAC_READ_SEARCH"} {
		if !slices.Contains(c.SecurityContext.Capabilities.Add, want) {
			t.Errorf("%s: the agent lacks capability %s", file, want)
		}
	}
	host := map[string]string{}
	for _, v := range d.Spec.Template.Spec.Volumes {
		if v.HostPath != nil {
			host[v.Name] = v.HostPath.Path
		}
	}
	if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return host[m.Name] == "/sys/fs/cgroup" }) {
		t.Errorf("%s: the agent does not see the host's cgroups", file)
	}
	if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "NODE_NAME" }) {
		t.Errorf("%s: the agent does not know its node", file)
	}
}

// checkToken holds that a pod that sends has the token that the store asks for, where its variable says.
func checkToken(t *testing.T, file string, spec corev1.PodSpec, want bool) {
	t.Helper()
	c := spec.Containers[0]
	path := ""
	for _, e := range c.Env {
		if e.Name == otlpenv.TokenFile {
			path = e.Value
		}
	}
	if !want {
		if path != "" {
			t.Errorf("%s: a token is shown to whoever is not asked to be", file)
		}
		return
	}
	for _, v := range spec.Volumes {
		if v.Projected == nil || v.Projected.Sources[0].ServiceAccountToken == nil {
			continue
		}
		token := v.Projected.Sources[0].ServiceAccountToken
		for _, m := range c.VolumeMounts {
			if m.Name == v.Name && m.MountPath+"/"+token.Path == path && token.Audience == "dnstrail" {
				return
			}
		}
	}
	t.Errorf("%s: there is no token for the store at %q", file, path)
}

// checkStore holds the store against its own flags: the Service leads to ports that it is told to listen on, and the
// query API, which needs no token there, is for a port-forward alone.
func checkStore(t *testing.T, file string, d *appsv1.Deployment) {
	t.Helper()
	c := d.Spec.Template.Spec.Containers[0]
	for _, p := range c.Ports {
		at := fmt.Sprint("=:", p.ContainerPort)
		if p.Name == "api" {
			at = fmt.Sprint("=127.0.0.1:", p.ContainerPort)
		}
		if !slices.ContainsFunc(c.Args, func(a string) bool { return strings.HasSuffix(a, at) }) {
			t.Errorf("%s: the store is not told to listen on port %d, %s: %q", file, p.ContainerPort, p.Name, c.Args)
		}
	}
	asks := slices.Contains(c.Args, "--otlp-audience=dnstrail")
	if asks != (d.Spec.Template.Spec.ServiceAccountName != "") {
		t.Errorf("%s: arguments %q with the account %q", file, c.Args, d.Spec.Template.Spec.ServiceAccountName)
	}
	if *d.Spec.Replicas != 1 {
		t.Errorf("%s: %d stores would each have a part of the traces", file, *d.Spec.Replicas)
	}
}

// checkCorefile reads the dnstrail block of a Corefile as CoreDNS does.
func checkCorefile(t *testing.T, file, corefile string) {
	t.Helper()
	block := regexp.MustCompile(`(?s)\n\s*dnstrail( \{.*?\n\s*\})?\n`).FindString(corefile)
	if block == "" {
		t.Errorf("%s: no dnstrail in the Corefile", file)
		return
	}
	example, err := os.ReadFile("../corefile-examples/kubernetes.Corefile")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := stock(corefile), stock(string(example)); got != want {
		t.Errorf("%s: apart from dnstrail it is not corefile-examples/kubernetes.Corefile, which a test starts:\n%s\n"+
			"want:\n%s", file, got, want)
	}
	caddy.Quiet = true
	err = caddy.ValidateAndExecuteDirectives(caddy.CaddyfileInput{
		Filepath: file, Contents: []byte(".:0 {" + block + "}\n"), ServerTypeName: "dns",
	}, nil, true)
	if err != nil {
		t.Errorf("%s: %v", file, err)
	}
}

// stock gives a Corefile without dnstrail, comments and indentation.
func stock(corefile string) string {
	corefile = regexp.MustCompile(`(?m)^\s*#.*$`).ReplaceAllString(corefile, "")
	corefile = regexp.MustCompile(`(?s)\n\s*dnstrail( \{.*?\n\s*\})?\n`).ReplaceAllString(corefile, "\n")
	return strings.Join(strings.Fields(corefile), " ")
}

// The names of metrics that the dashboards and rules use are those that the programs have.
func TestDashboardsAskForMetricsThatExist(t *testing.T) {
	var source strings.Builder
	for _, dir := range []string{"../plugin", "../tracer/metrics"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			source.Write(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	metric := regexp.MustCompile(`\b(?:coredns_dnstrail_(\w+)|(dns(?:trail)?_\w+))`)
	exprs := expressions(t, "*.json")
	for title, expr := range exprs {
		found := metric.FindAllStringSubmatch(expr, -1)
		if len(found) == 0 {
			t.Errorf("panel %q asks for no metric of ours: %s", title, expr)
		}
		for _, m := range found {
			if !strings.Contains(source.String(), fmt.Sprintf("%q", m[1]+m[2])) {
				t.Errorf("panel %q: there is no metric %s", title, m[0])
			}
		}
	}
}

// The chart, with its own values and with all that can be chosen, gives Kubernetes objects. It needs helm: see make
// test-chart.
func TestChartGivesKubernetesObjects(t *testing.T) {
	helm := os.Getenv("HELM")
	if helm == "" {
		t.Skip("HELM is not set: make test-chart builds helm and runs this with it")
	}
	for _, wrong := range []string{"agent.sampel=1", "otlp.endpoint=collector:4317", "store.enabled=maybe"} {
		if out, err := exec.Command(helm, "template", "x", "chart/dnstrail", "--set", wrong).CombinedOutput(); err == nil {
			t.Errorf("--set %s is taken:\n%s", wrong, out)
		}
	}
	for _, tt := range []struct {
		name string
		args []string
		want []string // kinds

		token bool // of the agents
	}{
		{name: "as it comes", token: true,
			want: []string{"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet", "Service"}},
		{name: "a collector elsewhere", args: []string{"--set", "otlp.endpoint=grpc://192.0.2.1:4317"},
			want: []string{"DaemonSet"}},
		{name: "no credentials", args: []string{"--set", "store.credentials=false"}, want: []string{"DaemonSet"}},
		{name: "everything", token: true, args: []string{
			"--set", "coredns.serviceAccount=", "--set", "agent.resources.limits.memory=1Gi",
			"--set", "agent.labels={app,team}", "--set", "agent.extraArgs={--give-up=3s}",
			"--set", "otlp.headers=authorization=x", "--set", "otlp.protocol=http/protobuf",
			"--set", "agent.nodeSelector.pool=a", "--set", "image.tag=v1",
			"--set", "store.enabled=true", "--set", "networkPolicy.enabled=true",
			"--set", "networkPolicy.from[0].ipBlock.cidr=192.0.2.0/24", "--set", "store.senders[0].kind=ServiceAccount",
			"--set", "store.senders[0].name=node-local-dns", "--set", "store.senders[0].namespace=kube-system",
			"--set", "agent.askBack.secret=dnstrail-hindsight",
		}, want: []string{
			"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet", "Service", "Deployment", "NetworkPolicy",
		}},
	} {
		lint := exec.Command(helm, append([]string{"lint", "--strict", "chart/dnstrail"}, tt.args...)...)
		if out, err := lint.CombinedOutput(); err != nil {
			t.Errorf("%s: lint: %v\n%s", tt.name, err, out)
		}
		template := []string{"template", "dnstrail", "chart/dnstrail", "--namespace", "kube-system"}
		out, err := exec.Command(helm, append(template, tt.args...)...).Output()
		if err != nil {
			t.Errorf("%s: %v\n%s", tt.name, err, out)
			continue
		}
		kinds := map[string]bool{}
		for _, o := range objects(t, tt.name, string(out)) {
			kinds[o.GetObjectKind().GroupVersionKind().Kind] = true
			if d, ok := o.(*appsv1.DaemonSet); ok {
				checkAgent(t, tt.name, d)
				checkToken(t, tt.name, d.Spec.Template.Spec, tt.token)
			}
			if d, ok := o.(*appsv1.Deployment); ok {
				checkStore(t, tt.name, d)
			}
		}
		for _, k := range tt.want {
			if !kinds[k] {
				t.Errorf("%s: no %s", tt.name, k)
			}
		}
	}
}

// Prometheus's own parser reads every query.
func TestDashboardsAreReadByPrometheus(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("promtool is not installed (Debian package prometheus)")
		}
		t.Skip("promtool is not installed (Debian package prometheus)")
	}
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboards\n  rules:\n")
	i := 0
	for title, expr := range expressions(t, "*.json") {
		i++
		expr = strings.NewReplacer("$__rate_interval", "1m", "$namespace", ".*", "$workload", ".*").Replace(expr)
		name := regexp.MustCompile(`\W`).ReplaceAllString(title, "_")
		fmt.Fprintf(&rules, "  - record: panel:%d:%s\n    expr: %q\n", i, name, expr)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// expressions gives the queries of dashboards by the panel's title.
func expressions(t *testing.T, pattern string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("dashboards", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	out := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		for _, p := range d.Panels {
			for i, q := range p.Targets {
				out[fmt.Sprint(filepath.Base(f), ": ", p.Title, " ", i)] = q.Expr
			}
		}
	}
	if len(out) == 0 {
		t.Fatal("no panels")
	}
	return out
}
