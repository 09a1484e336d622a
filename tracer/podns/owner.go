package podns

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/dnstrail/dnstrail/identity"
)

// OwnerKind is what has a network namespace for its own.
type OwnerKind int

// The kinds.
const (
	OfProcess OwnerKind = iota // of some process, of which nothing more is known
	OfName                     // made by ip netns, under a name
	OfPod
	OfNode
	OfHost // this one, whose node's name is not known
)

// Owner tells whose a network namespace is.
type Owner struct {
	Kind OwnerKind
	// Name is namespace/pod, the node's or the host's name, the name that ip netns knows, or the process's.
	Name string
}

// String tells whose it is so that it can stand after "in" or "on": see [Owner.On].
func (o Owner) String() string {
	switch o.Kind {
	case OfPod:
		return "pod " + o.Name
	case OfNode:
		return "node " + o.Name
	case OfHost:
		return "host " + o.Name
	case OfName:
		return "network namespace " + o.Name
	}
	return "the network namespace of " + o.Name
}

// Short is the name alone, as a column of a walk shows it: "host" of this host.
func (o Owner) Short() string {
	if o.Kind == OfHost {
		return "host"
	}
	return o.Name
}

// On tells where somebody is who is in the namespace: "in pod shop/cart-1", "on node node-1".
func (o Owner) On() string {
	if o.Kind == OfNode || o.Kind == OfHost {
		return "on " + o.String()
	}
	return "in " + o.String()
}

// found is a namespace's owner, and the file that stands for the namespace as long as it is there.
type found struct {
	Owner
	client *identity.Client // who is in it, as the index or the node's name tells; nil if they do not
	path   string
}

// namedDir is where ip netns keeps the namespaces that it has named (iproute2, NETNS_RUN_DIR).
const namedDir = "/run/netns"

// owners gives what is known of every network namespace that a process is in, or that has a name. node is the name of
// this host's node, "" if it has none; index may be nil.
func owners(proc, named string, index *identity.Index, node string) (map[uint32]found, error) {
	pids, err := processes(proc)
	if err != nil {
		return nil, err
	}
	slices.Sort(pids)
	all := map[uint32]found{}
	put := func(netns uint32, o Owner, c *identity.Client, path string) {
		if have, ok := all[netns]; !ok || o.Kind > have.Kind {
			all[netns] = found{o, c, path}
		}
	}
	host, err := inode(proc, 1)
	path := filepath.Join(proc, "1/ns/net")
	if err != nil { // it may be out of reach; an agent runs in the host's namespace
		self := os.Getpid()
		path = filepath.Join(proc, strconv.Itoa(self), "ns/net")
		if host, err = inode(proc, self); err != nil {
			return nil, err
		}
	}
	if node != "" {
		put(host, Owner{OfNode, node}, identity.NewClient(identity.Description{Kind: identity.Node, Node: node}), path)
	} else {
		name, _ := os.Hostname() // "" where the kernel does not tell
		put(host, Owner{OfHost, cmp.Or(name, "localhost")}, nil, path)
	}
	if node == "" && index != nil {
		if o, c, ok := byAddresses(filepath.Join(filepath.Dir(path), "../net"), index); ok && o.Kind == OfNode {
			all[host] = found{o, c, path}
		}
	}
	entries, _ := os.ReadDir(named) // there is none where nobody has named one
	for _, e := range entries {
		path := filepath.Join(named, e.Name())
		if n, err := inodeAt(path); err == nil {
			put(n, Owner{OfName, e.Name()}, nil, path)
		}
	}
	asked := map[uint32]bool{} // by addresses: once each
	for _, pid := range pids {
		n, err := inode(proc, pid)
		if err != nil || n == host {
			continue // it ended meanwhile
		}
		dir := filepath.Join(proc, strconv.Itoa(pid))
		path := filepath.Join(dir, "ns/net")
		if _, ok := all[n]; !ok {
			comm, _ := os.ReadFile(filepath.Join(dir, "comm")) // #nosec G304 -- below /proc
			put(n, Owner{OfProcess, fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(comm)), pid)}, nil, path)
		}
		if index == nil || all[n].Kind == OfPod {
			continue
		}
		if uid := podUID(proc, pid); uid != "" {
			if c := index.LookupUID(uid); c.Kind() != identity.Unknown {
				put(n, Owner{OfPod, c.Namespace() + "/" + c.Pod()}, c, path)
				continue
			}
		}
		if !asked[n] {
			asked[n] = true
			if o, c, ok := byAddresses(filepath.Join(dir, "net"), index); ok {
				put(n, o, c, path)
			}
		}
	}
	return all, nil
}

// byAddresses tells a pod's or a node's namespace by its own addresses.
func byAddresses(dir string, index *identity.Index) (Owner, *identity.Client, bool) {
	for _, a := range addresses(dir) {
		if !a.IsGlobalUnicast() {
			continue // every namespace has them
		}
		c := index.Lookup(a)
		switch {
		case c.Kind() == identity.Pod && c.Pod() != "":
			return Owner{OfPod, c.Namespace() + "/" + c.Pod()}, c, true
		case c.Kind() == identity.Node && c.Node() != "":
			return Owner{OfNode, c.Node()}, c, true
		}
	}
	return Owner{}, nil, false
}

// addresses gives a namespace's own addresses from proc(5): fib_trie has IPv4's, if_inet6 IPv6's.
func addresses(dir string) []netip.Addr {
	var list []netip.Addr
	add := func(a netip.Addr) {
		if !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	text, _ := os.ReadFile(filepath.Join(dir, "fib_trie")) // #nosec G304 -- below /proc; none, no addresses
	last := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if a, ok := strings.CutPrefix(line, "|-- "); ok {
			last = a
		} else if line == "/32 host LOCAL" {
			if a, err := netip.ParseAddr(last); err == nil {
				add(a)
			}
		}
	}
	text, _ = os.ReadFile(filepath.Join(dir, "if_inet6")) // #nosec G304 -- below /proc; none, no addresses
	for line := range strings.Lines(string(text)) {
		digits, _, _ := strings.Cut(line, " ")
		if b, err := hex.DecodeString(digits); err == nil && len(b) == 16 {
			add(netip.AddrFrom16([16]byte(b)))
		}
	}
	return list
}
