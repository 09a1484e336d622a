package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// machine is a network namespace with an address on the underlay, a switch in a namespace of its own.
type machine struct{ name, address string }

var (
	controlPlane = machine{"control-plane", "192.168.77.10"}
	upstream     = machine{"upstream", "192.168.77.53"}
	nodes        = []machine{{"node-1", "192.168.77.11"}, {"node-2", "192.168.77.12"}}
)

const (
	underlay     = "underlay"
	gateway      = "192.168.77.1" // nobody has it: what is sent there is lost
	apiPort      = "16443"        // of the API server, and on the host's loopback
	services     = "10.96.0.0/16"
	apiService   = "10.96.0.1"
	dnsService   = "10.96.0.10"
	pods         = "10.244.0.0/16"
	startLimit   = 4 * time.Minute
	stopLimit    = 4 * time.Second
	pollInterval = 200 * time.Millisecond
)

// netnsName gives the name that "ip netns" has for a machine's namespace.
func netnsName(machine string) string { return "dnstrail-" + machine }

// cluster is a running cluster, as the process that serves it knows it.
type cluster struct {
	options
	began  time.Time
	client kubernetes.Interface

	mu      sync.Mutex
	started []*process
	ended   chan *process
}

// process is a program of the cluster.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

func (o options) run(parts ...string) string {
	return filepath.Join(append([]string{o.dir, "run"}, parts...)...)
}
func (o options) pki(file string) string  { return o.run("pki", file) }
func (o options) kubeconfig() string      { return o.run("kubeconfig") }
func (o options) program(n string) string { return filepath.Join(o.bin, n) }

