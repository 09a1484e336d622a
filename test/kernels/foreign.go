package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// foreignPackages are where a machine of another architecture has what the lab runs: busybox, dig, getent.
var foreignPackages = []string{"busybox-static", "bind9-dnsutils", "libc-bin"}

// wantedFile are their programs and the libraries of those.
var wantedFile = regexp.MustCompile(
	`^(bin/busybox|usr/bin/dig|usr/bin/getent|(usr/)?lib/([^/]+-linux-gnu/)?[^/]+\.so[.0-9]*|` +
		`(usr/)?lib/[^/]+-linux-gnu/lib(dns|isc|ns|bind9|irs|isccc|isccfg)-[^/]+\.so)$`)

// getUserland gets by apt what another architecture's machine runs, and keeps it as an archive.
func getUserland(ctx context.Context, a *apt, k kernel, file string) error {
	args := append([]string{"install", "--download-only", "--no-install-recommends", "-y", "-o", "Debug::NoLocking=1"},
		foreignPackages...)
	if _, err := a.run(ctx, k, "apt-get", args...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, "archives", "*.deb"))
	if err != nil {
		return err
	}
	var c cpio
	var dirs []string
	for _, deb := range debs {
		if err := c.unpackWanted(ctx, deb, &dirs); err != nil {
			return err
		}
	}
	if len(dirs) == 0 {
		return errors.New("the packages have no program: " + strings.Join(foreignPackages, ", "))
	}
	return os.WriteFile(file, c.open(), 0o644)
}

// unpackWanted adds a package's programs and libraries. It keeps the list of the archive's directories.
func (c *cpio) unpackWanted(ctx context.Context, deb string, dirs *[]string) (err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb) // #nosec G204 -- of Debian
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cmd.Wait()) }()
	for r := tar.NewReader(out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, out)
			return err
		}
		if err != nil {
			return fmt.Errorf("%s: %w", deb, err)
		}
		name := strings.TrimPrefix(h.Name, "./")
		if !wantedFile.MatchString(name) {
			continue
		}
		c.parents(name, dirs)
		switch h.Typeflag {
		case tar.TypeReg:
			data, err := io.ReadAll(r)
			if err != nil {
				return fmt.Errorf("%s: %w", deb, err)
			}
			c.file(name, 0o755, data)
		case tar.TypeSymlink:
			c.link(name, h.Linkname)
		}
	}
}

// parents adds the directories of a file that the archive does not have yet.
func (c *cpio) parents(name string, dirs *[]string) {
	var missing []string
	for d := path.Dir(name); d != "." && d != "/" && !slices.Contains(*dirs, d); d = path.Dir(d) {
		missing = append(missing, d)
	}
	for _, d := range slices.Backward(missing) {
		c.directory(d)
		*dirs = append(*dirs, d)
	}
}
