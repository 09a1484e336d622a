package bpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
)

// maxPorts is MAX_PORTS of src/config.h.
const maxPorts = 8

// pollInterval bounds how long an event waits in the ring: the kernel side wakes the reader only when much waits.
const pollInterval = 40 * time.Millisecond

// Options say what to watch.
type Options struct {
	// Ports are the DNS ports, 1 to 8 of them; none means 53.
	Ports []uint16
	// NetNS confines the tracer to network namespaces by inode number; none means all.
	NetNS []uint32
	// RingBytes is the ring buffer's size, a power of two; 0 means 64 MiB: half a second of 20,000 lookups a second with
	// 20 hops each.
	RingBytes uint32

	without []string // features to do without, for tests; nil means what [WithoutVariable] says
}

// Tracer is the loaded and attached program. Its methods are for one goroutine, but for Close and Losses.
type Tracer struct {
	objects     *ebpf.Collection
	links       []link.Link // kept: a link that is collected as garbage is detached
	reader      *ringbuf.Reader
	record      ringbuf.Record
	has         map[string]bool            // by feature
	paged       *pagedRecords              // nil where the programs read pages themselves, or nothing does
	attachTypes map[string]ebpf.AttachType // by program
	recvmsg     int                        // of the hooks that see a server's read, how many are attached
	// Missing are the hooks that could not be attached and what that costs, in words for the user.
	Missing []string
	// Refused says why the kernel did not take a program that tries for a feature, by the feature's name.
	Refused map[string]error
}

// Open checks what the kernel offers, loads the program and attaches it.
// An error names what is missing: see [Check]. The optional hooks fail into [Tracer.Missing].
func Open(o Options) (*Tracer, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	spec, err := loadObject()
	if err != nil {
		return nil, fmt.Errorf("reading the eBPF object: %w", err)
	}
	if err := configure(spec, o); err != nil {
		return nil, err
	}
	if o.without == nil {
		o.without = withoutFromEnvironment()
	}
	t := &Tracer{}
	kernel := btf.NewCache() // its types are decoded once
	if err := t.adapt(spec, o.without, kernel); err != nil {
		return nil, err
	}
	t.attachTypes = map[string]ebpf.AttachType{}
	for name, p := range spec.Programs {
		t.attachTypes[name] = p.AttachType
	}
	if t.objects, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: kernel}); err != nil {
		return nil, fmt.Errorf("loading the eBPF program: %w", err)
	}
	if err := t.start(o); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// configure sets the program's constants and map sizes.
func configure(spec *ebpf.CollectionSpec, o Options) error {
	ports := o.Ports
	if len(ports) == 0 {
		ports = []uint16{53}
	}
	if len(ports) > maxPorts {
		return fmt.Errorf("%d DNS ports, at most %d can be watched", len(ports), maxPorts)
	}
	var netOrder [maxPorts]uint16
	for i, p := range ports {
		netOrder[i] = p<<8 | p>>8 // the object is little-endian
	}
	if err := spec.Variables["dns_port_count"].Set(uint32(len(ports))); err != nil {
		return fmt.Errorf("setting the DNS ports: %w", err)
	}
	if err := spec.Variables["dns_ports"].Set(netOrder); err != nil {
		return fmt.Errorf("setting the DNS ports: %w", err)
	}
	if err := spec.Variables["netns_confined"].Set(len(o.NetNS) > 0); err != nil {
		return fmt.Errorf("confining to namespaces: %w", err)
	}
	if o.RingBytes != 0 {
		spec.Maps["events"].MaxEntries = o.RingBytes
		if err := spec.Variables["wakeup_bytes"].Set(min(o.RingBytes/8, 1<<20)); err != nil {
			return fmt.Errorf("setting the wake-up level: %w", err)
		}
	}
	if err := spec.Variables["ring_bytes"].Set(spec.Maps["events"].MaxEntries); err != nil {
		return fmt.Errorf("telling the ring buffer's size: %w", err)
	}
	// #nosec G404 -- seeded by Go from the kernel; it guards a table, no secret
	if err := spec.Variables["share_seed"].Set(rand.Uint64()); err != nil {
		return fmt.Errorf("seeding the table of who writes: %w", err)
	}
	return nil
}

func (t *Tracer) start(o Options) error {
	one := uint8(1)
	for _, inum := range o.NetNS {
		if err := t.objects.Maps["netns_allowed"].Put(inum, one); err != nil {
			return fmt.Errorf("confining to network namespace %d: %w", inum, err)
		}
	}
	reader, err := ringbuf.NewReader(t.objects.Maps["events"])
	if err != nil {
		return fmt.Errorf("opening the ring buffer: %w", err)
	}
	t.reader = reader
	t.reader.SetDeadline(time.Now().Add(pollInterval))
	t.record.RawSample = make([]byte, 0, eventSize+4096)
	if t.has[featureSKBOutput] && !t.has[featureDynptr] {
		if t.paged, err = openPaged(t.objects.Maps["paged"]); err != nil {
			return err
		}
	}
	return t.attach()
}

