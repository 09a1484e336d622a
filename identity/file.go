package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.yaml.in/yaml/v3"
)

// PollInterval is how often a file is looked at for a change. It is looked at by its content's time, size and inode,
// and not by inotify, so that it works on every file system and for the symbolic links of a mounted ConfigMap.
const PollInterval = 2 * time.Second

// fileClient is one client of the file (docs/architecture.md).
type fileClient struct {
	Addresses      []fileAddr        `yaml:"addresses"`
	Namespace      string            `yaml:"namespace"`
	Pod            string            `yaml:"pod"`
	UID            fileUID           `yaml:"uid"`
	Workload       fileWorkload      `yaml:"workload"`
	Node           string            `yaml:"node"`
	ServiceAccount string            `yaml:"serviceAccount"`
	Labels         map[string]string `yaml:"labels"`
}

type fileWorkload struct {
	Kind string `yaml:"kind"`
	Name string `yaml:"name"`
}

type fileAddr struct {
	addr netip.Addr
	line int
}

func (a *fileAddr) UnmarshalYAML(n *yaml.Node) error {
	addr, err := netip.ParseAddr(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: addresses: %q is not an IP address", n.Line, n.Value)
	}
	if addr.Zone() != "" {
		return fmt.Errorf("line %d: addresses: %q has a zone; want the address alone", n.Line, n.Value)
	}
	*a = fileAddr{addr.Unmap(), n.Line}
	return nil
}

type fileUID string

func (u *fileUID) UnmarshalYAML(n *yaml.Node) error {
	if _, _, ok := parseUID(n.Value); !ok {
		return fmt.Errorf("line %d: uid: %q is not a UUID", n.Line, n.Value)
	}
	*u = fileUID(n.Value)
	return nil
}

// ParseFile reads the clients of an identity file in YAML or JSON; name is for the errors. A field that is not known,
// an address that is none or stands there twice, and a client without an address and UID or without a name are errors
// that name the file, the line or client, and the field.
func ParseFile(name string, content []byte) ([]Description, error) {
	var file struct {
		Clients []fileClient `yaml:"clients"`
	}
	d := yaml.NewDecoder(bytes.NewReader(content))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %s", name, plainYAML(err))
	}
	var next struct{}
	if err := d.Decode(&next); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: a second document follows the first; want one", name)
	}
	at := map[netip.Addr]int{}
	out := make([]Description, 0, len(file.Clients))
	for i, c := range file.Clients {
		bad := func(format string, args ...any) error {
			return fmt.Errorf("%s: clients[%d]: %s", name, i, fmt.Sprintf(format, args...))
		}
		d := Description{
			Kind: Pod, Namespace: c.Namespace, Pod: c.Pod,
			UID: string(c.UID), WorkloadKind: c.Workload.Kind, Workload: c.Workload.Name,
			Node: c.Node, ServiceAccount: c.ServiceAccount, Labels: c.Labels,
		}
		for _, a := range c.Addresses {
			if line, twice := at[a.addr]; twice {
				return nil, fmt.Errorf("%s: line %d: address %s stands in line %d already", name, a.line, a.addr, line)
			}
			at[a.addr] = a.line
			d.Addrs = append(d.Addrs, a.addr)
		}
		switch {
		case len(c.Addresses) == 0 && c.UID == "":
			return nil, bad("neither addresses nor uid is given: it could never be found")
		case c.Pod == "" && c.Node == "" && c.Workload.Name == "":
			return nil, bad("none of pod, workload and node is given")
		case (c.Workload.Kind == "") != (c.Workload.Name == ""):
			return nil, bad("workload: want both kind and name")
		case c.Pod != "" && c.Namespace == "":
			return nil, bad("pod %q has no namespace", c.Pod)
		case c.Pod == "" && c.Workload.Name == "":
			d.Kind = Node
		case c.Workload.Name == "":
			d.WorkloadKind, d.Workload = "Pod", c.Pod
		}
		out = append(out, d)
	}
	return out, nil
}

