// Command dnstrail follows DNS lookups by eBPF: from the process that asks, over every device, to the DNS server and back.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "dnstrail:", err)
		stop()
		os.Exit(1)
	}
}
