package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

var ctxBackground = context.Background()

// runner runs a program somewhere.
type runner func(ctx context.Context, path string, args ...string) (string, error)

// digFrom asks a server once with dig, and wants an answer or none.
func (s *scene) digFrom(run runner, server netip.AddrPort, name string, answered bool, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), slowStart)
	defer cancel()
	all := []string{"@" + server.Addr().String(), "-p", fmt.Sprint(server.Port()), "+tries=1", "+noall", "+comments", name,
		"A"}
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "+time=") }) {
		all = append(all, "+time=2")
	}
	out, err := run(ctx, "dig", append(all, args...)...)
	if got := strings.Contains(out, "HEADER"); got != answered {
		return fmt.Errorf("the client got an answer: %v, want %v (%w): %s", got, answered, err, out)
	}
	return nil
}
