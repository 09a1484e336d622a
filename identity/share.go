package identity

import (
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Linger is how long a shared source outlives its last user. A reload of CoreDNS lets go of the old one before or after
// it takes the new one; either way it finds it warm.
const Linger = 30 * time.Second

// KubernetesConfig says how to reach a cluster and what to read there.
type KubernetesConfig struct {
	Kubeconfig string // a file; empty means the pod's own service account
	Context    string // in Kubeconfig; empty means the current one
	Node       string // this and what follows: see [KubernetesOptions]
	Local      string
	Labels     []string
	Grace      time.Duration
}

// Connect makes the clients that NewKubernetes needs. It does not talk to the API yet. An error says which file, or
// that this is not a pod.
func (c KubernetesConfig) Connect() (KubernetesOptions, error) {
	var cfg *rest.Config
	var err error
	if c.Kubeconfig == "" {
		if cfg, err = rest.InClusterConfig(); err != nil {
			return KubernetesOptions{},
				fmt.Errorf("the Kubernetes API: not in a pod of a cluster, and no kubeconfig is given: %w", err)
		}
	} else {
		cfg, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig},
			&clientcmd.ConfigOverrides{CurrentContext: c.Context}).ClientConfig()
		if err != nil {
			return KubernetesOptions{}, fmt.Errorf("kubeconfig %s: %w", c.Kubeconfig, err)
		}
	}
	cfg.UserAgent = "dnstrail"
	meta, err := metadata.NewForConfig(cfg)
	if err != nil {
		return KubernetesOptions{}, fmt.Errorf("the Kubernetes API: %w", err)
	}
	proto := rest.CopyConfig(cfg)
	proto.ContentType = "application/vnd.kubernetes.protobuf"
	proto.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	core, err := corev1.NewForConfig(proto)
	if err != nil {
		return KubernetesOptions{}, fmt.Errorf("the Kubernetes API: %w", err)
	}
	return KubernetesOptions{Core: core, Metadata: meta, Node: c.Node, Local: c.Local, Labels: c.Labels, Grace: c.Grace},
		nil
}

// sources are what the process shares: server blocks, and the configuration before and after a reload, use one source
// where they ask for the same.
var sources = struct {
	sync.Mutex
	open map[string]*shared
}{open: map[string]*shared{}}

type shared struct {
	source interface {
		Index() *Index
		Close()
	}
	key    string
	name   string
	users  int
	linger *time.Timer // runs while nobody uses it
}

// Source is a use of a shared source.
type Source struct {
	shared *shared
	once   sync.Once
}

// Index is what the source knows.
func (s *Source) Index() *Index { return s.shared.source.Index() }

// Kubernetes is the source if it is the API, else nil.
func (s *Source) Kubernetes() *Kubernetes { k, _ := s.shared.source.(*Kubernetes); return k }

// File is the source if it is a file, else nil.
func (s *Source) File() *File { f, _ := s.shared.source.(*File); return f }

// Name tells the source in a few words, for logs and labels: "kubernetes" or "file", and what else was asked for if it
// is not the default.
func (s *Source) Name() string { return s.shared.name }

// Release ends the use. The source is closed after [Linger] if nobody uses it by then. More than one call is one.
func (s *Source) Release() {
	s.once.Do(func() { s.shared.release(Linger) })
}

func (s *shared) release(linger time.Duration) {
	sources.Lock()
	defer sources.Unlock()
	if s.users--; s.users > 0 {
		return
	}
	s.linger = time.AfterFunc(linger, func() {
		sources.Lock()
		if s.users > 0 || sources.open[s.key] != s {
			sources.Unlock()
			return
		}
		delete(sources.open, s.key)
		sources.Unlock()
		s.source.Close()
	})
}

// AcquireKubernetes gives the process's source for a cluster: the one that is open already, if the same is asked of it.
func AcquireKubernetes(c KubernetesConfig) (*Source, error) {
	key := strings.Join([]string{"kubernetes", c.Kubeconfig, c.Context, c.Node, c.Local, strings.Join(c.Labels, ","),
		c.Grace.String()}, "\x00")
	return acquire(key, func() (*shared, error) {
		o, err := c.Connect()
		if err != nil {
			return nil, err
		}
		name := strings.Join(strings.Fields(
			strings.Join([]string{"kubernetes", c.Kubeconfig, c.Context, c.Node, strings.Join(c.Labels, ",")}, " ")), " ")
		return &shared{source: NewKubernetes(o), name: name}, nil
	})
}

// AcquireFile gives the process's source for an identity file: the one that is open already, if there is one. See
// [OpenFile].
func AcquireFile(path string, warn func(error)) (*Source, error) {
	return acquire("file\x00"+path, func() (*shared, error) {
		f, err := OpenFile(path, 0, warn)
		if err != nil {
			return nil, err
		}
		return &shared{source: f, name: "file " + path}, nil
	})
}

func acquire(key string, open func() (*shared, error)) (*Source, error) {
	sources.Lock()
	defer sources.Unlock()
	s := sources.open[key]
	if s == nil {
		var err error
		if s, err = open(); err != nil {
			return nil, err
		}
		s.key = key
		sources.open[key] = s
	}
	if s.linger != nil {
		s.linger.Stop()
		s.linger = nil
	}
	s.users++
	return &Source{shared: s}, nil
}

// Sources gives every source that the process has open, for metrics. To release one of these does nothing.
func Sources() []*Source {
	sources.Lock()
	defer sources.Unlock()
	var out []*Source
	for _, s := range sources.open {
		use := &Source{shared: s}
		use.once.Do(func() {})
		out = append(out, use)
	}
	return out
}
