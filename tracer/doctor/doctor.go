// Package doctor looks whether dnstrail can work here and says, of each thing that it cannot use, what to do.
package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/tracer/bpf"
	"github.com/dnstrail/dnstrail/tracer/podns"
)

// State is how a check ended.
type State int

// The states.
const (
	Pass State = iota
	Warn       // it works, but something is worse than it need be
	Fail
	Skip // it could not be looked at
)

// String gives the word that stands before a finding.
func (s State) String() string { return [...]string{"ok", "warn", "FAIL", "skip"}[s] }

// Finding is the result of one check.
type Finding struct {
	What  string `json:"what"` // what was looked at
	State State  `json:"state"`
	Is    string `json:"is"`           // what it is
	Do    string `json:"do,omitempty"` // what to do; "" where nothing is to be done
	// Log is what somebody else had to say of it, a line each.
	Log []string `json:"log,omitempty"`
}

// Options say what to look at.
type Options struct {
	// Place is whose resolv.conf is read and from where its servers are asked.
	Place podns.Place
	// Ports are the DNS ports to watch; none means 53.
	Ports []uint16
	// Collector is the host:port to which spans are sent, "" for none.
	Collector string
	// Timeout bounds each query and connection.
	Timeout time.Duration
}

// Examine makes all checks in order and gives each finding as soon as it is there.
func Examine(ctx context.Context, o Options, found func(Finding)) {
	capable := capabilities()
	found(capable)
	found(kernel(capable))
	hooks(capable, o.Ports, found)
	found(symbols())
	found(cgroups())
	found(conntrack())
	found(clock())
	servers, ok := resolvConf(o.Place, found)
	if ok {
		for _, s := range servers {
			for _, network := range []string{"udp", "tcp"} {
				found(ask(ctx, o, s, network))
			}
		}
	}
	if o.Collector != "" {
		found(collector(ctx, o))
	}
}

func capabilities() Finding {
	f := Finding{What: "capabilities"}
	if missing := bpf.MissingCapabilities(); len(missing) > 0 {
		f.State, f.Is = Fail, "without "+strings.Join(missing, ", ")
		f.Do = "run as root, or with these capabilities (securityContext.capabilities.add)"
		return f
	}
	f.Is = "eBPF programs may be loaded"
	return f
}

func kernel(capable Finding) Finding {
	f := Finding{What: "kernel"}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.State, f.Is = Fail, "uname: "+err.Error()
		return f
	}
	f.Is = unix.ByteSliceToString(u.Release[:]) + ", with BTF"
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		f.State, f.Is = Fail, unix.ByteSliceToString(u.Release[:])+", without BTF (no /sys/kernel/btf/vmlinux)"
		f.Do = "use a kernel with CONFIG_DEBUG_INFO_BTF=y, from " + bpf.MinKernel + " on; mount /sys"
		return f
	}
	if capable.State == Fail {
		f.State, f.Is = Skip, f.Is+"; whether it is new enough cannot be tried without the capabilities"
		return f
	}
	if err := bpf.CheckKernel(); err != nil {
		f.State, f.Is, f.Do = Fail, err.Error(), "use a kernel from "+bpf.MinKernel+" on"
		return f
	}
	if text, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable"); err == nil &&
		strings.TrimSpace(string(text)) == "0" {
		f.State, f.Is, f.Do = Warn, f.Is+", its eBPF compiler is off", "sysctl -w net.core.bpf_jit_enable=1: interpreted "+
			"programs cost each packet several times as much"
	}
	return f
}

// verifierLines is how much of the verifier's log is shown: its end has the reason, and all of it may be 100,000 lines.
const verifierLines = 24

