package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// pollInterval is how often a container is looked at.
const pollInterval = 200 * time.Millisecond

// ErrExit says that a program in a pod ended with another status than 0.
var ErrExit = errors.New("it ended with a status of its own")

// Exec runs a program in a container that runs, under the user's right to create pods/exec, and gives what it wrote to
// its standard output. The error wraps [ErrExit] where the program ran and did not end with status 0, and then quotes
// its standard error.
func (c *Cluster) Exec(ctx context.Context, namespace, pod, container string, program ...string) ([]byte, error) {
	u := c.Client.CoreV1().RESTClient().Post().
		Namespace(namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container, Command: program, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec).URL()
	socket, err := remotecommand.NewWebSocketExecutor(c.config, "GET", u.String())
	if err != nil {
		return nil, err
	}
	old, err := remotecommand.NewSPDYExecutor(c.config, "POST", u)
	if err != nil {
		return nil, err
	}
	// A server, or a proxy before it, that does not know the newer protocol is asked by the older one.
	e, err := remotecommand.NewFallbackExecutor(socket, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return nil, err
	}
	var out, said bytes.Buffer
	err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &said})
	if status, ok := errors.AsType[exec.CodeExitError](err); ok {
		err = fmt.Errorf("%w: %d: %s", ErrExit, status.Code, strings.TrimSpace(said.String()))
	}
	return out.Bytes(), err
}

// unprivileged is how a container runs that needs nothing but the pod's network: every pod security standard takes it.
func unprivileged() *corev1.SecurityContext {
	yes, no, user := true, false, int64(65532)
	return &corev1.SecurityContext{
		RunAsNonRoot: &yes, RunAsUser: &user, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// Attach adds an ephemeral container to a pod that runs, under the user's right to patch pods/ephemeralcontainers. It
// runs unprivileged in the pod's own network and with its resolv.conf. Kubernetes never takes such a container out of
// the pod: it stays there, ended.
func (c *Cluster) Attach(ctx context.Context, namespace, pod, container, image string, args ...string) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{
		"ephemeralContainers": []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
			Name: container, Image: image, Args: args, SecurityContext: unprivileged(),
			TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		}}},
	}})
	if err != nil {
		return err
	}
	_, err = c.Client.CoreV1().Pods(namespace).Patch(ctx, pod, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{FieldManager: Manager}, "ephemeralcontainers")
	return err
}

// Once makes a pod of one unprivileged container, which runs once and is not started again, and gives its name. The
// label managed-by tells whose it is. Whoever calls it deletes it.
func (c *Cluster) Once(ctx context.Context, prefix, container, image string, args ...string) (string, error) {
	no, grace := false, int64(1)
	p, err := c.Client.CoreV1().Pods(Namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: prefix, Namespace: Namespace, Labels: map[string]string{ManagedBy: Manager},
		},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: &no,
			NodeSelector: map[string]string{"kubernetes.io/os": "linux"},
			Containers: []corev1.Container{{
				Name: container, Image: image, Args: args, SecurityContext: unprivileged(),
				TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
			}},
		},
	}, metav1.CreateOptions{FieldManager: Manager})
	if err != nil {
		return "", err
	}
	return p.Name, nil
}

// Ended waits until a container of a pod, an ephemeral one or not, has ended, and gives how. The error is ctx's, with
// what the container waits for, or tells that the pod cannot run it.
func (c *Cluster) Ended(ctx context.Context, namespace, pod, container string) (*corev1.ContainerStateTerminated,
	error) {
	for {
		p, err := c.Client.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		waits := "it has not been started"
		for _, s := range append(p.Status.EphemeralContainerStatuses, p.Status.ContainerStatuses...) {
			if s.Name != container {
				continue
			}
			if s.State.Terminated != nil {
				return s.State.Terminated, nil
			}
			if w := s.State.Waiting; w != nil {
				waits = strings.TrimSpace(w.Reason + " " + w.Message)
				switch w.Reason {
				case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError":
					return nil, fmt.Errorf("container %s of pod %s/%s does not start: %s", container, namespace, pod, waits)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("container %s of pod %s/%s: %w: %s", container, namespace, pod, ctx.Err(), waits)
		case <-time.After(pollInterval):
		}
	}
}
