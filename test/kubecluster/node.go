package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5" // #nosec G501 -- a machine ID, no secret
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

// startNode starts a node: enter takes the process into cgroups of its own, node is then process 1 of all its
// namespaces.
func (c *cluster) startNode(n machine) error {
	if err := os.MkdirAll(c.run(n.name), 0o755); err != nil { // #nosec G301 -- the node's programs read it
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// Not by "ip netns exec", which shows a sysfs without the cgroups.
	return c.startProcess(n.name, self, "enter", "-bin", c.bin, "-dir", c.dir, "-proxy", c.proxy, n.name)
}

// hierarchy is a mounted cgroup hierarchy: where, of which file system, with which options.
type hierarchy struct{ Path, Kind, Options string }

// hierarchiesEnv tells a node's process 1 of them, which it cannot see.
const hierarchiesEnv = "KUBECLUSTER_CGROUPS"

// common are the options that tell nothing of which hierarchy it is.
var common = []string{"rw", "ro", "relatime", "nosuid", "nodev", "noexec", "nsdelegate", "memory_recursiveprot"}

// hierarchies gives those of this machine.
func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var found []hierarchy
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text())
		if len(w) < 4 || w[2] != "cgroup" && w[2] != "cgroup2" {
			continue
		}
		h := hierarchy{Path: w[1], Kind: w[2]}
		for o := range strings.SplitSeq(w[3], ",") {
			if !slices.Contains(common, o) {
				h.Options = strings.TrimPrefix(h.Options+","+o, ",")
			}
		}
		found = append(found, h)
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	return found, nil
}

func cgroupOf(h hierarchy, node string) string { return filepath.Join(h.Path, netnsName(node)) }

