package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
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
	return digSaid(out, err, answered)
}

// digSaid says whether dig, of which this is the output and how it ended, got an answer or none as it was to. A dig
// that did not get to ask has got none either: that is no answer missing.
func digSaid(out string, err error, answered bool) error {
	if got := strings.Contains(out, "HEADER"); got != answered {
		return fmt.Errorf("the client got an answer: %v, want %v (%w): %s", got, answered, err, out)
	}
	var exit *exec.ExitError
	if !answered && (!errors.As(err, &exit) || exit.ExitCode() != noReply) {
		return fmt.Errorf("the client did not end as one without an answer (%w): %s", err, out)
	}
	return nil
}

// noReply is dig's exit status where no server answered (dig(1)).
const noReply = 9
