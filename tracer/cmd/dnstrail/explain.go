package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/replay"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// How far around a lookup, and how many, others are asked for: they tell which nodes were watched.
const (
	explainAround = 30 * time.Second
	explainOthers = 200
	// explainSearch bounds the traces of a service that a search looks through.
	explainSearch = 2000
)

// defaultAPI is where a dnstrail store and a Jaeger answer queries if nobody says otherwise.
const defaultAPI = "http://127.0.0.1:16686"

type explainFlags struct {
	jaeger string
	file   string
	socket string
	lost   bool
	last   int
	since  time.Duration
	name   string
	client string
	output string
}

func newExplainCommand() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain {TRACE_ID | --lost}",
		Short: "Tell one lookup in full: where it went, what took the time, where it was lost and what to look at next",
		Long: `explain draws one lookup's trace and tells it in words. It asks a Jaeger or a "dnstrail store", where what CoreDNS and the agents of all
nodes saw of a lookup comes together; or a running agent, which knows what it saw itself; or reads OTLP JSON from a file.

The first eight digits of a trace ID do, as observe shows them on a narrow terminal: they are looked for among the lookups of the last hour (--since).`,
		Example: `  dnstrail explain 4bf92f3577b34da6a3ce929d0e0e4736 --jaeger http://jaeger-query:16686
  dnstrail explain 4bf92f35 --store http://127.0.0.1:16686
  dnstrail explain --lost                      # the last lookup that got no answer
  dnstrail explain --lost --last 5 --client shop/cart-7f9c5d4b8-x2x7k
  dnstrail explain --lost -o html > lookup.html
  dnstrail explain --lost --socket /run/dnstrail/agent.sock
  dnstrail explain 4bf92f3577b34da6a3ce929d0e0e4736 --file traces.json`,
		Args: cobra.MaximumNArgs(1),

		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              f.run,
	}
	fs := cmd.Flags()
	fs.StringVar(&f.jaeger, "jaeger", defaultAPI, "URL of the query API of a Jaeger or a dnstrail store")
	fs.StringVar(&f.jaeger, "store", defaultAPI, "the same as --jaeger")
	fs.StringVar(&f.file, "file", "", "read OTLP JSON from this file instead, - for standard input")
	fs.StringVar(&f.socket, "socket", "", "ask the agent that listens at this Unix socket instead: its own past, without CoreDNS's side")
	fs.BoolVar(&f.lost, "lost", false, "the lookups that got no answer, the last first")
	fs.IntVar(&f.last, "last", 1, "with --lost: how many")
	fs.DurationVar(&f.since, "since", time.Hour, "how far back to look for the lost, or for a trace ID of which not all digits are given")
	fs.StringVar(&f.name, "name", "", "with --lost: only of this name")
	fs.StringVar(&f.client, "client", "", "with --lost: only of this client: namespace/pod, pod or address")
	fs.StringVarP(&f.output, "output", "o", "text", "text, html (one page that needs nothing else) or json")
	cmd.MarkFlagsMutuallyExclusive("jaeger", "store", "file", "socket")
	offer(cmd, "output", "text", "html", "json")
	for _, flag := range []string{"jaeger", "store", "last", "since", "name", "client"} {
		offer(cmd, flag)
	}
	return cmd
}

