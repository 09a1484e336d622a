package main

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/dnstrail/dnstrail/tracer/export"
	"github.com/dnstrail/dnstrail/tracer/metrics"
	"github.com/dnstrail/dnstrail/tracer/past"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
)

// exportGrace bounds how long the last spans are waited for at the end.
const exportGrace = 5 * time.Second

type agentFlags struct {
	watch    watchFlags
	sample   string
	slow     time.Duration
	endpoint string
	metrics  string
	socket   string

	maxClients int
	past       int
	pastLost   int
}

func newAgentCommand() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Watch this node and send every lookup as spans",
		Long: `agent watches this node's DNS lookups and sends them as OpenTelemetry spans, each under the trace ID that CoreDNS's dnstrail plugin derives, too. It
honors the OTEL_EXPORTER_OTLP_* environment; a collector that is away costs spans, which are counted, and nothing else.`,
		Example: `  dnstrail agent --endpoint http://127.0.0.1:4317
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf dnstrail agent --sample 0.01`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	f.watch.register(fs)
	fs.StringVar(&f.sample, "sample", "1", "share of lookups to send, 0 to 1, by trace ID: the plugin with the same share keeps the same ones")
	fs.DurationVar(&f.slow, "slow", time.Second, "send lookups that took this long whatever --sample says; 0: do not")
	fs.StringVar(&f.endpoint, "endpoint", "", "OTLP endpoint as a URL, before OTEL_EXPORTER_OTLP_ENDPOINT")
	fs.StringVar(&f.metrics, "metrics-address", "", "address for /metrics, for example 127.0.0.1:9154; none if empty")
	fs.IntVar(&f.maxClients, "metrics-clients", metrics.DefaultMaxClients, "how many workloads get series of their own; the rest is counted under ~other")
	fs.StringVar(&f.socket, "socket", "", "Unix socket on which observe asks for the past and follows; none if empty")
	fs.IntVar(&f.past, "past", past.DefaultAll, "how many lookups are kept for observe --socket")
	fs.IntVar(&f.pastLost, "past-lost", past.DefaultLost, "how many lost lookups are kept apart from those")
	return cmd
}

func (f *agentFlags) run(cmd *cobra.Command) error {
	ratio, err := export.ParseRatio(f.sample)
	if err != nil {
		return fmt.Errorf("--sample %q: want a number from 0 to 1", f.sample)
	}
	o, closeAll, err := f.watch.options()
	if err != nil {
		return err
	}
	defer closeAll()
	if f.past < 0 || f.pastLost < 0 {
		return fmt.Errorf("--past %d, --past-lost %d: want 0 or more", f.past, f.pastLost)
	}
	if f.endpoint != "" {
		if _, err := hostPort(f.endpoint); err != nil {
			return fmt.Errorf("--endpoint: %w", err)
		}
	}
	if f.slow < 0 {
		return fmt.Errorf("--slow %s: want 0 or more", f.slow)
	}
	if f.maxClients < 0 {
		return fmt.Errorf("--metrics-clients %d: want 0 or more", f.maxClients)
	}
	client, err := export.NewClient(f.endpoint)
	if err != nil {
		return err
	}
	exporter, err := export.New(client, export.Options{Sample: ratio, Slow: f.slow, Guard: f.watch.guard, Node: f.watch.node, Host: hostname(), Version: version()})
	if err != nil {
		return err
	}
	ran := false
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), exportGrace)
		defer cancel()
		if err := exporter.Close(ctx); err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail:", err)
		}
		if !ran {
			return
		}
		s := exporter.Stats()
		why := ""
		if err := exporter.LastError(); err != nil && s.Failed > 0 {
			why = fmt.Sprintf("; the last failure: %v", err)
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: spans: %d made, %d sent, %d dropped, %d failed%s\n", s.Made, s.Sent, s.Dropped, s.Failed, why)
	}()
	counts := metrics.New(f.maxClients, version())
	var p *pipeline.Pipeline
	nextCount := time.Now()
	var trouble sendTrouble
	history := past.New(f.past, f.pastLost, f.watch.node, f.watch.guard)
	var stats atomic.Pointer[pipeline.Stats]
	stats.Store(&pipeline.Stats{})
	o.Result = func(r pipeline.Result) {
		id := exporter.Add(r.Lookup, r.Verdict, r.Judge, r.Origin)
		if f.socket != "" { // nobody else asks for it
			history.Add(r)
		}
		counts.Count(r.Lookup, r.Verdict, r.Origin, id, time.Now())
	}
	o.Tick = func(now time.Time) {
		exporter.Tick(now)
		if now.After(nextCount) {
			nextCount = now.Add(time.Second)
			s := p.Stats()
			stats.Store(&s)
			sent := exporter.Stats()
			counts.Tick(now, s, sent)
			if text := trouble.tell(now, sent, exporter.LastError); text != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail:", text)
			}
		}
	}
	if p, err = pipeline.Open(o); err != nil {
		return err
	}
	defer p.Close()
	if f.metrics != "" {
		l, err := listenMetrics(f.metrics)
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle("/metrics", counts.Handler())
		go serve(cmd.Context(), l, mux, func(err error) { fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: metrics:", err) })
	}
	if f.socket != "" {
		l, err := past.Listen(f.socket)
		if err != nil {
			return fmt.Errorf("--socket: %w", err)
		}
		h := history.Handler(func() pipeline.Stats { return *stats.Load() })
		go serve(cmd.Context(), l, h, func(err error) { fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: socket:", err) })
	}
	for _, m := range p.Missing() {
		fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: without", m)
	}
	ran = true
	err = p.Run(cmd.Context())
	footer(cmd.ErrOrStderr(), p.Stats())
	return err
}