// Cgroup2Mount gives the place where the root of cgroup v2 is mounted, an error if it is not. In a container that is
// the place where the host's hierarchy was mounted into it, not the container's own part.
func Cgroup2Mount() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	if at := cgroup2Root(string(b)); at != "" {
		return at, nil
	}
	return "", errors.New("cgroup v2 is not mounted")
}

// cgroup2Root finds the mount point of the cgroup v2 hierarchy's root in a mountinfo file. Seen from within a cgroup
// namespace, what lies above the namespace's own cgroup is /.., /../.. and so on (cgroup_namespaces(7)): of these the
// highest is the root. Without a namespace the root is /.
func cgroup2Root(mountinfo string) (at string) {
	above := -1
	for line := range strings.Lines(mountinfo) {
		// proc(5): ID parent major:minor root mount-point options [optional fields] - type source super-options
		f := strings.Fields(line)
		dash := slices.Index(f, "-")
		if dash < 6 || dash+1 >= len(f) || f[dash+1] != "cgroup2" {
			continue
		}
		up := strings.Count(f[3], "/..")
		if f[3] != "/" && f[3] != strings.Repeat("/..", up) {
			continue // a part of it
		}
		if up > above {
			above, at = up, f[4]
		}
	}
	return at
}

// Read gives the next event and its payload, waiting for one until a poll interval has passed. Neither outlives the
// next call. It gives nil, nil, nil when nothing waits, and [os.ErrClosed] after Close.
func (t *Tracer) Read() (*Event, []byte, error) {
	if t.paged != nil {
		return t.paged.merge(t)
	}
	got, err := t.fill()
	if err != nil || !got {
		return nil, nil, err
	}
	return Decode(t.record.RawSample)
}

// fill takes the next record out of the ring buffer, waiting for one until a poll interval has passed. False: there is
// none.
func (t *Tracer) fill() (bool, error) {
	err := t.reader.ReadInto(&t.record)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.reader.SetDeadline(time.Now().Add(pollInterval))
		return false, nil
	}
	return err == nil, err
}

// Losses are events that the tracer did not get, since it was opened.
type Losses struct {
	RingFull uint64 // events: no room in the ring buffer, user space was too slow
	Paged    uint64 // events without payload: it lay in pages that this kernel gives no access to
	// identifications of fragmented packets forgotten while their later fragments may have been on their way
	Fragment uint64
	Connect  uint64 // connections to a DNS port that were not watched: too many at once
	// events: the ring buffer filled, and whose client had written most of late gave way to the others
	Flood  uint64
	Missed uint64 // events: a hook was hit while it ran on the same CPU
}

// Total is the number of events that never came.
func (l Losses) Total() uint64 { return l.RingFull + l.Flood + l.Missed }

// Losses counts what was lost.
func (t *Tracer) Losses() (Losses, error) {
	var l Losses
	for i, n := range []*uint64{&l.RingFull, &l.Paged, &l.Fragment, &l.Connect, &l.Flood} {
		var perCPU []uint64
		if err := t.objects.Maps["losses"].Lookup(uint32(i), &perCPU); err != nil {
			return l, fmt.Errorf("reading the kernel side's losses: %w", err)
		}
		for _, c := range perCPU {
			*n += c
		}
	}
	for _, h := range hooks {
		p := t.objects.Programs[h.program]
		if p == nil || !h.needed {
			continue
		}
		if stats, err := p.Stats(); err == nil {
			l.Missed += stats.RecursionMisses
		}
	}
	return l, nil
}

// ReadsSeen says whether every read of a DNS server's UDP socket is seen.
func (t *Tracer) ReadsSeen() bool { return t.recvmsg == 2 }

// Waiting gives how many bytes wait in the ring buffer.
func (t *Tracer) Waiting() int { return t.reader.AvailableBytes() }

// Detach ends the events: what waits in the ring buffer can still be read, and losses be counted.
func (t *Tracer) Detach() error {
	var errs []error
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	t.links = nil
	return errors.Join(errs...)
}

// Unread takes out what waits and counts it. Call it after [Tracer.Detach].
func (t *Tracer) Unread() (uint64, error) {
	n := uint64(0)
	for {
		e, _, err := t.Read()
		if err != nil || e == nil {
			return n, err
		}
		n++
	}
}

// Close detaches the program and frees it.
func (t *Tracer) Close() error {
	errs := []error{t.Detach()}
	if t.reader != nil {
		errs = append(errs, t.reader.Close())
	}
	if t.paged != nil {
		errs = append(errs, t.paged.reader.Close())
	}
	t.objects.Close()
	return errors.Join(errs...)
}
