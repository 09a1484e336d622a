package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// kernel is one of Debian's.
type kernel struct {
	name  string // as the command line calls it
	suite string // of Debian, whose newest kernel for clouds it is
	arch  string // as Debian calls it
}

// kernels are what is booted: every kernel that a supported Debian has, and the newest there is.
var kernels = []kernel{
	{"5.10", "bullseye", "amd64"},
	{"6.1", "bookworm", "amd64"},
	{"6.12", "trixie", "amd64"},
	{"newest", "sid", "amd64"},
	{"6.1-arm64", "bookworm", "arm64"},
}

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// image is a kernel made ready to be booted.
type image struct {
	kernel
	release string // as uname(2) gives it
	bzImage string // path
	modules string // path of a cpio archive with the modules in /modules, and their order of loading in /modules/list
	// userland is the path of a cpio archive with what the machine runs of Debian's; "" where this machine's own does.
	userland string
}

// apt is a directory of package lists of its own: the machine's sources stay as they are.
type apt struct{ dir string }

func newApt(dir string, k kernel) (*apt, error) {
	a := &apt{dir}
	for _, d := range []string{"lists/partial", "archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "status"), nil, 0o644); err != nil {
		return nil, err
	}
	line := func(archive, suite string) string {
		return fmt.Sprintf("deb [arch=%s signed-by=%s] http://deb.debian.org/%s %s main\n", k.arch, keyring, archive, suite)
	}
	sources := line("debian", k.suite)
	if k.suite != "sid" {
		sources += line("debian-security", k.suite+"-security")
	}
	return a, os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources), 0o644)
}

func (a *apt) run(ctx context.Context, k kernel, command string, args ...string) (string, error) {
	all := []string{
		"-q", "-o", "APT::Architecture=" + k.arch, "-o", "APT::Architectures=" +
			k.arch, "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root",
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"), "-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State::status=" + filepath.Join(a.dir, "status"), "-o", "Dir::State::lists=" +
			filepath.Join(a.dir, "lists"),
		"-o", "Dir::Cache=" + a.dir, "-o", "Dir::Cache::archives=" + filepath.Join(a.dir, "archives"),
	}
	c := exec.CommandContext(ctx, command, append(all, args...)...) // #nosec G204 -- apt's
	c.Dir = filepath.Join(a.dir, "debs")
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", command, strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

var dependsOn = regexp.MustCompile(`(?m)^ *Depends: (linux-(?:image|binary|modules)-[0-9]\S*)$`)

// prepare gets the kernel's packages by apt, once, and makes of them what a boot needs, in dir.
func prepare(ctx context.Context, k kernel, dir string) (*image, error) {
	dir, err := filepath.Abs(filepath.Join(dir, k.suite+"-"+k.arch))
	if err != nil {
		return nil, err
	}
	kept := filepath.Join(dir, "release")
	img := &image{kernel: k, bzImage: filepath.Join(dir, "vmlinuz"), modules: filepath.Join(dir, "modules.cpio")}
	if k.arch != runtime.GOARCH {
		img.userland = filepath.Join(dir, "userland.cpio")
	}
	if b, err := os.ReadFile(kept); err == nil {
		img.release = string(b)
		return img, nil
	}
	progress("%s: getting the kernel of Debian %s (%s) by apt", k.name, k.suite, k.arch)
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("the package debian-archive-keyring is needed: %w", err)
	}
	a, err := newApt(filepath.Join(dir, "apt"), k)
	if err != nil {
		return nil, err
	}
	if _, err := a.run(ctx, k, "apt-get", "update"); err != nil {
		return nil, err
	}
	// The package without a version depends on the newest one, which in newer releases is cut in two.
	wanted := []string{"linux-image-cloud-" + k.arch}
	for i := 0; i < len(wanted); i++ {
		out, err := a.run(ctx, k, "apt-cache", "--no-recommends", "--no-suggests", "depends", wanted[i])
		if err != nil {
			return nil, err
		}
		for _, m := range dependsOn.FindAllStringSubmatch(out, -1) {
			if !slices.Contains(wanted, m[1]) {
				wanted = append(wanted, m[1])
			}
		}
	}
	if _, err := a.run(ctx, k, "apt-get", append([]string{"download"}, wanted[1:]...)...); err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, "debs", "*.deb"))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, deb := range debs {
		if err := unpack(ctx, deb, files); err != nil {
			return nil, err
		}
	}
	if err := img.build(ctx, files); err != nil {
		return nil, err
	}
	if img.userland != "" {
		if err := getUserland(ctx, a, k, img.userland); err != nil {
			return nil, err
		}
	}
	if err := os.RemoveAll(a.dir); err != nil {
		return nil, err
	}
	return img, os.WriteFile(kept, []byte(img.release), 0o644)
}

