package main

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
)

//go:embed testdata
var sources embed.FS

// makeTools compiles and writes what the clients need into dir. extracted may be empty where no client needs it.
func makeTools(ctx context.Context, dir, extracted string, java bool) (*tools, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	t := &tools{dir: dir, self: self, extracted: extracted}
	if err := t.queries(); err != nil {
		return nil, err
	}
	files, err := fs.Sub(sources, "testdata")
	if err != nil {
		return nil, err
	}
	if err := os.CopyFS(dir, files); err != nil {
		return nil, err
	}
	builds := [][]string{
		{"gcc", "-O1", "-o", "glibc-client", "getaddrinfo.c"},
		{"musl-gcc", "-static", "-O1", "-o", "musl-client", "getaddrinfo.c"},
	}
	if java {
		builds = append(builds, []string{"javac", "Lookup.java"})
	}
	for _, b := range builds {
		cmd := exec.CommandContext(ctx, b[0], b[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", strings.Join(b, " "), err, out)
		}
	}
	return t, nil
}

// goClientEnv makes this program a client that looks the names in its value up, by Go's own resolver.
const goClientEnv = "DNSTRAIL_GO_CLIENT"

func goClient(names string) {
	resolver := net.Resolver{PreferGo: true}
	for name := range strings.FieldsSeq(names) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		addresses, err := resolver.LookupHost(ctx, name)
		fmt.Println(name, addresses, err)
		cancel()
	}
}