func (f *explainFlags) run(cmd *cobra.Command, args []string) error {
	switch {
	case f.lost == (len(args) == 1):
		return errors.New("want a trace ID or --lost, one of the two")
	case f.last < 1:
		return fmt.Errorf("--last %d: want at least 1", f.last)
	case f.since <= 0:
		return fmt.Errorf("--since %s: want more than 0", f.since)
	case !slices.Contains([]string{"text", "html", "json"}, f.output):
		return fmt.Errorf("--output %q: want text, html or json", f.output)
	case f.output == "html" && f.last > 1:
		return errors.New("--output html is a page of one lookup: leave --last out")
	}
	if !f.lost {
		flags := []string{"last", "name", "client"}
		if len(args[0]) == traceIDDigits {
			flags = append(flags, "since")
		}
		for _, flag := range flags {
			if cmd.Flags().Changed(flag) {
				return fmt.Errorf("--%s goes with --lost", flag)
			}
		}
	}
	var found, others []*store.Trace
	var err error
	if f.lost {
		found, others, err = f.search(cmd)
	} else {
		found, others, err = f.one(cmd, args[0])
	}
	if err != nil {
		return err
	}
	for i, t := range found {
		if i > 0 && f.output == "text" {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		if err := f.write(cmd.OutOrStdout(), explain.Tell(t, others)); err != nil {
			return err
		}
	}
	return nil
}

// one gives the trace with that ID, and others of its time where its verdict wants them.
func (f *explainFlags) one(cmd *cobra.Command, arg string) (found, others []*store.Trace, err error) {
	if len(arg) < traceIDDigits {
		return f.prefixed(cmd, arg)
	}
	id, err := store.ParseTraceID(arg)
	if err != nil {
		return nil, nil, err
	}
	if f.file != "" || f.socket != "" {
		from := f.file
		if f.socket != "" {
			from = "the agent's past"
			others, err = f.past(cmd.Context())
		} else {
			others, err = readTraces(cmd, f.file)
		}
		if err != nil {
			return nil, nil, err
		}
		i := slices.IndexFunc(others, func(t *store.Trace) bool { return t.ID == id })
		if i < 0 {
			return nil, nil, fmt.Errorf("trace %v is not among the %d of %s", id, len(others), from)
		}
		return others[i : i+1], others, nil
	}
	c, err := f.api()
	if err != nil {
		return nil, nil, err
	}
	t, err := c.Trace(cmd.Context(), id)
	if err != nil {
		return nil, nil, f.unanswered(err)
	}
	if t.Verdict().Lost() {
		others, err = all(cmd.Context(), c, t.Start().Add(-explainAround), t.Start().Add(explainAround), explainOthers)
	}
	return []*store.Trace{t}, others, err
}

// traceIDDigits is how many a trace ID has, and fewestDigits how many of them tell one from others.
const (
	traceIDDigits = 32
	fewestDigits  = 4
)

// prefixed gives the trace whose ID begins with the digits, which must be one.
func (f *explainFlags) prefixed(cmd *cobra.Command, digits string) (found, others []*store.Trace, err error) {
	digits = strings.ToLower(digits)
	if len(digits) < fewestDigits || strings.Trim(digits, "0123456789abcdef") != "" {
		return nil, nil, fmt.Errorf("%q is no trace ID: want 32 hexadecimal digits, or the first of them, at least %d", digits, fewestDigits)
	}
	others, err = f.recent(cmd)
	if err != nil {
		return nil, nil, err
	}
	var ids []string
	for _, t := range others {
		if strings.HasPrefix(t.ID.String(), digits) {
			found = append(found, t)
			ids = append(ids, t.ID.String())
		}
	}
	switch len(found) {
	case 0:
		return nil, nil, fmt.Errorf("no trace ID begins with %s among the %d lookups looked through; --since looks further back, all 32 digits find any", digits, len(others))
	case 1:
		return found, others, nil
	}
	return nil, nil, fmt.Errorf("%s begins %d trace IDs: %s", digits, len(ids), strings.Join(ids, ", "))
}

// search gives the lookups that were lost, the last first.
func (f *explainFlags) search(cmd *cobra.Command) (found, others []*store.Trace, err error) {
	if others, err = f.recent(cmd); err != nil {
		return nil, nil, err
	}
	filter := store.Filter{Name: f.name, Client: f.client, Lost: new(true)}
	if f.file == "" || cmd.Flags().Changed("since") {
		filter.Since = time.Now().Add(-f.since)
	}
	shadows := store.Shadows(others)
	for _, t := range others {
		if !shadows[t.ID] && filter.Match(t) {
			found = append(found, t)
		}
	}
	slices.SortFunc(found, func(a, b *store.Trace) int { return b.Start().Compare(a.Start()) })
	of := ""
	if f.name != "" || f.client != "" {
		of = ", of that name and client,"
	}
	switch n := min(f.last, len(found)); {
	case n == 0:
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: none of the %d lookups looked through%s was lost\n", len(others)-len(shadows), of)
	case n < len(found):
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: the last %s of %d lookups that were lost; --last %d tells all of them\n", count(n), len(found), len(found))
	}
	return found[:min(f.last, len(found))], others, nil
}

// count writes a number of things, of which one needs none.
func count(n int) string {
	if n == 1 {
		return "one"
	}
	return strconv.Itoa(n)
}

// recent gives the traces that are searched.
func (f *explainFlags) recent(cmd *cobra.Command) ([]*store.Trace, error) {
	switch {
	case f.socket != "":
		return f.past(cmd.Context())
	case f.file != "":
		return readTraces(cmd, f.file)
	}
	c, err := f.api()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	traces, err := all(cmd.Context(), c, now.Add(-f.since), now.Add(time.Minute), explainSearch) // a clock may be ahead of this one
	return traces, f.unanswered(err)
}

// api gives the client of --jaeger or --store.
func (f *explainFlags) api() (*traceapi.Client, error) {
	c, err := traceapi.NewClient(f.jaeger, nil)
	if err != nil {
		return nil, fmt.Errorf("--jaeger: %w", err)
	}
	return c, nil
}

// unanswered says what to do where nothing answers.
func (f *explainFlags) unanswered(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: no store and no Jaeger there; name yours with --store URL or --jaeger URL, or ask an agent with --socket PATH", err)
	}
	return err
}

