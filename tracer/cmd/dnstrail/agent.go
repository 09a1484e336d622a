package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/otlpenv"
	"github.com/dnstrail/dnstrail/tracer/export"
	"github.com/dnstrail/dnstrail/tracer/hindsight"
	"github.com/dnstrail/dnstrail/tracer/metrics"
	"github.com/dnstrail/dnstrail/tracer/origin"
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
	askBack  askBackFlags

	maxClients int
	past       int
	pastLost   int
}

func newAgentCommand() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Watch this node and send every lookup as spans",
		Long: `agent watches this node's DNS lookups and sends them as OpenTelemetry spans, each under the trace ID that
CoreDNS's dnstrail plugin derives, too. It honors the OTEL_EXPORTER_OTLP_* environment, and shows the token of
the file that DNSTRAIL_OTLP_TOKEN_FILE names; a collector that is away costs spans, which are counted, and
nothing else.`,
		Example: `  dnstrail agent --endpoint grpc://127.0.0.1:4317
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 dnstrail agent --sample 0.01`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	f.watch.register(fs)
	fs.StringVar(&f.sample, "sample", "1", "share of lookups to send, 0 to 1, by trace ID: the plugin with the same "+
		"share keeps the same ones")
	fs.DurationVar(&f.slow, "slow", time.Second, "send lookups that took this long whatever --sample says; 0: do not")
	fs.StringVar(&f.endpoint, "endpoint", "", "where spans go, before OTEL_EXPORTER_OTLP_ENDPOINT: grpc://, grpcs://, "+
		"http:// or https://; none: nowhere")
	fs.StringVar(&f.metrics, "metrics-address", "", "address for /metrics, for example 127.0.0.1:9154; none if empty")
	fs.IntVar(&f.maxClients, "metrics-clients", metrics.DefaultMaxClients, "how many workloads get series of their "+
		"own; the rest is counted under ~other")
	fs.StringVar(&f.socket, "socket", "", "Unix socket on which observe asks for the past and follows; none if empty")
	fs.IntVar(&f.past, "past", past.DefaultAll, "how many lookups are kept for observe --socket")
	fs.IntVar(&f.pastLost, "past-lost", past.DefaultLost, "how many lost lookups are kept apart from those")
	f.askBack.register(fs)
	return cmd
}

// defaultQueue is how many spans may wait where the environment does not say: the memory for them ends before that.
const defaultQueue = 256 * 2048

// client makes the OTLP client that flag and environment ask for; nil if spans go nowhere, which is said.
func (f *agentFlags) client(stderr io.Writer) (otlptrace.Client, otlpenv.Batching, error) {
	batching, err := otlpenv.ReadBatching(defaultQueue)
	if err != nil {
		return nil, batching, err
	}
	target, err := otlpenv.Resolve(f.endpoint)
	if err != nil {
		return nil, batching, err
	}
	if target.Warning != "" {
		fmt.Fprintln(stderr, "dnstrail: endpoint:", target.Warning)
	}
	if !target.Sends() {
		if !target.Off && target.Warning == "" {
			fmt.Fprintln(stderr, "dnstrail: spans go nowhere: no endpoint is given, neither by --endpoint nor by "+
				"OTEL_EXPORTER_OTLP_ENDPOINT")
		}
		return nil, batching, nil
	}
	client, err := target.NewClient(nil)
	return client, batching, err
}

func (f *agentFlags) run(cmd *cobra.Command) error {
	ratio, err := link.ParseRatio(f.sample)
	if err != nil {
		return fmt.Errorf("--sample: %w", err)
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
		if _, err := otlpenv.Parse(f.endpoint); err != nil {
			return fmt.Errorf("--endpoint: %w", err)
		}
	}
	if f.slow < 0 {
		return fmt.Errorf("--slow %s: want 0 or more", f.slow)
	}
	if f.maxClients < 0 {
		return fmt.Errorf("--metrics-clients %d: want 0 or more", f.maxClients)
	}
	if err := f.askBack.check(); err != nil {
		return err
	}
	client, batching, err := f.client(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	exporter, err := export.New(client, export.Options{
		Sample: ratio, Slow: f.slow, Guard: f.watch.guard, Node: f.watch.node, Host: hostname(), Version: version(),
		Owner: o.Namespace, Index: o.Index, Batch: batching.Batch, Interval: batching.Delay, Timeout: batching.Timeout,
		Queue: max(1, batching.Queue/batching.Batch), QueueBytes: int(f.watch.memory.Share(queueShare, 16)),
	})
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
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: spans: %d made, %d sent, %d dropped, %d failed%s\n", s.Made, s.Sent,
			s.Dropped, s.Failed, why)
	}()
	counts := metrics.New(f.maxClients, version())
	var p *pipeline.Pipeline
	ticked := time.Now() // the clock is not read for every lookup
	nextCount := ticked
	var trouble sendTrouble
	history := f.keep()
	var stats atomic.Pointer[pipeline.Stats]
	stats.Store(&pipeline.Stats{})
	var asks *asking
	result := func(r pipeline.Result) {
		id := exporter.Add(r.Lookup, r.Verdict, r.Judge, r.Origin)
		counts.Count(r.Lookup, r.Verdict, r.Origin, id, ticked)
		asks.remember(r, id != "", history)
	}
	if asks, err = f.askBack.open(f, o.Index, exporter, history, result); err != nil {
		return err
	}
	defer asks.close()
	o.Result = func(r pipeline.Result) {
		if !asks.hold(r, exporter) {
			result(r)
		}
	}
	o.Untold = func(who *origin.Origin) { counts.Untold(who, ticked) }
	o.Tick = func(now time.Time) {
		ticked = now
		asks.tick(now)
		exporter.Tick(now)
		if now.After(nextCount) {
			nextCount = now.Add(time.Second)
			s := p.Stats()
			stats.Store(&s)
			sent := exporter.Stats()
			counts.Tick(now, s, sent)
			asks.count(counts)
			if text := trouble.tell(now, sent, exporter.LastError); text != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail:", text)
			}
		}
	}
	if p, err = pipeline.Open(o); err != nil {
		return err
	}
	defer p.Close()
	asks.watch(p)
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
		mux := http.NewServeMux()
		mux.Handle("/", history.Handler(func() pipeline.Stats { return *stats.Load() }))
		if asks != nil {
			mux.Handle(hindsight.PathAsk, asks.memory.Handler())
		}
		go serve(cmd.Context(), l, mux, func(err error) { fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: socket:", err) })
	}
	for _, m := range p.Missing() {
		fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: without", m)
	}
	if err := p.DropCapabilities(); err != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: the capabilities that loading needed stay:", err)
	}
	ran = true
	err = p.Run(cmd.Context())
	asks.flush()
	footer(cmd.ErrOrStderr(), p.Stats())
	return err
}
