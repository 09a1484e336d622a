package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// The images of the cluster. They are nowhere but in the nodes' own stores: nothing is ever pulled.
const (
	podImage      = "registry.test/pod:v1"
	stockImage    = "registry.test/coredns:stock"
	corednsImage  = "registry.test/dnstrail/coredns:v1"
	dnstrailImage = "registry.test/dnstrail/dnstrail:v1"
	// Those of an upgrade: other names of the same.
	nextImage        = "registry.test/dnstrail/dnstrail:v2"
	nextCoreDNSImage = "registry.test/dnstrail/coredns:v2"
)

// tag gives the nodes the images of an upgrade.
func (t *trial) tag() error {
	for _, n := range nodes {
		pid, err := t.pidOf(n.name)
		if err != nil {
			return err
		}
		for from, to := range map[string]string{dnstrailImage: nextImage, corednsImage: nextCoreDNSImage} {
			err := command("nsenter", "-t", strconv.Itoa(pid), "-m", "-p", "--",
				t.program("ctr"), "-n", "k8s.io", "images", "tag", "--force", from, to)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// image is one program as an image.
type image struct {
	name    string
	program string // its file in the directory of programs
	entry   string // its path in the image
}

var images = []image{
	{podImage, "pod", "/pod"},
	{stockImage, "coredns-stock", "/coredns"},
	{corednsImage, "coredns", "/coredns"},
	{dnstrailImage, "dnstrail", "/dnstrail"},
}

// archive gives the path of the image's archive in dir.
func (i image) archive(dir string) string {
	return filepath.Join(dir, strings.NewReplacer("/", "-", ":", "-").Replace(i.name)+".tar")
}

// write writes the image to its archive in dir, in the form of "docker save", unless it is there and newer than the
// program.
func (i image) write(bin, dir string) error {
	source := filepath.Join(bin, i.program)
	program, err := os.Stat(source)
	if err != nil {
		return err
	}
	if made, err := os.Stat(i.archive(dir)); err == nil && made.ModTime().After(program.ModTime()) {
		return nil
	}
	layer := filepath.Join(dir, i.program+".layer")
	defer func() { _ = os.Remove(layer) }()
	diff, err := writeLayer(layer, source, i.entry, program.Size())
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{i.entry}, "WorkingDir": "/", "Env": []string{"PATH=/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + diff}},
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(config)
	configName := hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{
		{"Config": configName, "RepoTags": []string{i.name}, "Layers": []string{diff + "/layer.tar"}},
	})
	if err != nil {
		return err
	}
	half := i.archive(dir) + ".half"
	out, err := os.Create(half) // #nosec G304 -- a path of the cluster's own
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	w := tar.NewWriter(out)
	if err := add(w, configName, int64(len(config)), strings.NewReader(string(config))); err != nil {
		return err
	}
	if err := add(w, "manifest.json", int64(len(manifest)), strings.NewReader(string(manifest))); err != nil {
		return err
	}
	if err := addFile(w, diff+"/layer.tar", layer); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.Rename(half, i.archive(dir))
}

// writeLayer writes the layer that holds the program at entry, and gives its digest.
func writeLayer(path, source, entry string, size int64) (string, error) {
	out, err := os.Create(path) // #nosec G304 -- a path of the cluster's own
	if err != nil {
		return "", err
	}
	defer func() { _ = out.Close() }()
	in, err := os.Open(source) // #nosec G304 -- a path of the cluster's own
	if err != nil {
		return "", err
	}
	defer func() { _ = in.Close() }()
	hash := sha256.New()
	w := tar.NewWriter(io.MultiWriter(out, hash))
	if err := add(w, strings.TrimPrefix(entry, "/"), size, in); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func addFile(w *tar.Writer, name, path string) error {
	in, err := os.Open(path) // #nosec G304 -- a path of the cluster's own
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	return add(w, name, info.Size(), in)
}

func add(w *tar.Writer, name string, size int64, from io.Reader) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: size, Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := io.Copy(w, from)
	return err
}
