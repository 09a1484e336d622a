package build

import (
	"errors"
	"os"
	"testing"

	authentication "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/dnstrail/dnstrail/test/apiserver"
	"github.com/dnstrail/dnstrail/tracer/access"
)

// TestRealAPIServerKnowsTheSenders: with the roles of the manifests the store, by its own account, is told who the
// agent and CoreDNS are and of which node, and that others may not send; a token for another audience is nobody's.
func TestRealAPIServerKnowsTheSenders(t *testing.T) {
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
	admin := kubernetes.NewForConfigOrDie(s.Config(apiserver.Admin))
	for _, o := range manifests(t, "kubernetes/rbac.yaml") {
		var err error
		switch o := o.(type) {
		case *rbacv1.ClusterRole:
			_, err = admin.RbacV1().ClusterRoles().Create(t.Context(), o, metav1.CreateOptions{})
		case *rbacv1.ClusterRoleBinding:
			_, err = admin.RbacV1().ClusterRoleBindings().Create(t.Context(), o, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const namespace = "kube-system"
	token := func(account, node string, audiences ...string) string {
		t.Helper()
		core := admin.CoreV1()
		meta := metav1.ObjectMeta{Name: account, Namespace: namespace}
		if _, err := core.ServiceAccounts(namespace).Get(t.Context(), account, metav1.GetOptions{}); err != nil {
			if _, err := core.ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: meta},
				metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		request := &authentication.TokenRequest{Spec: authentication.TokenRequestSpec{Audiences: audiences}}
		if node != "" {
			meta.Name = ""
			meta.GenerateName = account + "-"
			pod, err := core.Pods(namespace).Create(t.Context(), &corev1.Pod{
				ObjectMeta: meta,
				Spec: corev1.PodSpec{
					ServiceAccountName: account, NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}},
				},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			request.Spec.BoundObjectRef = &authentication.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name,
				UID: pod.UID}
		}
		answer, err := core.ServiceAccounts(namespace).CreateToken(t.Context(), account, request, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Status.Token
	}
	store := s.Config(token("dnstrail-store", ""))
	reviews := &access.Reviews{Client: kubernetes.NewForConfigOrDie(store), Audience: "dnstrail"}
	for _, tc := range []struct {
		name, token string
		node        string
		err         error
	}{
		{name: "the agent", token: token("dnstrail-agent", "node-1", "dnstrail"), node: "node-1"},
		{name: "CoreDNS", token: token("coredns", "node-2", "dnstrail"), node: "node-2"},
		{name: "another account", token: token("other", "node-1", "dnstrail"), err: access.ErrForbidden},
		{name: "the agent, to the API server", token: token("dnstrail-agent", "node-1"), err: access.ErrCredential},
		{name: "the agent, to others", token: token("dnstrail-agent", "node-1", "others"), err: access.ErrCredential},
		{name: "nobody", token: "x", err: access.ErrCredential},
	} {
		for _, path := range []string{"/v1/traces", "/opentelemetry.proto.collector.trace.v1.TraceService/Export"} {
			c, err := reviews.Check(t.Context(), tc.token, "create", path)
			if !errors.Is(err, tc.err) || err != nil && tc.err == nil || c.Node != tc.node && err == nil {
				t.Errorf("%s, %s: %+v, %v", tc.name, path, c, err)
			}
		}
		if _, err := reviews.Check(t.Context(), tc.token, "get", "/api/v3/traces"); err == nil {
			t.Errorf("%s may read", tc.name)
		}
	}
}