// enter moves this process into cgroups of the node's own, and starts the node's process 1 in namespaces of its own.
func enter(o options, name string) error {
	all, err := joinCgroups(name)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	known, err := json.Marshal(all)
	if err != nil {
		return err
	}
	cmd := exec.Command("ip", "netns", "exec", netnsName(name), // #nosec G204 -- itself
		self, "node", "-bin", o.bin, "-dir", o.dir, "-proxy", o.proxy, name)
	cmd.Env = append(os.Environ(), hierarchiesEnv+"="+string(known))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID | unix.CLONE_NEWCGROUP,
		Pdeathsig:  syscall.SIGKILL, // and with process 1 ends all of the node
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(o.run(name, "pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		return err
	}
	return cmd.Wait()
}

// joinCgroups moves this process into cgroups of the node's own, and gives the hierarchies that they are in.
func joinCgroups(node string) ([]hierarchy, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		group := cgroupOf(h, node)
		if err := os.MkdirAll(group, 0o755); err != nil { // #nosec G301 -- as all cgroups
			return nil, err
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // in the first version no process may enter without
			if b, err := os.ReadFile(filepath.Join(h.Path, f)); err == nil && h.Kind == "cgroup" {
				if err := os.WriteFile(filepath.Join(group, f), b, 0o600); err != nil {
					return nil, err
				}
			}
		}
		procs := filepath.Join(group, "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// startKubelet starts the kubelet of a node that is up and has none: this process joins the node's cgroups, and another
// that it starts in the node's namespaces does the rest. That one ends, and the kubelet comes to the node's process 1.
func startKubelet(o options, name string) error {
	pid, err := o.pidOf(name)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if _, err := joinCgroups(name); err != nil {
		return err
	}
	return command("nsenter", "-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "-C", "--",
		self, "kubelet-here", "-bin", o.bin, "-dir", o.dir, "-proxy", o.proxy, name)
}

// kubeletHere starts the kubelet of the node that this process is in.
func kubeletHere(o options, name string) error {
	if err := os.Setenv("PATH", o.path()); err != nil {
		return err
	}
	return o.kubelet(machineOf(name))
}

// path gives where a node's programs are looked for.
func (o options) path() string {
	return o.bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// machineOf gives a node by its name.
func machineOf(node string) machine {
	return nodes[slices.IndexFunc(nodes, func(m machine) bool { return m.name == node })]
}

// removeCgroups takes a node's cgroups away. The node's last processes may still be ending; what is left in use stays.
func removeCgroups(node string) {
	all, err := hierarchies()
	if err != nil {
		return
	}
	left := func() bool {
		return slices.ContainsFunc(all, func(h hierarchy) bool { _, err := os.Stat(cgroupOf(h, node)); return err == nil })
	}
	for deadline := time.Now().Add(stopLimit); left() && time.Now().Before(deadline); time.Sleep(pollInterval) {
		removeOnce(all, node)
	}
}

func removeOnce(all []hierarchy, node string) {
	for _, h := range all {
		var dirs []string
		_ = filepath.WalkDir(cgroupOf(h, node), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			_ = unix.Rmdir(d)
		}
	}
}

// pidOf gives process 1 of a node, as the host counts.
func (o options) pidOf(node string) (int, error) {
	b, err := os.ReadFile(o.run(node, "pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(b))
}

// node is process 1 of a node.
func node(o options, name string) error {
	if os.Getpid() != 1 {
		return errors.New("want process 1 of a PID namespace: kubecluster up starts it")
	}
	m := machineOf(name)
	if err := o.mounts(m); err != nil {
		return err
	}
	if err := os.Setenv("PATH", o.path()); err != nil {
		return err
	}
	if err := o.containerd(m); err != nil {
		return err
	}
	if err := o.kubelet(m); err != nil {
		return err
	}
	err := o.startIn(m, "kube-proxy", "--kubeconfig="+o.pki("proxy.conf"), "--proxy-mode="+o.proxy,
		"--hostname-override="+name, "--cluster-cidr="+pods,
		"--conntrack-max-per-core=0", // it is the machine's, not the node's
		"--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0")
	if err != nil {
		return err
	}
	for { // the children of others come to process 1
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// startIn starts a program of a node. What it writes goes to the node's directory.
func (o options) startIn(m machine, program string, args ...string) error {
	log, err := os.OpenFile(o.run(m.name, program+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(program, args...) // #nosec G204 -- of this program's own words
	cmd.Stdout, cmd.Stderr = log, log
	return cmd.Start()
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil { // #nosec G301 -- a mount point
		return err
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, target, err)
	}
	return nil
}

// mounts makes the node's view of the disk: the host's, with the node's own files over it.
func (o options) mounts(m machine) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Sethostname([]byte(m.name)); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	var all []hierarchy
	if err := json.Unmarshal([]byte(os.Getenv(hierarchiesEnv)), &all); err != nil {
		return err
	}
	if err := mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, h := range all {
		if err := mount(h.Kind, h.Path, h.Kind, 0, h.Options); err != nil {
			return err
		}
	}
	_ = mount("bpf", "/sys/fs/bpf", "bpf", 0, "") // for programs that pin; the agent does not
	for _, d := range []string{"/etc", "/var", "/opt"} {
		upper, work := o.run(m.name, "over", d, "up"), o.run(m.name, "over", d, "work")
		for _, dir := range []string{upper, work} {
			if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- as the directories below it
				return err
			}
		}
		if err := mount("overlay", d, "overlay", 0, "lowerdir="+d+",upperdir="+upper+",workdir="+work); err != nil {
			return err
		}
	}
	if err := mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, d := range []string{"kubelet", "containerd"} { // an overlay cannot be the upper layer of another
		own := o.run(m.name, d)
		if err := os.MkdirAll(own, 0o755); err != nil { // #nosec G301 -- as where it is mounted
			return err
		}
		if err := mount(own, filepath.Join("/var/lib", d), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, d := range []string{
		"/run/netns", "/run/lock", "/etc/cni/net.d", "/opt/cni", "/var/log/pods", "/var/log/containers",
	} {
		if err := os.MkdirAll(d, 0o755); err != nil { // #nosec G301 -- as on any node
			return err
		}
	}
	id := md5.Sum([]byte(m.name)) // #nosec G401 -- as above
	for path, text := range map[string]string{
		"/etc/resolv.conf": "nameserver " + upstream.address + "\n",
		"/etc/hosts":       fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", m.address, m.name),
		"/etc/machine-id":  hex.EncodeToString(id[:]) + "\n",
	} {
		_ = os.Remove(path)                                             // it may be a link out of here
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil { // #nosec G306 -- as on any node
			return err
		}
	}
	if err := o.sysctls(m); err != nil {
		return err
	}
	// What a pod mounts with propagation must come to the kubelet, and the reverse.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// sysctls shows the kubelet the settings that it would otherwise make for the whole machine.
func (o options) sysctls(m machine) error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := o.run(m.name, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			return err
		}
		if err := unix.Mount(file, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("show %s: %w", name, err)
		}
	}
	return nil
}

const containerdConfig = `version = 3
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "` + podImage + `"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "/etc/cni/net.d"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
`

// containerd starts it, and gives it the images.
func (o options) containerd(m machine) error {
	const file = "/etc/containerd.toml"
	if err := os.WriteFile(file, []byte(containerdConfig), 0o600); err != nil {
		return err
	}
	if err := o.startIn(m, "containerd", "-c", file); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	for {
		err := command("ctr", "version")
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pollInterval):
		}
	}
	for _, i := range images {
		if err := command("ctr", "-n", "k8s.io", "images", "import", i.archive(o.dir)); err != nil {
			return err
		}
	}
	return nil
}

// kubelet starts it.
func (o options) kubelet(m machine) error {
	b, err := yaml.Marshal(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"failCgroupV1": false, "cgroupDriver": "cgroupfs", "failSwapOn": false, "protectKernelDefaults": true,
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"clusterDNS":               []string{dnsService}, "clusterDomain": "cluster.local", "resolvConf": "/etc/resolv.conf",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false}, "webhook": map[string]any{"enabled": true},
			"x509": map[string]any{"clientCAFile": o.pki("ca.crt")},
		},
		"authorization": map[string]any{"mode": "Webhook"},
		"tlsCertFile":   o.pki(m.name + ".crt"), "tlsPrivateKeyFile": o.pki(m.name + ".key"),
		"imageGCHighThresholdPercent": 100,
		"evictionHard":                map[string]string{"memory.available": "100Mi", "nodefs.available": "1%"},
		"nodeStatusUpdateFrequency":   "4s",
	})
	if err != nil {
		return err
	}
	const file = "/etc/kubelet.yaml"
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return err
	}
	return o.startIn(m, "kubelet", "--config="+file, "--kubeconfig="+o.pki(m.name+".conf"), "--node-ip="+m.address,
		"--hostname-override="+m.name)
}

// writeCNI tells a node's containerd how its pods get their addresses.
func (c *cluster) writeCNI(n machine, cidr string) error {
	pid, err := c.pidOf(n.name)
	if err != nil {
		return err
	}
	type object = map[string]any
	b, err := json.Marshal(object{"cniVersion": "0.4.0", "name": "pods", "plugins": []object{
		{
			"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
			"ipam": object{
				"type": "host-local", "ranges": [][]object{{{"subnet": cidr}}}, "routes": []object{{"dst": "0.0.0.0/0"}},
			},
		},
		{"type": "portmap", "capabilities": object{"portMappings": true}},
	}})
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/proc/%d/root/etc/cni/net.d/10-pods.conflist", pid)
	return os.WriteFile(path, bytes.TrimSpace(b), 0o600)
}
