package install

import (
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

// imageOf gives the image that the options name, or else the manifests'.
func (o *Options) imageOf() (string, error) {
	if o.Image != "" {
		return o.Image, nil
	}
	return defaultImage()
}

// Probe looks a name up from a pod of its own, which is gone afterwards, and gives the pod's name: a quiet cluster
// has no lookup to show. Done frees the pod.
func Probe(ctx context.Context, c *kube.Cluster, o Options) (pod string, done func(), err error) {
	image, err := o.imageOf()
	if err != nil {
		return "", nil, err
	}
	if pod, err = c.Once(ctx, "dnstrail-probe-", "probe", image, "lookup", "--times=5", probeName); err != nil {
		return "", nil, err
	}
	return pod, func() { Forget(ctx, c, pod) }, nil
}

// Forget deletes a pod of dnstrail's own that has ended by itself, even where ctx has ended.
func Forget(ctx context.Context, c *kube.Cluster, pod string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_ = c.Client.CoreV1().Pods(kube.Namespace).Delete(ctx, pod, metav1.DeleteOptions{})
}
