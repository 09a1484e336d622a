package install

import (
	"cmp"
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	manifests "github.com/dnstrail/dnstrail/build/kubernetes"
	"github.com/dnstrail/dnstrail/tracer/kube"
)

// probeName is what the probe looks up: a name that every cluster has, by the search path of the pod.
const probeName = "kubernetes.default.svc"

// defaultImage gives dnstrail's image as the manifests name it.
func defaultImage() (string, error) {
	var agent struct {
		Spec struct {
			Template struct {
				Spec corev1.PodSpec
			}
		}
	}
	o := Options{}
	p, err := o.objects("")
	if err != nil {
		return "", err
	}
	for _, u := range p.agent {
		if u.GetKind() != "DaemonSet" {
			continue
		}
		b, err := yaml.Marshal(u.Object)
		if err != nil {
			return "", err
		}
		if err := yaml.Unmarshal(b, &agent); err != nil {
			return "", err
		}
		return agent.Spec.Template.Spec.Containers[0].Image, nil
	}
	return "", fmt.Errorf("no DaemonSet in %d bytes of manifests", len(manifests.Agent))
}

// Probe looks a name up from a pod of its own, which is gone afterwards, and gives the pod's name: a quiet cluster
// has no lookup to show. Done frees the pod.
func Probe(ctx context.Context, c *kube.Cluster, o Options) (pod string, done func(), err error) {
	image := o.Image
	if image == "" {
		if image, err = defaultImage(); err != nil {
			return "", nil, err
		}
	}
	yes, no, user, grace := true, false, int64(65532), int64(1)
	pods := c.Client.CoreV1().Pods(kube.Namespace)
	p, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "dnstrail-probe-", Namespace: kube.Namespace, Labels: map[string]string{managedBy: manager},
		},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: &no,
			NodeSelector: map[string]string{"kubernetes.io/os": "linux"},
			Containers: []corev1.Container{{
				Name: "probe", Image: cmp.Or(image, "dnstrail"), Args: []string{"lookup", "--times=5", probeName},
				SecurityContext: &corev1.SecurityContext{
					RunAsNonRoot: &yes, RunAsUser: &user, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
					Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
					SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				},
			}},
		},
	}, metav1.CreateOptions{FieldManager: manager})
	if err != nil {
		return "", nil, err
	}
	done = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = pods.Delete(ctx, p.Name, metav1.DeleteOptions{}) // it has ended by itself
	}
	return p.Name, done, nil
}