// plainYAML takes the library's words off its errors, which name our types.
func plainYAML(err error) string {
	s := err.Error()
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		s = strings.Join(te.Errors, "; ")
	}
	for _, r := range [][2]string{
		{"yaml: ", ""},
		{" in type identity.fileClient", " in a client"},
		{" in type identity.fileWorkload", " in workload"},
		{" in type struct { Clients []identity.fileClient \"yaml:\\\"clients\\\"\" }", " beside clients"},
		{" into identity.fileClient", ", want a client"},
		{" into []identity.fileClient", ", want a list of clients"},
		{" into identity.fileWorkload", ", want kind and name"},
		{" into []identity.fileAddr", ", want a list of addresses"},
	} {
		s = strings.ReplaceAll(s, r[0], r[1])
	}
	return s
}

// File is an identity file that is watched for changes.
type File struct {
	index *Index
	path  string
	seen  os.FileInfo
	warn  func(error)

	reloads, failures atomic.Int64

	stop context.CancelFunc
	done sync.WaitGroup
}

// OpenFile reads an identity file and watches it, looking every interval ([PollInterval] if that is 0). It fails if the
// file cannot be read or is wrong. If it turns wrong later, what was known stays, the failure is counted and warn is
// called with it (from another goroutine; it may be nil).
func OpenFile(path string, interval time.Duration, warn func(error)) (*File, error) {
	if interval <= 0 {
		interval = PollInterval
	}
	if warn == nil {
		warn = func(error) {}
	}
	f := &File{index: NewIndex(), path: path, warn: warn}
	if err := f.load(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	f.done.Go(func() { f.watch(ctx, interval) })
	return f, nil
}

// Index is what the file says.
func (f *File) Index() *Index { return f.index }

// Reloads counts how often a changed file was taken, and how often it was refused because it was wrong or could not be
// read.
func (f *File) Reloads() (taken, refused int64) { return f.reloads.Load(), f.failures.Load() }

// Close stops watching. The index stays as it is.
func (f *File) Close() {
	f.stop()
	f.done.Wait()
}

func (f *File) watch(ctx context.Context, interval time.Duration) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		info, err := os.Stat(f.path)
		if err == nil && f.seen != nil && os.SameFile(info, f.seen) && info.ModTime().Equal(f.seen.ModTime()) &&
			info.Size() == f.seen.Size() {
			continue
		}
		if err != nil && f.seen == nil {
			continue // said already
		}
		if err := f.load(); err != nil {
			f.failures.Add(1)
			f.warn(err)
			continue
		}
		f.reloads.Add(1)
	}
}

// load reads the file and puts what it says in place of what it said before. It remembers which file it tried, so that
// a wrong one is told once.
func (f *File) load() error {
	info, err := os.Stat(f.path)
	if err != nil {
		f.seen = nil
		return fmt.Errorf("identity file: %w", err)
	}
	f.seen = info
	content, err := os.ReadFile(f.path)
	if err != nil {
		return fmt.Errorf("identity file: %w", err)
	}
	clients, err := ParseFile(f.path, content)
	if err != nil {
		return err
	}
	f.index.replace(clients, time.Now())
	return nil
}

// replace makes the clients all that the index knows. A client that has not changed stays the same.
func (x *Index) replace(clients []Description, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	stale := map[*Client]bool{}
	collect := func(_ key, c *Client) bool { stale[c] = true; return true }
	x.addrs.all(collect)
	x.uids.all(collect)
	for _, d := range clients {
		c := NewClient(d)
		if old := x.holding(c); old != nil && old.same(c) {
			delete(stale, old)
			continue
		}
		x.put(nil, c) // it comes after those before it, and takes their addresses at once
	}
	for c := range stale {
		x.drop(c)
	}
	x.heard(now)
	x.synced(true)
}

// holding gives the client that is found now where c would be.
func (x *Index) holding(c *Client) *Client {
	if old := x.uids.get(keyOf(c.uid)); old != nil && c.uid != (uid{}) {
		return old
	}
	return x.addrs.get(keyOf(c.addr))
}
