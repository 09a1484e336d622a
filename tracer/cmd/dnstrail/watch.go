package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/names"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/memory"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/podns"
)

// watchFlags are the flags of every command that watches the kernel.
type watchFlags struct {
	ports        []uint
	netns        []string
	identityFile string
	kubeconfig   string
	labels       []string
	node         string
	guard        time.Duration
	giveUp       time.Duration
	maxInFlight  int
	ring         uint
	memory       memory.Budget
	names        []string
}

// What is kept takes so many sixteenths of the memory; the ring buffer takes four, and garbage and all else the rest.
const (
	lookupsShare = 3
	queueShare   = 1
	pastShare    = 1
	askedShare   = 2 // of the recent past that others may ask for
)

func (f *watchFlags) register(fs *pflag.FlagSet) {
	fs.UintSliceVar(&f.ports, "port", []uint{53}, "DNS ports, at most 8")
	fs.StringArrayVar(&f.netns, "netns", nil, "watch only this network namespace: an inode number as in "+
		"/proc/PID/ns/net, a path, or pid:PID (repeatable)")
	f.registerIdentity(fs)
	fs.StringArrayVar(&f.names, "names", nil, "show less of names, as the plugin's property of the same name: "+
		"\"redact 2\", \"hash 0 ZONE\", \"file FILE\" (repeatable)")
	fs.DurationVar(&f.guard, "clock-guard", link.DefaultGuard, "how far apart this host's clock and the DNS server's "+
		"may be")
	fs.DurationVar(&f.giveUp, "give-up", lookup.DefaultGiveUp, "how long after its last attempt a lookup counts as lost")
	fs.UintVar(&f.ring, "ring-size", 0, "size of the buffer of kernel events in MiB, a power of two; "+
		"a quarter of --memory, 64 at most, if not given")
	fs.Var(&f.memory, "memory", "memory to stay within, the kernel's for it included; what the cgroup allows if "+
		"not given, or else what is kept is for 256MiB")
	fs.IntVar(&f.maxInFlight, "max-in-flight", lookup.DefaultMaxInFlight, "how many lookups are held at most; the "+
		"oldest is reported early when there are more")
}

// changed gives the first of these flags that was given; "" if none was.
func (f *watchFlags) changed(fs *pflag.FlagSet) string {
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(watchFlags).register(own)
	first := ""
	own.VisitAll(func(flag *pflag.Flag) {
		if first == "" && fs.Changed(flag.Name) {
			first = flag.Name
		}
	})
	return first
}

// registerIdentity adds the flags that say who tells whose addresses are whose.
func (f *watchFlags) registerIdentity(fs *pflag.FlagSet) {
	fs.StringVar(&f.identityFile, "identity-file", "", "YAML file that says whose addresses and pod UIDs are whose, "+
		"instead of Kubernetes")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster whose pods are told; in a pod its own "+
		"cluster is asked without it")
	fs.StringSliceVar(&f.labels, "label", nil, "pod labels to tell (repeatable)")
	fs.StringVar(&f.node, "node", os.Getenv("NODE_NAME"), "name of the node ($NODE_NAME)")
}