// past gives what the agent at the socket kept, as traces.
func (f *explainFlags) past(ctx context.Context) ([]*store.Trace, error) {
	var rows []*output.Row
	err := rowapi.NewSocketClient(f.socket).Lookups(ctx, &output.Filter{}, 0, false, func(r *output.Row) error {
		rows = append(rows, r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("--socket: %w", err)
	}
	return replay.Traces(rows)
}

// all gives the newest traces of every service between from and to.
func all(ctx context.Context, c *traceapi.Client, from, to time.Time, perService int) ([]*store.Trace, error) {
	services, err := c.Services(ctx)
	if err != nil {
		return nil, err
	}
	seen := map[link.TraceID]bool{}
	var traces []*store.Trace
	for _, service := range services {
		some, err := c.Newest(ctx, service, from, to, perService)
		if err != nil {
			return nil, err
		}
		for _, t := range some {
			if !seen[t.ID] {
				seen[t.ID] = true
				traces = append(traces, t)
			}
		}
	}
	return traces, nil
}

// readTraces reads OTLP JSON, one document or several after another, as the collector's file exporter writes them; or an answer of Jaeger's API.
func readTraces(cmd *cobra.Command, name string) ([]*store.Trace, error) {
	in := cmd.InOrStdin()
	if name != "-" {
		file, err := os.Open(name) // #nosec G304 -- the user's own choice
		if err != nil {
			return nil, err
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	byID := map[link.TraceID][]*store.Span{}
	var order []link.TraceID
	for dec, n := json.NewDecoder(bufio.NewReader(in)), 1; ; n++ {
		var doc json.RawMessage
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%s, document %d: %w", name, n, err)
		}
		var wrapped struct {
			Result json.RawMessage `json:"result"`
		}
		if json.Unmarshal(doc, &wrapped) == nil && wrapped.Result != nil {
			doc = wrapped.Result
		}
		td, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(doc)
		if err != nil {
			return nil, fmt.Errorf("%s, document %d: not OTLP JSON: %w", name, n, err)
		}
		for _, s := range store.FromOTLP(td) {
			if byID[s.TraceID] == nil {
				order = append(order, s.TraceID)
			}
			byID[s.TraceID] = append(byID[s.TraceID], s)
		}
	}
	traces := make([]*store.Trace, len(order))
	for i, id := range order {
		traces[i] = store.NewTrace(byID[id])
	}
	return traces, nil
}

func (f *explainFlags) write(w io.Writer, s explain.Story) error {
	switch f.output {
	case "html":
		return render.Page(w, s, render.Options{Location: time.Local})
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(s)
	}
	o := render.Options{Location: time.Local}
	if file, ok := w.(*os.File); ok {
		o = render.For(file)
	}
	return render.Story(w, s, o)
}