// hooks attaches the program for a moment: nothing else tells whether a kernel takes it.
func hooks(capable Finding, ports []uint16, found func(Finding)) {
	const what = "hooks"
	if capable.State == Fail {
		found(Finding{What: what, State: Skip, Is: "cannot be tried without the capabilities"})
		return
	}
	t, err := bpf.Open(bpf.Options{Ports: ports, RingBytes: 1 << 16})
	if err != nil {
		f := Finding{What: what, State: Fail, Is: err.Error()}
		f.Do = "the messages above may say more; a hardened kernel (lockdown=confidentiality) refuses eBPF that reads memory"
		if verifier, ok := errors.AsType[*ebpf.VerifierError](err); ok {
			f.Is = "loading the eBPF program: the kernel's verifier refuses it: " + verifier.Cause.Error()
			f.Do = "report it, with the kernel's version and these last lines of the verifier's log"
			f.Log = verifier.Log[max(0, len(verifier.Log)-verifierLines):]
		}
		found(f)
		return
	}
	missing := slices.Clone(t.Missing)
	if err := t.Close(); err != nil {
		missing = append(missing, "detaching: "+err.Error())
	}
	found(Finding{What: what, Is: "the program loads and attaches"})
	for _, m := range missing {
		found(Finding{What: what, State: Warn, Is: "without " + m})
	}
}

// symbols looks whether the kernel shows where its functions are: where it gives no reason for a drop, the function
// that dropped tells the cause.
func symbols() Finding {
	f := Finding{What: "symbols", Is: "the kernel's functions can be named"}
	file, err := os.Open("/proc/kallsyms")
	if err != nil {
		f.State, f.Is, f.Do = Warn, err.Error(), "a kernel with CONFIG_KALLSYMS names the function that dropped a packet"
		return f
	}
	defer func() { _ = file.Close() }() // was only read
	if !symbolsShown(file) {
		f.State, f.Is = Warn, "the kernel hides the addresses of its functions: the cause of a drop without a reason "+
			"(before Linux 5.17, of every drop) is not told"
		f.Do = "add the capability CAP_SYSLOG; sysctl kernel.kptr_restrict=2 hides them even so"
	}
	return f
}

// symbolsShown says whether the first symbol that has a place has an address. A line is "address type name" (proc(5));
// where addresses are hidden, all are zero.
func symbolsShown(kallsyms io.Reader) bool {
	for s, n := bufio.NewScanner(kallsyms), 0; s.Scan() && n < 1000; n++ {
		if address, _, ok := strings.Cut(s.Text(), " "); ok && strings.Trim(address, "0") != "" {
			return true
		}
	}
	return false
}

func cgroups() Finding {
	f := Finding{What: "cgroup v2"}
	root, err := bpf.Cgroup2Mount()
	if err != nil {
		f.State, f.Is = Warn, err.Error()
		f.Do = "mount cgroup v2 (a container: host path /sys/fs/cgroup): without it a client is known by its address, " +
			"not by its pod's UID"
		return f
	}
	f.Is = "at " + root
	return f
}

// conntrackFull is the share of the table's size from which a warning is due.
const conntrackFull = 0.8

func conntrack() Finding {
	f := Finding{What: "conntrack"}
	count, err := number("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		f.State, f.Is = Skip, "this network namespace tracks no connections"
		return f
	}
	limit, err := number("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil || limit == 0 {
		f.State, f.Is = Skip, "no limit can be read"
		return f
	}
	f.Is = fmt.Sprintf("%d of %d entries", count, limit)
	if float64(count) >= conntrackFull*float64(limit) {
		f.State, f.Do = Warn, "raise net.netfilter.nf_conntrack_max: a full table drops new lookups"
	}
	return f
}

func number(path string) (int, error) {
	text, err := os.ReadFile(path) // #nosec G304 -- the callers' constants
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// clock: both sides of a trace derive its ID from the time; adjtimex(2) tells whether something keeps this host's.
func clock() Finding {
	f := Finding{What: "clock"}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		f.State, f.Is = Skip, "adjtimex: "+err.Error()
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		f.State, f.Is = Warn, "nothing keeps this host's clock right"
		f.Do = "run chrony or systemd-timesyncd on every node: clocks further apart than --clock-guard cost traces their link"
	default:
		f.Is = fmt.Sprintf("kept right, to %v as it is estimated", time.Duration(t.Esterror)*time.Microsecond)
	}
	return f
}

