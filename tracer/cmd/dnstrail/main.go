// Command dnstrail follows DNS lookups by eBPF: from the process that asks, over every device, to the DNS server and
// back.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/dnstrail/dnstrail/tracer/printable"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRootCommand().ExecuteContext(ctx); err != nil {
		// It may quote what a server or a file said.
		fmt.Fprintln(os.Stderr, "dnstrail:", printable.Lines(err.Error()))
		stop()
		os.Exit(1)
	}
}