// unpack takes a package's kernel and modules.
func unpack(ctx context.Context, deb string, files map[string][]byte) (err error) {
	c := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb) // #nosec G204 -- of Debian
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Wait()) }()
	for r := tar.NewReader(out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, out)
			return err
		}
		if err != nil {
			return fmt.Errorf("%s: %w", deb, err)
		}
		if h.Typeflag != tar.TypeReg || !strings.HasPrefix(path.Base(h.Name), "vmlinuz") && !strings.Contains(h.Name, ".ko") {
			continue
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			return fmt.Errorf("%s: %w", deb, err)
		}
	}
}

// build writes the kernel and the archive of its modules.
func (img *image) build(ctx context.Context, files map[string][]byte) error {
	release := regexp.MustCompile(`lib/modules/([^/]+)/`)
	found := map[string]string{} // module -> file
	for name := range files {
		if m := release.FindStringSubmatch(name); m != nil {
			img.release = m[1]
		}
		if stem, _, ok := strings.Cut(path.Base(name), ".ko"); ok {
			found[strings.ReplaceAll(stem, "-", "_")] = name
		} else if err := os.WriteFile(img.bzImage, files[name], 0o644); err != nil {
			return err
		}
	}
	if _, err := os.Stat(img.bzImage); err != nil || img.release == "" {
		return fmt.Errorf("the packages of Debian %s have no kernel: %w", img.suite, cmp.Or(err, errors.New("no modules")))
	}
	var archive cpio
	var order []string
	var add func(string) error
	add = func(module string) error {
		file, ok := found[module]
		if !ok || slices.Contains(order, module) {
			return nil // built in, or not of this kernel
		}
		data, err := unpacked(ctx, file, files[file])
		if err != nil {
			return err
		}
		for _, d := range dependencies(data) {
			if err := add(d); err != nil {
				return err
			}
		}
		order = append(order, module)
		archive.file("modules/"+module+".ko", 0o644, data)
		return nil
	}
	archive.directory("modules")
	for _, m := range modules {
		if err := add(m); err != nil {
			return err
		}
	}
	archive.file("modules/list", 0o644, []byte(strings.Join(order, "\n")))
	return os.WriteFile(img.modules, archive.bytes(), 0o644)
}

// modules are what the lab and the data paths need of the kernel.
var modules = strings.Fields(`
	virtio_pci ipv6 veth bridge br_netfilter nf_conntrack nf_nat nf_tables nft_chain_nat nft_ct nft_nat nft_masq nft_redir
	nft_reject nft_reject_inet nft_reject_ipv4 nft_reject_ipv6 nft_reject_bridge nft_meta_bridge nft_numgen nft_counter
	nft_log nft_fib nft_fib_inet nft_exthdr nft_limit nf_conntrack_netlink nfnetlink nf_conntrack_bridge vxlan geneve ipip
	sit ip6_tunnel tun dummy macvlan ipvlan 8021q wireguard sch_netem sch_ingress cls_bpf ip_vs ip_vs_rr
	nf_flow_table nf_flow_table_inet nf_flow_table_ipv4 nft_flow_offload nfnetlink_queue nft_queue nft_tproxy nft_socket`)

// dependencies gives the modules that a module's .modinfo section says it needs.
func dependencies(module []byte) []string {
	m := regexp.MustCompile(`\x00depends=([^\x00]*)\x00`).FindSubmatch(module)
	if m == nil || len(m[1]) == 0 {
		return nil
	}
	return strings.Split(strings.ReplaceAll(string(m[1]), "-", "_"), ",")
}

func unpacked(ctx context.Context, name string, data []byte) ([]byte, error) {
	tool, ok := map[string]string{".ko": "", ".xz": "xz", ".zst": "zstd", ".gz": "gzip"}[path.Ext(name)]
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: compressed in an unknown way", name)
	case tool == "":
		return data, nil
	}
	c := exec.CommandContext(ctx, tool, "-dc") // #nosec G204 -- one of three
	c.Stdin, c.Stderr = bytes.NewReader(data), os.Stderr
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}