// resolvConf checks the file against what resolv.conf(5) of glibc and musl take of it.
func resolvConf(p podns.Place, found func(Finding)) ([]netip.AddrPort, bool) {
	f := Finding{What: "resolv.conf"}
	conf, err := p.ResolvConf()
	if err != nil {
		f.State, f.Is, f.Do = Fail, fmt.Sprintf("of %s: %v", p.Name, err), "a pod gets it from kubelet: see dnsPolicy "+
			"and dnsConfig"
		found(f)
		return nil, false
	}
	f.Is = fmt.Sprintf("of %s: servers %s; search %s; ndots %d, timeout %d s, attempts %d",
		p.Name, list(conf.Servers), list(conf.Search), conf.Ndots, conf.Timeout, conf.Attempts)
	var servers []netip.AddrPort
	for _, s := range conf.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			f.State, f.Do = Fail, fmt.Sprintf("server %q is no address: a resolver passes it over", s)
			continue
		}
		servers = append(servers, netip.AddrPortFrom(a, 53))
	}
	if len(conf.Servers) == 0 {
		f.State, f.Do = Fail, "name a server: resolvers ask 127.0.0.1 where there is none"
	}
	found(f)
	if len(servers) > 3 {
		found(Finding{What: "resolv.conf", State: Warn, Is: fmt.Sprintf("%d servers", len(servers)),
			Do: "glibc and musl use the first three"})
		servers = servers[:3]
	}
	if n := len(conf.Search); conf.Ndots > 1 && n > 0 {
		found(Finding{
			What: "search path", State: Warn, Is: fmt.Sprintf("a name with fewer than %d dots is tried under %d domains first",
				conf.Ndots, n),
			Do: fmt.Sprintf("an external name costs up to %d lookups for A and AAAA: end it with a dot, or set ndots to 2 "+
				"in the pod's dnsConfig", 2*(n+1)),
		})
	}
	return servers, true
}

func list(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, " ")
}

// ask sends a query for the root's name servers, which every DNS server has an answer to, if only a refusal.
func ask(ctx context.Context, o Options, server netip.AddrPort, network string) Finding {
	f := Finding{What: "reachability"}
	var conn net.Conn
	begin := time.Now()
	err := o.Place.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: o.Timeout}).DialContext(ctx, network, server.String())
		return err
	})
	var answer *dns.Msg
	if err == nil {
		defer func() { _ = conn.Close() }()
		c := dns.Client{Net: network, Timeout: o.Timeout}
		answer, _, err = c.ExchangeWithConn(new(dns.Msg).SetQuestion(".", dns.TypeNS), &dns.Conn{Conn: conn})
	}
	if err != nil {
		f.State, f.Is = Fail, fmt.Sprintf("%s over %s from %s: %v", server, network, o.Place.Name, err)
		from := ""
		if strings.Contains(o.Place.Name, "/") {
			from = " --from " + o.Place.Name
		}
		f.Do = fmt.Sprintf("dnstrail walk . NS --server %s%s%s: it tells where the query is lost", server.Addr(), from,
			map[string]string{"tcp": " --tcp"}[network])
		if network == "tcp" {
			f.Do += "; large answers need TCP 53 to pass"
		}
		return f
	}
	f.Is = fmt.Sprintf("%s over %s from %s: %s in %v", server, network, o.Place.Name, dns.RcodeToString[answer.Rcode],
		time.Since(begin).Round(10*time.Microsecond))
	return f
}

func collector(ctx context.Context, o Options) Finding {
	f := Finding{What: "collector"}
	conn, err := (&net.Dialer{Timeout: o.Timeout}).DialContext(ctx, "tcp", o.Collector)
	if err != nil {
		f.State, f.Is, f.Do = Fail, err.Error(), "give --endpoint or OTEL_EXPORTER_OTLP_ENDPOINT the address of a "+
			"collector: without it spans are dropped and counted"
		return f
	}
	f.Is = o.Collector + " takes connections"
	if err := conn.Close(); err != nil && !errors.Is(err, io.EOF) {
		f.Is += " (closing: " + err.Error() + ")"
	}
	return f
}
