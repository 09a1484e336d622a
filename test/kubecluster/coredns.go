package main

import (
	"bytes"
	"context"
	_ "embed"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"k8s.io/apimachinery/pkg/api/meta"
)

// kubeadmCoreDNS is what kubeadm sets up: the names, labels, role, Corefile, probes and security context are its own.
//
//go:embed coredns.yaml
var kubeadmCoreDNS []byte

// coredns brings CoreDNS, and waits until it serves.
func (c *cluster) coredns(ctx context.Context) error {
	if err := apply(ctx, c.pki("admin.conf"), kubeadmCoreDNS); err != nil {
		return err
	}
	return c.wait(ctx, "its pods", func() error {
		d, err := c.client.AppsV1().Deployments("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
		if err == nil && (d.Status.ReadyReplicas < *d.Spec.Replicas || d.Status.ObservedGeneration < d.Generation) {
			err = errNotYet
		}
		return err
	})
}

// apply makes the objects of a file.
func apply(ctx context.Context, kubeconfig string, objects []byte) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	for doc := range bytes.SplitSeq(objects, []byte("\n---\n")) {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &o.Object); err != nil {
			return err
		}
		resource, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
		_, err := client.Resource(resource).Namespace(o.GetNamespace()).Apply(ctx, o.GetName(), o,
			metav1.ApplyOptions{FieldManager: "kubecluster", Force: true})
		if err != nil {
			return err
		}
	}
	return nil
}
