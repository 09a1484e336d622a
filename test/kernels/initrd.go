package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

// programs are what is tried and what tries it: package, name in /p, and which jobs need it. CoreDNS and dnstrail are
// taken as they were built.
var programs = []struct {
	pkg, name string
	needed    func(job.Job) bool
}{
	{"./test/kernels/guest", "guest", func(job.Job) bool { return true }},
	{"./test/faults", "faults", func(j job.Job) bool { return len(j.Faults) > 0 }},
	{"./test/kernels/paths", "paths", func(j job.Job) bool { return j.Paths != "" }},
	{"./test/demo", "demo", func(j job.Job) bool { return j.Demo }},
	{"./test/demo/lookup", "lookup", func(j job.Job) bool { return j.Demo }},
}

// base makes the part of the machine's file system that does not depend on the kernel, but on its architecture. CoreDNS
// and dnstrail are in bin; those of another architecture in bin/ARCH, where they are built if they are not there.
func base(ctx context.Context, bin, dir string, img *image, j job.Job) ([]byte, error) {
	var c cpio
	env := append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+img.arch)
	if img.userland != "" {
		bin = filepath.Join(bin, img.arch)
	}
	for _, d := range []string{"bin", "dev", "etc", "p", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "var"} {
		c.directory(d)
	}
	c.link("var/run", "/run")
	for name, text := range map[string]string{
		"etc/resolv.conf":   "nameserver 10.96.0.10\n",
		"etc/hosts":         "127.0.0.1 localhost\n",
		"etc/hostname":      "guest\n",
		"etc/nsswitch.conf": "hosts: files dns\n",
		"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":         "root:x:0:\n",
		"etc/services":      "",
	} {
		c.file(name, 0o644, []byte(text))
	}
	// The demo builds a program of its own; here it is built already: go build -o FILE PACKAGE.
	c.file("bin/go", 0o755, []byte("#!/bin/sh\nexec cp /p/lookup \"$3\"\n"))
	built := []string{"dnstrail"}
	if j.Demo || len(j.Faults) > 0 {
		built = append(built, "coredns")
	}
	for _, name := range built {
		if img.userland != "" {
			progress("building %s for %s", name, img.arch)
			args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(bin, name)},
				commands[name]...)
			build := exec.CommandContext(ctx, "go", args...) // #nosec G204 -- ours
			build.Env = env
			if text, err := build.CombinedOutput(); err != nil {
				return nil, fmt.Errorf("building %s: %w: %s", name, err, text)
			}
		}
		if err := c.copy("p/"+name, filepath.Join(bin, name)); err != nil {
			return nil, err
		}
	}
	for _, p := range programs {
		if !p.needed(j) {
			continue
		}
		out := filepath.Join(dir, p.name)
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out,
			p.pkg) // #nosec G204 -- ours
		build.Env = env
		if text, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building %s: %w: %s", p.pkg, err, text)
		}
		if err := c.copy("p/"+p.name, out); err != nil {
			return nil, err
		}
	}
	c.link("init", "/p/guest")
	if err := c.userland(ctx, img); err != nil {
		return nil, err
	}
	return c.bytes(), nil
}

// commands are what the Makefile builds for this machine's own architecture.
var commands = map[string][]string{
	"coredns":  {"-tags", "grpcnotrace", "./build/coredns"},
	"dnstrail": {"./tracer/cmd/dnstrail"},
}

// userland adds busybox, and this machine's own dig and getent with their libraries, or another architecture's: the lab
// runs them.
func (c *cpio) userland(ctx context.Context, img *image) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output() // #nosec G204 -- busybox
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	for a := range strings.FieldsSeq(string(applets)) {
		if a != "busybox" {
			c.link("bin/"+a, "busybox")
		}
	}
	if img.userland != "" {
		archive, err := os.ReadFile(img.userland)
		if err != nil {
			return err
		}
		c.b.Write(archive)
		return nil
	}
	if err := c.copy("bin/busybox", busybox); err != nil {
		return err
	}
	var files []string
	for _, name := range []string{"dig", "getent"} {
		file, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		if err := c.copy("usr/bin/"+name, file); err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "ldd", file).Output() // #nosec G204 -- one of two
		if err != nil {
			return fmt.Errorf("ldd %s: %w", file, err)
		}
		files = append(files, regexp.MustCompile(`/[^ ]+`).FindAllString(string(out), -1)...)
	}
	// What the C library loads only when it runs.
	for _, name := range []string{"libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"} {
		found, err := filepath.Glob("/lib/*-linux-gnu/" + name)
		if err != nil {
			return err
		}
		files = append(files, found...)
	}
	slices.Sort(files)
	files = slices.Compact(files)
	var dirs []string
	for _, file := range files {
		for d := filepath.Dir(file); d != "/"; d = filepath.Dir(d) {
			dirs = append(dirs, d)
		}
	}
	slices.Sort(dirs)
	for _, d := range slices.Compact(dirs) {
		c.directory(strings.TrimPrefix(d, "/"))
	}
	for _, file := range files {
		if err := c.copy(strings.TrimPrefix(file, "/"), file); err != nil {
			return err
		}
	}
	return nil
}

// copy adds a file of this machine, which may be a link.
func (c *cpio) copy(name, from string) error {
	data, err := os.ReadFile(from) // #nosec G304 -- ours or of a package
	if err != nil {
		return err
	}
	c.file(name, 0o755, data)
	return nil
}

// write puts the archives and the job into one file.
func write(file string, base []byte, img *image, j job.Job) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	var c cpio
	c.file(strings.TrimPrefix(job.Path, "/"), 0o644, text)
	modules, err := os.Open(img.modules)
	if err != nil {
		return err
	}
	defer func() { _ = modules.Close() }()
	out, err := os.Create(file) // #nosec G304 -- ours
	if err != nil {
		return err
	}
	for _, r := range []io.Reader{bytes.NewReader(base), modules, bytes.NewReader(c.bytes())} {
		if _, err := io.Copy(out, r); err != nil {
			return fmt.Errorf("writing %s: %w", file, err)
		}
	}
	return out.Close()
}
