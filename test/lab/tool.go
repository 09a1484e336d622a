package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// toolTime bounds a tool that [Namespace.Tool] runs.
const toolTime = 20 * time.Second

// Tool runs a program of the host (ip, nft) in the namespace to its end, with stdin as its input, and gives what it
// printed. The error of one that fails tells what it wrote to its standard error.
func (n *Namespace) Tool(stdin, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), toolTime)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	// A child begins in the namespaces of the thread that starts it.
	err := n.Do(func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		return cmd.Wait()
	})
	if err != nil {
		return stdout.String(), fmt.Errorf("%s %s in %s: %w: %s", path, strings.Join(args, " "), n.Name, err,
			strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// IP runs ip(8) in the namespace with each line of do. The undo runs it with each line of undo.
func (n *Namespace) IP(do, undo string) (Undo, error) {
	return func() error { return n.ip(undo) }, n.ip(do)
}

func (n *Namespace) ip(lines string) error {
	var errs []error
	for line := range strings.Lines(lines) {
		if args := strings.Fields(line); len(args) > 0 {
			_, err := n.Tool("", "ip", args...)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Rules adds an nftables table of a family (ip, ip6, inet, bridge, netdev), with the chains that nft(8) reads from
// text, until undone.
func (n *Namespace) Rules(family, chains string) (Undo, error) {
	name := fmt.Sprintf("rules-%d", faults.Add(1))
	if _, err := n.Tool(fmt.Sprintf("table %s %s {\n%s\n}\n", family, name, chains), "nft", "-f", "-"); err != nil {
		return nil, err
	}
	return func() error {
		_, err := n.Tool("", "nft", "delete", "table", family, name)
		return err
	}, nil
}

// Sysctls sets sysctls of the namespace, given as key, value, key, value, until undone.
func (n *Namespace) Sysctls(pairs ...string) (Undo, error) {
	var old []string
	undo := func() error {
		var errs []error
		for i := 0; i < len(old); i += 2 {
			errs = append(errs, n.SetSysctl(old[i], old[i+1]))
		}
		return errors.Join(errs...)
	}
	for i := 0; i < len(pairs); i += 2 {
		was, err := n.Sysctl(pairs[i])
		if err != nil {
			return undo, fmt.Errorf("sysctl %s of %s: %w", pairs[i], n.Name, err)
		}
		if err := n.SetSysctl(pairs[i], pairs[i+1]); err != nil {
			return undo, err
		}
		old = append(old, pairs[i], was)
	}
	return undo, nil
}

// HardwareAddress gives that of a device of the namespace.
func (n *Namespace) HardwareAddress(device string) (string, error) {
	l, err := n.nl.LinkByName(device)
	if err != nil {
		return "", fmt.Errorf("%s in %s: %w", device, n.Name, err)
	}
	return l.Attrs().HardwareAddr.String(), nil
}
