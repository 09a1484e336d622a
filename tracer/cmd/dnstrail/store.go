package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

func newStoreCommand() *cobra.Command {
	var grpcAddr, httpAddr, apiAddr string
	var limits store.Limits
	c := &cobra.Command{
		Use:   "store",
		Short: "Keep the last traces in memory: OTLP in, Jaeger's query API out",
		Long: `store receives OTLP over gRPC and HTTP, joins what CoreDNS and the tracers send to one trace a lookup, and keeps the
last of them in memory. It answers GET /api/v3/traces, /api/v3/traces/TRACE_ID and /api/v3/services as a Jaeger does, in OTLP JSON,
and GET /stats with its own figures; and it gives "dnstrail observe --store" the lookups of all nodes, live, one row each.
It holds what fits into memory and nothing else: keep traces for longer in a Jaeger, to which a collector can send them as well.`,
		Example: `  dnstrail store
  dnstrail store --grpc 127.0.0.1:14317 --http "" --spans 1000000
  dnstrail observe --store http://127.0.0.1:16686
  dnstrail explain --lost --jaeger http://127.0.0.1:16686`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limits.Spans <= 0 {
				return fmt.Errorf("--spans %d: want more than 0", limits.Spans)
			}
			return runStore(cmd, limits, grpcAddr, httpAddr, apiAddr)
		},
	}
	f := c.Flags()
	f.StringVar(&grpcAddr, "grpc", "127.0.0.1:4317", "address to receive OTLP over gRPC at; empty for none")
	f.StringVar(&httpAddr, "http", "127.0.0.1:4318", "address to receive OTLP over HTTP at; empty for none")
	f.StringVar(&apiAddr, "api", "127.0.0.1:16686", "address to answer queries at; empty for none")
	f.IntVar(&limits.Spans, "spans", store.DefaultSpans, "how many spans are kept; the oldest trace goes first")
	return c
}

func runStore(cmd *cobra.Command, limits store.Limits, grpcAddr, httpAddr, apiAddr string) error {
	if grpcAddr == "" && httpAddr == "" {
		return errors.New("--grpc and --http are both empty: nothing can be received")
	}
	s := store.New(limits)
	var open []net.Listener
	listen := func(flag, addr string) (net.Listener, error) {
		if addr == "" {
			return nil, nil
		}
		l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", addr)
		if err != nil {
			for _, l := range open {
				_ = l.Close()
			}
			return nil, fmt.Errorf("--%s: %w", flag, err)
		}
		open = append(open, l)
		return l, nil
	}
	grpcListener, err := listen("grpc", grpcAddr)
	if err != nil {
		return err
	}
	httpListener, err := listen("http", httpAddr)
	if err != nil {
		return err
	}
	apiListener, err := listen("api", apiAddr)
	if err != nil {
		return err
	}
	for _, l := range []struct {
		what string
		l    net.Listener
	}{{"OTLP over gRPC", grpcListener}, {"OTLP over HTTP", httpListener}, {"queries", apiListener}} {
		if l.l != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s at %v\n", l.what, l.l.Addr())
		}
	}

	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	var wg sync.WaitGroup
	var apiErr error
	if apiListener != nil {
		wg.Go(func() {
			defer cancel()
			apiErr = store.ServeHTTP(ctx, apiListener, joined.Handler(s, traceapi.Handler(s)))
		})
	}
	err = s.Serve(ctx, grpcListener, httpListener)
	cancel()
	wg.Wait()
	stats := s.Stats()
	fmt.Fprintf(cmd.ErrOrStderr(), "received %d spans; kept %d traces of %d spans; evicted %d traces, refused %d spans\n",
		stats.SpansReceived, stats.Traces, stats.Spans, stats.TracesEvicted, stats.SpansRefused)
	return errors.Join(err, apiErr)
}
