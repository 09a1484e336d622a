// Command kernels boots other kernels than the running one under QEMU, with dnstrail and the fault matrix on board,
// and says what works on each.
//
//	go run ./test/kernels [-bin bin] [-cache DIR] [-only NAME,...] [-short] [-faults REGEXP] [-paths REGEXP]
//		[-write docs/kernels.md]
//
// Exit status 0: on every kernel the program loads and attaches, and no row is judged wrong.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

// shortJob is for every push: that the program loads, and one lookup of each kind.
var shortJob = job.Job{
	Faults: [][]string{
		faultRows("-4", "no fault", "no fault, TCP", "CoreDNS not listening", "policy drop in forward, client's node"),
	},
}

// coreJob is what docs/kernels.md tells of. One row of each way to be lost: where the kernel's functions and reasons
// differ.
var coreJob = job.Job{
	Doctor: true,
	Demo:   true,
	Paths:  ".",
	Faults: [][]string{
		faultRows("-4",
			"no fault", "no fault, TCP", "no fault, answer in fragments", "no fault, through VXLAN",
			"host network: no fault, TCP",
			"answered through masquerade", "policy drop in forward, client's node", "drop on input in the CoreDNS pod",
			"no route to the pods of the other node", "neighbor unresolved, at the client's node",
			"service without endpoints (reject)", "CoreDNS not listening", "CoreDNS stopped (SIGSTOP)",
			"CoreDNS's receive buffer full", "answer dropped on the client's node", "client's socket gone",
			"answer later than the client waited", "answer in fragments, dropped whole", "truncated answer, TCP 53 blocked",
			"VXLAN: policy drop in forward, CoreDNS's node", "no packet: no route, connected", "no packet: no route",
		),
		faultRows("-6", "no fault", "no fault, TCP", "policy drop in forward, client's node", "CoreDNS not listening",
			"no packet: no route"),
	},
}

// foreignJob is for a machine of another architecture: that the program loads there, and what it sees is right.
var foreignJob = job.Job{Doctor: true, Demo: true, Paths: "two nodes|VLAN|GENEVE"}

// faultRows gives the arguments by which test/faults makes the rows of these names, over one family: "-4" or "-6".
// A name that it does not have is an error there.
func faultRows(family string, names ...string) []string {
	args := []string{family}
	for _, name := range names {
		args = append(args, "-row", name)
	}
	return args
}

// check asks the fault matrix whether it has the rows of a job, before a machine is booted for them.
func check(ctx context.Context, faults string, j job.Job) error {
	for _, args := range j.Faults {
		c := exec.CommandContext(ctx, faults, append([]string{"-list"}, args...)...) // #nosec G204 -- ours
		if text, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("the rows of the fault matrix: %w: %s", err, text)
		}
	}
	return nil
}

func run(ctx context.Context) error {
	bin := flag.String("bin", "bin", "the directory of the built coredns and dnstrail")
	cache := flag.String("cache", ".cache/kernels", "where kernels and consoles are kept")
	only := flag.String("only", "", "the kernels to boot, by name, with commas between; all if empty; none only writes")
	short := flag.Bool("short", false, "only what every push tries, and the data paths of -paths")
	kvm := flag.Bool("kvm", false, "let this machine's processor run the others, by /dev/kvm; it is emulated otherwise")
	docs := flag.String("write", "", "write what the last boot of each kernel found out to this file")
	faults := flag.String("faults", "", "run instead the rows of the fault matrix whose names match, over IPv4")
	paths := flag.String("paths", "",
		"try instead, or besides what -short or -faults do, the data paths whose names match")
	flag.Parse()
	j := coreJob
	jobOf := func(img *image, j job.Job) job.Job {
		if img.userland != "" && *paths == "" && *faults == "" {
			return foreignJob
		}
		return j
	}
	switch {
	case *short && *faults == "":
		j = shortJob
		j.Paths = *paths
	case *faults != "":
		j = job.Job{Faults: [][]string{{"-4", "-run", *faults}}, Paths: *paths}
	case *paths != "":
		j = job.Job{Paths: *paths}
	}
	chosen := kernels
	if *only != "" {
		chosen = nil
		for name := range strings.SplitSeq(*only, ",") {
			if name == "none" {
				continue
			}
			i := slices.IndexFunc(kernels, func(k kernel) bool { return k.name == name })
			if i < 0 {
				return fmt.Errorf("-only: no kernel %q", name)
			}
			chosen = append(chosen, kernels[i])
		}
	}
	work, err := os.MkdirTemp("", "kernels-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	var images []*image
	for _, k := range chosen {
		img, err := prepare(ctx, k, *cache)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		images = append(images, img)
	}
	progress("building what the machines run")
	files := map[string][]byte{}
	for _, img := range images {
		if files[img.arch] != nil {
			continue
		}
		if files[img.arch], err = base(ctx, *bin, work, img, jobOf(img, j)); err != nil {
			return err
		}
		if img.userland != "" {
			continue
		}
		if err := check(ctx, filepath.Join(work, "faults"), j); err != nil {
			return err
		}
	}
	var results []*result
	for _, img := range images {
		r, err := try(ctx, img, files[img.arch], jobOf(img, j), *kvm, *cache, work)
		if err != nil {
			return fmt.Errorf("%s: %w", img.name, err)
		}
		results = append(results, r)
		fmt.Print(r.summary())
	}
	if *docs != "" {
		all, err := kept(*cache)
		if err != nil {
			return err
		}
		if err := os.WriteFile(*docs, []byte(document(all)), 0o644); err != nil {
			return err
		}
	}
	var errs []error
	for _, r := range results {
		errs = append(errs, r.wrong()...)
	}
	return errors.Join(errs...)
}

// try boots one kernel with the job. The error says that it could not be tried; what was found wrong is in the result.
func try(ctx context.Context, img *image, base []byte, j job.Job, kvm bool, cache, work string) (*result, error) {
	initrd := filepath.Join(work, "initrd")
	if err := write(initrd, base, img, j); err != nil {
		return nil, err
	}
	name := filepath.Join(cache, img.name)
	console, err := os.Create(name + ".console") // #nosec G304 -- ours
	if err != nil {
		return nil, err
	}
	before, err := recorded(img.kernel, cache)
	if err != nil {
		return nil, err
	}
	progress("%s: booting %s; its console is in %s", img.name, img.release, console.Name())
	begin := time.Now()
	records, err := boot(ctx, img, initrd, kvm, console)
	err = errors.Join(err, console.Close())
	progress("%s: %d records in %v", img.name, len(records), time.Since(begin).Round(time.Second))
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(merged(before, records), "", "\t")
	if err != nil {
		return nil, err
	}
	return &result{kernel: img.kernel, records: records, took: time.Since(begin)}, os.WriteFile(name+".json", text, 0o644)
}
