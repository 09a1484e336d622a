package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/plugin/identity"
	"github.com/dnstrail/dnstrail/tracer/lookup"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
)

// watchFlags are the flags of every command that watches the kernel.
type watchFlags struct {
	ports        []uint
	netns        []string
	identityFile string
	node         string
	guard        time.Duration
	giveUp       time.Duration
	maxInFlight  int
}

func (f *watchFlags) register(fs *pflag.FlagSet) {
	fs.UintSliceVar(&f.ports, "port", []uint{53}, "DNS ports, at most 8")
	fs.StringArrayVar(&f.netns, "netns", nil, "watch only this network namespace: an inode number as in /proc/PID/ns/net, a path, or pid:PID (repeatable)")
	fs.StringVar(&f.identityFile, "identity-file", "", "YAML file that says whose addresses and pod UIDs are whose, instead of Kubernetes")
	fs.StringVar(&f.node, "node", os.Getenv("NODE_NAME"), "name of the node ($NODE_NAME)")
	fs.DurationVar(&f.guard, "clock-guard", link.DefaultGuard, "how far apart this host's clock and the DNS server's may be")
	fs.DurationVar(&f.giveUp, "give-up", lookup.DefaultGiveUp, "how long after its last attempt a lookup counts as lost")
	fs.IntVar(&f.maxInFlight, "max-in-flight", lookup.DefaultMaxInFlight, "how many lookups are held at most; the oldest is reported early when there are more")
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
	if f.maxInFlight < 1 {
		return o, closeAll, fmt.Errorf("--max-in-flight %d: want at least 1", f.maxInFlight)
	}
	o.Lookup = lookup.Options{GiveUp: f.giveUp, MaxInFlight: f.maxInFlight}
	if f.identityFile != "" {
		file, err := identity.OpenFile(f.identityFile, 0, func(err error) { fmt.Fprintln(os.Stderr, "dnstrail:", err) })
		if err != nil {
			return o, closeAll, fmt.Errorf("--identity-file: %w", err)
		}
		o.Index, closeAll = file.Index(), file.Close
	}
	return o, closeAll, nil
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
