package main

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"github.com/dnstrail/dnstrail/tracer/access"
)

// serve serves HTTP on a listener until ctx ends. A failure later than that of listening is given to report.
func serve(ctx context.Context, l net.Listener, h http.Handler, report func(error)) {
	if err := access.Serve(ctx, l, access.SameOrigin(h)); err != nil {
		report(err)
	}
}

func listenMetrics(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--metrics-address: %w", err)
	}
	return l, nil
}
