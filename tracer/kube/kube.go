// Package kube finds the cluster of a user's kubeconfig, and what dnstrail has in it: the store is reached through
// the API server, under the user's own rights, and nothing of it is open to others.
package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// Namespace is where dnstrail is installed: CoreDNS's own, whose pods are given the store's address by Kubernetes.
const Namespace = "kube-system"

// StoreLabels select the store's pod.
const StoreLabels = "app.kubernetes.io/name=dnstrail,app.kubernetes.io/component=store"

// AgentLabels select the agents' pods.
const AgentLabels = "app.kubernetes.io/name=dnstrail,app.kubernetes.io/component=agent"

// Manager is the field manager of what dnstrail makes in a cluster, and the value of the label ManagedBy on it.
const (
	Manager   = "dnstrail"
	ManagedBy = "app.kubernetes.io/managed-by"
)

// storePort is the port of the store's query API.
const storePort = 16686

var (
	// ErrNoCluster says that there is no kubeconfig, or that it names no cluster.
	ErrNoCluster = errors.New("no kubeconfig names a cluster")
	// ErrNoStore says that the cluster has no store that runs.
	ErrNoStore = errors.New("no dnstrail store runs in the cluster")
)

// Cluster is a cluster that a kubeconfig names. Make one with [Connect].
type Cluster struct {
	// Name is the kubeconfig's context, for messages.
	Name    string
	Client  kubernetes.Interface
	Dynamic dynamic.Interface

	config *rest.Config
}

// Connect gives the cluster of a context, or of the current one where it is "". An empty path means $KUBECONFIG, or
// else ~/.kube/config. It does not connect yet. The error wraps [ErrNoCluster] where nothing names a cluster.
func Connect(path, contextName string) (*Cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = path
	overrides := &clientcmd.ConfigOverrides{CurrentContext: contextName}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if len(raw.Contexts) == 0 { // the loader would take the cluster of a pod that it runs in
		return nil, ErrNoCluster
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	name := contextName
	if name == "" {
		name = raw.CurrentContext
	}
	return New(name, config)
}

// New gives the cluster of a configuration.
func New(name string, config *rest.Config) (*Cluster, error) {
	c := &Cluster{Name: name, config: config}
	var err error
	if c.Client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	if c.Dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, err
	}
	return c, nil
}

// Store leads a port of this host's loopback through the API server to the cluster's store, until ctx ends. It gives
// the store's URL. The error wraps [ErrNoStore] where there is none.
func (c *Cluster) Store(ctx context.Context) (string, error) {
	pods, err := c.Client.CoreV1().Pods(Namespace).List(ctx, metav1.ListOptions{LabelSelector: StoreLabels})
	if err != nil {
		return "", fmt.Errorf("cluster %s: %w", c.Name, err)
	}
	for _, p := range pods.Items {
		if Ready(&p) {
			port, err := c.forward(ctx, p.Name, storePort)
			if err != nil {
				return "", fmt.Errorf("cluster %s: port-forward to %s/%s: %w", c.Name, Namespace, p.Name, err)
			}
			return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), nil
		}
	}
	if len(pods.Items) > 0 {
		return "", fmt.Errorf("cluster %s: %w: pod %s is not ready", c.Name, ErrNoStore, pods.Items[0].Name)
	}
	return "", fmt.Errorf("cluster %s: %w", c.Name, ErrNoStore)
}

// Ready tells whether a pod is, and is to stay.
func Ready(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(s corev1.PodCondition) bool {
		return s.Type == corev1.PodReady && s.Status == corev1.ConditionTrue
	})
}

// forward leads a free port of the loopback to a pod's port, and gives it.
func (c *Cluster) forward(ctx context.Context, pod string, port int) (int, error) {
	u := c.Client.CoreV1().RESTClient().Post().
		Namespace(Namespace).Resource("pods").Name(pod).SubResource("portforward").URL()
	dialer, err := c.dialer(u)
	if err != nil {
		return 0, err
	}
	ready := make(chan struct{})
	f, err := portforward.NewOnAddressesForStreamingWithContext(ctx, dialer,
		[]string{"127.0.0.1"}, []string{"0:" + strconv.Itoa(port)}, ready, io.Discard, io.Discard)
	if err != nil {
		return 0, err
	}
	failed := make(chan error, 1)
	go func() { failed <- f.ForwardPorts() }()
	select {
	case err := <-failed:
		return 0, err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-ready:
	}
	ports, err := f.GetPorts()
	if err != nil {
		return 0, err
	}
	return int(ports[0].Local), nil
}

func (c *Cluster) dialer(u *url.URL) (httpstream.Dialer, error) {
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, err
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	tunnel, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, c.config)
	if err != nil {
		return nil, err
	}
	// A server, or a proxy before it, that does not know the newer protocol is asked by the older one.
	return portforward.NewFallbackDialerForStreaming(tunnel, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}