// options checks the flags and gives what the pipeline takes. closeAll frees what it opened.
func (f *watchFlags) options() (o pipeline.Options, closeAll func(), err error) {
	closeAll = func() {}
	for _, p := range f.ports {
		if p == 0 || p > 65535 {
			return o, closeAll, fmt.Errorf("--port %d: want 1 to 65535", p)
		}
		o.BPF.Ports = append(o.BPF.Ports, uint16(p))
	}
	if len(o.BPF.Ports) == 0 {
		return o, closeAll, fmt.Errorf("--port: want at least one")
	}
	for _, n := range f.netns {
		inum, err := netnsInode(n)
		if err != nil {
			return o, closeAll, fmt.Errorf("--netns %s: %w", n, err)
		}
		o.BPF.NetNS = append(o.BPF.NetNS, inum)
	}
	if f.giveUp <= 0 {
		return o, closeAll, fmt.Errorf("--give-up %s: want more than 0", f.giveUp)
	}
	if f.guard < 0 || f.guard >= link.EpochLength/2 {
		return o, closeAll, fmt.Errorf("--clock-guard %s: want 0 to less than %s", f.guard, link.EpochLength/2)
	}
	if f.ring > 1024 || f.ring&(f.ring-1) != 0 {
		return o, closeAll, fmt.Errorf("--ring-size %d: want a power of two from 1 to 1024", f.ring)
	}
	bounded := f.memory > 0 || memory.Allowed() > 0
	f.memory = f.memory.Or()
	if f.ring == 0 {
		f.ring = 64
		for f.ring > 1 && int64(f.ring)<<20 > f.memory.Share(1, 4) {
			f.ring /= 2
		}
	}
	if 2*int64(f.ring)<<20 > int64(f.memory) && bounded {
		return o, closeAll, fmt.Errorf("--ring-size %d: want at most half of the memory, %s", f.ring, &f.memory)
	}
	o.BPF.RingBytes = uint32(f.ring) << 20
	if bounded {
		f.memory.Hold(int64(f.ring) << 20)
	}
	if f.maxInFlight < 1 {
		return o, closeAll, fmt.Errorf("--max-in-flight %d: want at least 1", f.maxInFlight)
	}
	o.Lookup = lookup.Options{GiveUp: f.giveUp, MaxInFlight: f.maxInFlight}
	o.Lookup.MaxBytes = int(f.memory.Share(lookupsShare, 16))
	o.Names = names.New()
	for _, rule := range f.names {
		if err := o.Names.Add(strings.Fields(rule)...); err != nil {
			return o, closeAll, fmt.Errorf("--names %q: %w", rule, err)
		}
	}
	index, closeIndex, err := f.identities()
	if err != nil {
		return o, closeAll, err
	}
	o.Index = index
	namespaces, err := podns.NewNames(index, f.node)
	if err != nil {
		closeIndex()
		return o, func() {}, fmt.Errorf("network namespaces: %w", err)
	}
	o.Namespace, o.InNetNS = namespaces.Owner, namespaces.Client
	return o, closeIndex, nil
}

// identities opens what tells whose addresses and pod UIDs are whose; nil if nothing does.
func (f *watchFlags) identities() (*identity.Index, func(), error) {
	inPod := os.Getenv("KUBERNETES_SERVICE_HOST") != ""
	switch {
	case f.identityFile != "" && f.kubeconfig != "":
		return nil, nil, errors.New("--identity-file and --kubeconfig: want one of them")
	case f.identityFile != "":
		file, err := identity.OpenFile(f.identityFile, 0, func(err error) { fmt.Fprintln(os.Stderr, "dnstrail:", err) })
		if err != nil {
			return nil, nil, fmt.Errorf("--identity-file: %w", err)
		}
		return file.Index(), file.Close, nil
	case f.kubeconfig != "" || inPod:
		source, err := identity.AcquireKubernetes(identity.KubernetesConfig{Kubeconfig: f.kubeconfig, Node: f.node,
			Labels: f.labels})
		if err != nil && f.kubeconfig != "" {
			return nil, nil, fmt.Errorf("--kubeconfig: %w", err)
		}
		if err != nil { // a pod without a service account: nobody asked for its cluster
			fmt.Fprintln(os.Stderr, "dnstrail: pods are not told:", err)
			return nil, func() {}, nil
		}
		return source.Index(), source.Release, nil
	case len(f.labels) > 0:
		return nil, nil, errors.New("--label: no cluster is asked: give --kubeconfig, or run in a pod")
	}
	return nil, func() {}, nil
}

// netnsInode gives the inode number of a network namespace named as --netns takes it.
func netnsInode(s string) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	path := s
	if pid, ok := strings.CutPrefix(s, "pid:"); ok {
		path = "/proc/" + pid + "/ns/net"
	} else if !strings.Contains(s, "/") {
		return 0, fmt.Errorf("want an inode number, a path or pid:PID")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return 0, fmt.Errorf("%s is not a namespace", path)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return uint32(st.Ino), nil
}
