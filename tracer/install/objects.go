package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	manifests "github.com/dnstrail/dnstrail/build/kubernetes"
	"github.com/dnstrail/dnstrail/tracer/kube"
)

// manager is the field manager of what is applied, and the value of managedBy on what was.
const (
	manager   = kube.Manager
	managedBy = kube.ManagedBy
)

// errForeign says that an object of our name is another's.
var errForeign = errors.New("it is not of dnstrail install")

// parts are the objects of an installation, in the order in which they come.
type parts struct {
	rights, store, agent []*unstructured.Unstructured
}

func (p *parts) all() []*unstructured.Unstructured { return slices.Concat(p.rights, p.store, p.agent) }

// objects gives the manifests with what the options say in them. account is CoreDNS's service account, "" for none.
func (o *Options) objects(account string) (*parts, error) {
	var p parts
	for _, f := range []struct {
		text string
		to   *[]*unstructured.Unstructured
	}{{manifests.RBAC, &p.rights}, {manifests.Store, &p.store}, {manifests.Agent, &p.agent}} {
		for doc := range bytes.SplitSeq([]byte(f.text), []byte("\n---\n")) {
			u := &unstructured.Unstructured{}
			if err := yaml.Unmarshal(doc, &u.Object); err != nil {
				return nil, err
			}
			labels := u.GetLabels()
			if labels == nil {
				labels = map[string]string{}
			}
			labels[managedBy] = manager
			u.SetLabels(labels)
			if err := o.fill(u, account); err != nil {
				return nil, fmt.Errorf("%s %s: %w", u.GetKind(), u.GetName(), err)
			}
			*f.to = append(*f.to, u)
		}
	}
	return &p, nil
}

// fill puts the images, the agent's further arguments and CoreDNS's account into an object.
func (o *Options) fill(u *unstructured.Unstructured, account string) error {
	if u.GetKind() == "ClusterRoleBinding" {
		subjects, _, err := unstructured.NestedSlice(u.Object, "subjects")
		if err != nil {
			return err
		}
		subjects = slices.DeleteFunc(subjects, func(s any) bool {
			m, _ := s.(map[string]any)
			if m["name"] != "coredns" {
				return false
			}
			m["name"] = account
			return account == ""
		})
		return unstructured.SetNestedSlice(u.Object, subjects, "subjects")
	}
	return eachContainer(u, func(c map[string]any) error {
		if o.Image != "" {
			c["image"] = o.Image
		}
		if c["name"] == "agent" {
			args, _, err := unstructured.NestedStringSlice(c, "args")
			if err != nil {
				return err
			}
			return unstructured.SetNestedStringSlice(c, append(args, o.AgentArgs...), "args")
		}
		return nil
	})
}

// eachContainer changes the containers of an object's pods; objects without any are left alone.
func eachContainer(u *unstructured.Unstructured, change func(map[string]any) error) error {
	at := []string{"spec", "template", "spec", "containers"}
	containers, found, err := unstructured.NestedSlice(u.Object, at...)
	if err != nil || !found {
		return err
	}
	for _, c := range containers {
		m, ok := c.(map[string]any)
		if !ok {
			return errors.New("a container is no object")
		}
		if err := change(m); err != nil {
			return err
		}
	}
	return unstructured.SetNestedSlice(u.Object, containers, at...)
}

// clientOf gives the client of an object's kind and namespace.
func clientOf(c dynamic.Interface, u *unstructured.Unstructured) dynamic.ResourceInterface {
	r, _ := meta.UnsafeGuessKindToResource(u.GroupVersionKind())
	if u.GetNamespace() == "" {
		return c.Resource(r)
	}
	return c.Resource(r).Namespace(u.GetNamespace())
}

// foreign gives an error where an object of that name is there and another's: helm's, kubectl's.
func foreign(ctx context.Context, c dynamic.Interface, u *unstructured.Unstructured) error {
	there, err := clientOf(c, u).Get(ctx, u.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return err
	}
	if by := there.GetLabels()[managedBy]; by != manager {
		if by == "" {
			by = "kubectl, it seems: kubectl delete -k build/kubernetes removes it"
		}
		return fmt.Errorf("%s %s is there already: %w, but of %s", u.GetKind(), u.GetName(), errForeign, by)
	}
	return nil
}

// apply makes objects, or makes them as they are to be.
func apply(ctx context.Context, c dynamic.Interface, objects []*unstructured.Unstructured) error {
	for _, u := range objects {
		_, err := clientOf(c, u).Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: manager, Force: true})
		if err != nil {
			return fmt.Errorf("%s %s: %w", u.GetKind(), u.GetName(), err)
		}
	}
	return nil
}

// remove deletes the objects that are ours, the last first, and gives how many there were.
func remove(ctx context.Context, c dynamic.Interface, objects []*unstructured.Unstructured) (n int, err error) {
	for _, u := range slices.Backward(objects) {
		if e := foreign(ctx, c, u); e != nil {
			if !errors.Is(e, errForeign) {
				return n, e
			}
			err = errors.Join(err, fmt.Errorf("left alone: %w", e))
			continue
		}
		policy := metav1.DeletePropagationForeground
		e := clientOf(c, u).Delete(ctx, u.GetName(), metav1.DeleteOptions{PropagationPolicy: &policy})
		switch {
		case apierrors.IsNotFound(e):
		case e != nil:
			return n, errors.Join(err, fmt.Errorf("%s %s: %w", u.GetKind(), u.GetName(), e))
		default:
			n++
		}
	}
	return n, err
}

// undoName is the ConfigMap that holds what CoreDNS was before.
const undoName = "dnstrail-undo"

func undoObject() *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap"}}
	u.SetName(undoName)
	u.SetNamespace(kube.Namespace)
	u.SetLabels(map[string]string{managedBy: manager, "app.kubernetes.io/name": "dnstrail"})
	return u
}