// up starts the process that serves the cluster, shows what it says, and returns when the cluster is there.
func up(ctx context.Context, o options) error {
	if pid := o.serving(); pid != 0 {
		if err := o.load(); err != nil {
			return err
		}
		fmt.Println("it is up already; its nodes have the images as they are now")
		o.sayHow()
		return nil
	}
	if err := os.RemoveAll(o.run()); err != nil {
		return err
	}
	if err := os.MkdirAll(o.run(), 0o755); err != nil { // #nosec G301 -- programs of other users in the nodes read it
		return err
	}
	log, err := os.Create(o.run("log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "serve", "-bin", o.bin, "-dir", o.dir, "-proxy", o.proxy) // #nosec G204 -- itself
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(o.run("pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	shown, err := os.Open(o.run("log"))
	if err != nil {
		return err
	}
	defer func() { _ = shown.Close() }()
	for {
		_, _ = io.Copy(os.Stdout, shown)
		select {
		case err := <-ended:
			_, _ = io.Copy(os.Stdout, shown)
			return fmt.Errorf("it did not come up: %w (its files are in %s)", err, o.run())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), cmd.Process.Signal(syscall.SIGTERM), <-ended)
		case <-time.After(pollInterval):
		}
		if _, err := os.Stat(o.run("ready")); err == nil {
			_, _ = io.Copy(os.Stdout, shown)
			o.sayHow()
			return nil
		}
	}
}

// load gives the images, as they are now, to the nodes of the running cluster.
func (o options) load() error {
	for _, i := range images {
		if err := i.write(o.bin, o.dir); err != nil {
			return fmt.Errorf("image %s: %w", i.name, err)
		}
		for _, n := range nodes {
			pid, err := o.pidOf(n.name)
			if err != nil {
				return err
			}
			err = command("nsenter", "-t", strconv.Itoa(pid), "-m", "-p", "--",
				o.program("ctr"), "-n", "k8s.io", "images", "import", i.archive(o.dir))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (o options) sayHow() {
	fmt.Printf("\n    export KUBECONFIG=%s\n", o.kubeconfig())
	fmt.Printf("    bin/dnstrail install %s\n", strings.Join(installFlags, " "))
	fmt.Print("    bin/dnstrail observe --last 20\n    make cluster-down\n\n")
}

// installFlags are what "dnstrail install" needs beyond a kubeconfig here: its images, and that each agent keeps to
// what it is told of, since both nodes have one kernel (see confine).
var installFlags = []string{
	"--image=" + dnstrailImage, "--coredns-image=" + corednsImage, "--agent-arg=--netns=/proc/self/ns/net",
}

// serving gives the process that serves the cluster, or 0.
func (o options) serving() int {
	b, err := os.ReadFile(o.run("pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		return 0
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !slices.Contains(strings.Split(string(args), "\x00"), o.dir) {
		return 0
	}
	return pid
}

// down ends the process that serves the cluster, which takes it down, and waits for it.
func down(o options) error {
	pid := o.serving()
	if pid == 0 {
		fmt.Println("it is not up")
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * stopLimit); o.serving() != 0; time.Sleep(pollInterval) {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not end: see %s", pid, o.run("log"))
		}
	}
	fmt.Println("it is down")
	return nil
}

// serve raises the cluster, and keeps it until it is told to end.
func serve(ctx context.Context, o options) error {
	c := &cluster{options: o, began: time.Now(), ended: make(chan *process, 32)}
	defer c.stop()
	if err := c.raise(ctx); err != nil {
		return err
	}
	go confine(ctx, c.options)
	c.say("up")
	if err := os.WriteFile(o.run("ready"), nil, 0o600); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case p := <-c.ended:
		return fmt.Errorf("%s ended: %w", p.name, p.err)
	}
}

func (c *cluster) say(what string) {
	fmt.Printf("%6.1fs  %s\n", time.Since(c.began).Seconds(), what)
}

func (c *cluster) raise(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := issueAll(c.run("pki")); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	for _, i := range images {
		if err := i.write(c.bin, c.dir); err != nil {
			return fmt.Errorf("image %s: %w", i.name, err)
		}
	}
	c.say("certificates and images are made")
	if err := c.network(); err != nil {
		return err
	}
	if err := c.upstream(); err != nil {
		return fmt.Errorf("upstream: %w", err)
	}
	for _, n := range nodes { // they take the longest to start, and need no API server for that
		if err := c.startNode(n); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := c.joinNode(ctx, n); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	c.say("both nodes are ready")
	if err := c.coredns(ctx); err != nil {
		return fmt.Errorf("CoreDNS: %w", err)
	}
	c.say("CoreDNS is ready")
	if err := apply(ctx, c.pki("admin.conf"), shopObjects); err != nil {
		return fmt.Errorf("pods that look names up: %w", err)
	}
	b, err := os.ReadFile(c.pki("admin.conf"))
	if err != nil {
		return err
	}
	return os.WriteFile(c.kubeconfig(), b, 0o600)
}

// network makes the namespaces, and the switch between them.
func (c *cluster) network() error {
	at := func(machine string) string { return netnsName(machine) }
	commands := []string{
		"netns add " + at(underlay),
		"-n " + at(underlay) + " link add br0 type bridge",
		"-n " + at(underlay) + " link set br0 up",
	}
	for _, m := range append([]machine{controlPlane, upstream}, nodes...) {
		commands = append(commands,
			"netns add "+at(m.name),
			fmt.Sprintf("-n %s link add %.15s type veth peer name eth0 netns %s", at(underlay), m.name, at(m.name)),
			fmt.Sprintf("-n %s link set %.15s master br0 up", at(underlay), m.name),
			"-n "+at(m.name)+" link set lo up",
			fmt.Sprintf("-n %s addr add %s/24 dev eth0", at(m.name), m.address),
			"-n "+at(m.name)+" link set eth0 up",
			fmt.Sprintf("-n %s route add default via %s", at(m.name), gateway))
	}
	for _, args := range commands {
		if err := command("ip", strings.Fields(args)...); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := command("ip", "netns", "exec", at(n.name), "sysctl", "-qw", "net.ipv4.ip_forward=1"); err != nil {
			return err
		}
	}
	return nil
}

// command runs a program to its end; the error tells what it said.
func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput() // #nosec G204 -- of this program's own words
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// start starts a program on a machine. What it writes goes to NAME.log.
func (c *cluster) start(name string, m machine, program string, args ...string) error {
	return c.startProcess(name, "ip", append([]string{"netns", "exec", netnsName(m.name), program}, args...)...)
}

func (c *cluster) startProcess(name, program string, args ...string) error {
	log, err := os.Create(c.run(name + ".log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	p := &process{name: name, cmd: exec.Command(program, args...), done: make(chan struct{})} // #nosec G204 -- as above
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	c.mu.Lock()
	c.started = append(c.started, p)
	c.mu.Unlock()
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
		c.ended <- p
	}()
	return nil
}

// stop ends all that was started, and takes the namespaces away.
func (c *cluster) stop() {
	// With a node's first process ends all of it; the others are asked, for a moment.
	for _, p := range c.started {
		if slices.ContainsFunc(nodes, func(n machine) bool { return n.name == p.name }) {
			_ = p.cmd.Process.Kill()
		} else {
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	limit := time.After(stopLimit)
	for _, p := range c.started {
		select {
		case <-p.done:
		case <-limit:
			for _, left := range c.started {
				_ = left.cmd.Process.Kill() // those that have ended already do not mind
			}
			<-p.done
		}
	}
	for _, m := range append([]machine{controlPlane, upstream, {name: underlay}}, nodes...) {
		_ = command("ip", "netns", "del", netnsName(m.name))
	}
	for _, n := range nodes {
		removeCgroups(n.name)
	}
	_ = os.Remove(c.run("ready"))
}

// upstreamCorefile answers for example.com and its like, and says of all else that it is not there.
const upstreamCorefile = `.:53 {
    template IN A {
        match ^(.*\.)?example\.(com|org|net)\.$
        answer "{{ .Name }} 60 IN A 203.0.113.9"
        fallthrough
    }
    template IN ANY example.com example.org example.net {
        rcode NOERROR
        authority "{{ .Zone }} 60 IN SOA ns.{{ .Zone }} host.{{ .Zone }} 1 60 60 60 60"
    }
    template IN ANY . {
        rcode NXDOMAIN
        authority ". 60 IN SOA ns. host. 1 60 60 60 60"
    }
}
`

func (c *cluster) upstream() error {
	file := c.run("upstream.Corefile")
	if err := os.WriteFile(file, []byte(upstreamCorefile), 0o600); err != nil {
		return err
	}
	return c.start("upstream", upstream, c.program("coredns-stock"), "-conf", file)
}

// startControlPlane starts etcd, the API server and what acts on it.
func (c *cluster) startControlPlane(ctx context.Context) error {
	const etcd = "http://127.0.0.1:2379"
	err := c.start("etcd", controlPlane, c.program("etcd"), "--data-dir="+c.run("etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd, "--listen-peer-urls=http://127.0.0.1:2380")
	if err != nil {
		return err
	}
	policy := c.run("audit.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	key := func(flag, file string) []string {
		return []string{"--" + flag + "cert-file=" + c.pki(file+".crt"), "--" + flag + "key-file=" + c.pki(file+".key")}
	}
	args := slices.Concat([]string{
		"--etcd-servers=" + etcd, "--advertise-address=" + controlPlane.address, "--secure-port=" + apiPort,
		"--service-cluster-ip-range=" + services, "--authorization-mode=Node,RBAC", "--allow-privileged=true",
		"--enable-admission-plugins=NodeRestriction", "--kubelet-preferred-address-types=InternalIP",
		"--client-ca-file=" + c.pki("ca.crt"), "--kubelet-certificate-authority=" + c.pki("ca.crt"),
		"--kubelet-client-certificate=" + c.pki("kubelet-client.crt"), "--kubelet-client-key=" + c.pki("kubelet-client.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + c.pki("accounts.key"), "--service-account-signing-key-file=" + c.pki("accounts.key"),
		"--requestheader-client-ca-file=" + c.pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client", "--requestheader-username-headers=X-Remote-User",
		"--audit-policy-file=" + policy, "--audit-log-path=" + c.run("audit.log"),
		"--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
	}, key("tls-", "apiserver"), []string{
		"--proxy-client-cert-file=" + c.pki("front-proxy.crt"), "--proxy-client-key-file=" + c.pki("front-proxy.key"),
	})
	args[slices.Index(args, "--tls-key-file="+c.pki("apiserver.key"))] = "--tls-private-key-file=" + c.pki("apiserver.key")
	if err := c.start("kube-apiserver", controlPlane, c.program("kube-apiserver"), args...); err != nil {
		return err
	}
	if err := relay(ctx); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.pki("admin.conf"))
	if err != nil {
		return err
	}
	if c.client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	err = c.wait(ctx, "the API server", func() error {
		return c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	if err != nil {
		return err
	}
	c.say("the API server is ready")
	conf := func(file string) []string {
		path := c.pki(file + ".conf")
		return []string{
			"--kubeconfig=" + path, "--authentication-kubeconfig=" + path, "--authorization-kubeconfig=" + path,
			"--leader-elect=false",
		}
	}
	const controllers = "kube-controller-manager"
	err = c.start(controllers, controlPlane, c.program(controllers), append(conf("controllers"),
		"--cluster-cidr="+pods, "--allocate-node-cidrs=true", "--service-cluster-ip-range="+services,
		"--root-ca-file="+c.pki("ca.crt"), "--service-account-private-key-file="+c.pki("accounts.key"),
		"--use-service-account-credentials=true", "--cluster-signing-cert-file="+c.pki("ca.crt"),
		"--cluster-signing-key-file="+c.pki("ca.key"), "--node-monitor-grace-period=20s")...)
	if err != nil {
		return err
	}
	return c.start("kube-scheduler", controlPlane, c.program("kube-scheduler"), conf("scheduler")...)
}

// relay leads connections to the API server's port on the host's loopback to the server, which only its namespace
// reaches.
func relay(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", apiPort))
	if err != nil {
		return fmt.Errorf("the API server's port on loopback: %w", err)
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = in.Close() }()
				out, err := dialIn(controlPlane, net.JoinHostPort(controlPlane.address, apiPort))
				if err != nil {
					return
				}
				defer func() { _ = out.Close() }()
				go func() { // when one side ends, both are closed
					_, _ = io.Copy(out, in)
					_ = out.Close()
					_ = in.Close()
				}()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return nil
}

// dialIn connects from a machine's namespace.
func dialIn(m machine, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	got := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		ns, err := netns.GetFromName(netnsName(m.name))
		if err == nil {
			err = netns.Set(ns)
			_ = ns.Close()
		}
		if err != nil {
			got <- result{nil, err}
			return
		}
		// A dialer of several addresses would dial from other threads; an IP address is dialed from this one.
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp4", address)
		got <- result{conn, err}
	}()
	r := <-got
	return r.conn, r.err
}

// wait waits until try succeeds; the error is its last.
func (c *cluster) wait(ctx context.Context, what string, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, ctx.Err(), err)
		case p := <-c.ended:
			return fmt.Errorf("%s: %s ended: %w: see %s", what, p.name, p.err, c.run(p.name+".log"))
		case <-time.After(pollInterval):
		}
	}
}

var errNotYet = errors.New("not yet")

// joinNode gives a node the way to its pods, and waits until it is ready.
func (c *cluster) joinNode(ctx context.Context, n machine) error {
	var cidr string
	err := c.wait(ctx, "its pods' addresses", func() error {
		o, err := c.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
		if err == nil && o.Spec.PodCIDR == "" {
			err = errNotYet
		}
		if err == nil {
			cidr = o.Spec.PodCIDR
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := c.writeCNI(n, cidr); err != nil {
		return err
	}
	for _, m := range append([]machine{controlPlane}, nodes...) {
		if m == n {
			continue
		}
		if err := command("ip", "-n", netnsName(m.name), "route", "replace", cidr, "via", n.address); err != nil {
			return err
		}
	}
	// What leaves the cluster leaves from the node's own address.
	err = command("ip", "netns", "exec", netnsName(n.name), "iptables", "-w", "-t", "nat", "-A", "POSTROUTING",
		"-s", pods, "-d", upstream.address, "-j", "MASQUERADE")
	if err != nil {
		return err
	}
	return c.wait(ctx, "ready", func() error {
		o, err := c.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, s := range o.Status.Conditions {
			if s.Type == corev1.NodeReady && s.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return errNotYet
	})
}
