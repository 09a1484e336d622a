package doctor

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/dnstrail/dnstrail/tracer/kube"
)

// cluster gives one with these objects, as an API server would show them, and without a CoreDNS.
func cluster(t *testing.T, objects ...runtime.Object) *Cluster {
	t.Helper()
	kinds := map[schema.GroupVersionResource]string{
		{Group: "apps", Version: "v1", Resource: "deployments"}: "DeploymentList",
		{Version: "v1", Resource: "configmaps"}:                 "ConfigMapList",
	}
	return &Cluster{
		Cluster: &kube.Cluster{
			Name: "test", Client: fake.NewClientset(objects...),
			Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds),
		},
		Watched: []string{"node-1"}, Received: 7, Timeout: time.Second,
	}
}

func labelled(t *testing.T, name, selector string) metav1.ObjectMeta {
	t.Helper()
	set, err := labels.ConvertSelectorToLabelsMap(selector)
	if err != nil {
		t.Fatal(err)
	}
	return metav1.ObjectMeta{Name: name, Namespace: kube.Namespace, Labels: set}
}

func node(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": "linux"}}}
}

// without gives a node whose kubelet has said nothing for a while.
func without(n *corev1.Node) *corev1.Node {
	n.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown",
	}}
	return n
}

func agents(t *testing.T) *appsv1.DaemonSet {
	d := &appsv1.DaemonSet{ObjectMeta: labelled(t, "dnstrail-agent", kube.AgentLabels)}
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "agent", Image: "x"}}
	return d
}

func endpoints(ready ...bool) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Name: "kube-dns-1", Namespace: kube.Namespace, Labels: map[string]string{discoveryv1.LabelServiceName: "kube-dns"},
	}}
	for _, r := range ready {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{Ready: &r}})
	}
	return s
}

// Each thing that is not as it should be is a finding of its own, with what to do.
func TestWhatIsAmissInAClusterIsFound(t *testing.T) {
	starting := &corev1.Pod{ObjectMeta: labelled(t, "dnstrail-agent-1", kube.AgentLabels)}
	starting.Spec.NodeName = "node-1"
	starting.Spec.Containers = []corev1.Container{{Name: "agent"}}
	for _, tt := range []struct {
		name    string
		objects []runtime.Object
		change  func(*Cluster)
		want    []string // what FAILs, in order
	}{
		{name: "nothing is installed", want: []string{"dnstrail"}},
		{
			name: "an agent that is not ready, a node without one", want: []string{"node-1 agent", "node-2"},
			objects: []runtime.Object{agents(t), starting, node("node-2"), node("node-1"), endpoints(false, true)},
		},
		{
			name: "a node without a kubelet, and so an agent that is not ready", want: []string{"node-1"},
			objects: []runtime.Object{agents(t), starting, without(node("node-1")), endpoints(true)},
		},
		{
			name: "nobody behind the Service", want: []string{"kube-dns", "node-1"},
			objects: []runtime.Object{agents(t), node("node-1"), endpoints(false, false)},
		},
		{
			name: "no Service of that name", want: []string{"kube-dns"}, objects: []runtime.Object{agents(t)},
		},
		{
			name: "no store", want: []string{"store"}, objects: []runtime.Object{agents(t), endpoints(true)},
			change: func(c *Cluster) { c.StoreError = errors.New("none") },
		},
		{
			name: "a store that hears nothing", want: []string{"store"}, objects: []runtime.Object{agents(t), endpoints(true)},
			change: func(c *Cluster) { c.Received = 0 },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := cluster(t, tt.objects...)
			if tt.change != nil {
				tt.change(c)
			}
			var failed []string
			c.Examine(t.Context(), func(f Finding) {
				if f.State == Fail {
					failed = append(failed, f.What)
				}
				if f.State == Fail && f.Do == "" {
					t.Errorf("%s: what is to be done? %s", f.What, f.Is)
				}
			})
			if !slices.Equal(failed, tt.want) {
				t.Errorf("it finds %q at fault, want %q", failed, tt.want)
			}
		})
	}
}

// A container's end, or what keeps it from starting, comes to whoever waits for it.
func TestEndedTellsHowAContainerEnded(t *testing.T) {
	pod := func(s corev1.ContainerState, ephemeral bool) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "cart", Namespace: "shop"}}
		list := []corev1.ContainerStatus{{Name: "other"}, {Name: "walk", State: s}}
		if ephemeral {
			p.Status.EphemeralContainerStatuses = list
		} else {
			p.Status.ContainerStatuses = list
		}
		return p
	}
	ended := &corev1.ContainerStateTerminated{ExitCode: 3, Message: "no"}
	for _, ephemeral := range []bool{false, true} {
		c := cluster(t, pod(corev1.ContainerState{Terminated: ended}, ephemeral))
		got, err := c.Ended(t.Context(), "shop", "cart", "walk")
		if err != nil || !reflect.DeepEqual(got, ended) {
			t.Errorf("ephemeral %t: %v, %v; want %v", ephemeral, got, err, ended)
		}
		waits := &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}
		c = cluster(t, pod(corev1.ContainerState{Waiting: waits}, ephemeral))
		if _, err = c.Ended(t.Context(), "shop", "cart", "walk"); err == nil || t.Context().Err() != nil {
			t.Errorf("ephemeral %t: an image that is not there: %v", ephemeral, err)
		} else if want := "container walk of pod shop/cart does not start: ImagePullBackOff no such image"; fmt.Sprint(
			err) != want {
			t.Errorf("it says %q, want %q", err, want)
		}
	}
	if _, err := cluster(t).Ended(t.Context(), "shop", "cart", "walk"); err == nil {
		t.Error("of a pod that is not there there is no error")
	}
}
