package main

import (
	"bufio"
	"bytes"
	"cmp"
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
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/hindsight"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/printable"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/replay"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/trace"
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

// hopsUsage tells what --hops is for, in every command that draws a lookup.
const hopsUsage = "draw and tell every hop; else what is uneventful is folded into one line"

// sources are the flags that say who is asked.
var sources = []string{"jaeger", "store", "file", "socket"}

type explainFlags struct {
	jaeger string

	tokenFile string
	file      string
	socket    string
	ask       string
	filter    filterFlags
	last      int
	since     time.Duration
	server    string
	output    string
	hops      bool
	// context of the kubeconfig; see reach.
	context string
}

func newExplainCommand() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain {TRACE_ID | --lost | FILTER...}",
		Short: "Tell one lookup in full: where it went, what took the time, where it was lost and what to look at next",
		Long: `explain draws one lookup's trace and tells it in words. It asks a Jaeger or a "dnstrail store", where what
CoreDNS and the agents of all nodes saw of a lookup comes together; or a running agent, which knows what it
saw itself; or reads OTLP JSON from a file. Where nothing of this is named and a kubeconfig names a cluster
($KUBECONFIG, ~/.kube/config), that cluster's store is asked, through its API server.

The first eight digits of a trace ID do, as observe shows them on a narrow terminal: they are looked for among
the lookups of the last hour (--since). Where one socket asked several servers the same, one trace has a
lookup for each of them: all are told.

With --ask a lookup that was not sampled is told, too: the agent there sends its spans, and asks CoreDNS and the agents
that may have seen the lookup to send theirs, as for one that ended badly. It must be an agent with --ask-back.

Without a trace ID the last lookup is told that the filters take, which are those of observe and hold together.`,
		Example: `  dnstrail explain 4bf92f3577b34da6a3ce929d0e0e4736 --jaeger http://jaeger-query:16686
  dnstrail explain 4bf92f35 --store http://127.0.0.1:16686
  dnstrail explain --lost                      # the last lookup that got no answer
  dnstrail explain --lost --last 5 --client shop/cart-7f9c5d4b8-x2x7k
  dnstrail explain --name '*.example.com' --slow 100ms
  dnstrail explain --lost -o html > lookup.html
  dnstrail explain --lost --socket /run/dnstrail/agent.sock
  dnstrail explain 4bf92f35 --ask /run/dnstrail/agent.sock --store http://127.0.0.1:16686
  dnstrail explain 4bf92f3577b34da6a3ce929d0e0e4736 --file traces.json`,
		Args: cobra.MaximumNArgs(1),

		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              f.run,
	}
	fs := cmd.Flags()
	fs.StringVar(&f.jaeger, "jaeger", defaultAPI, "URL of the query API of a Jaeger or a dnstrail store")
	fs.StringVar(&f.jaeger, "store", defaultAPI, "the same as --jaeger")
	fs.StringVar(&f.tokenFile, "token-file", "", "file of the token to show to the store or Jaeger")
	fs.StringVar(&f.file, "file", "", "read OTLP JSON from this file instead, - for standard input")
	fs.StringVar(&f.socket, "socket", "", "ask the agent that listens at this Unix socket instead: its own past, "+
		"without CoreDNS's side")
	fs.StringVar(&f.ask, "ask", "", "first have the agent at this Unix socket send what it and others remember of the "+
		"lookup, though it was not sampled; its past reaches some seconds")
	fs.StringVar(&f.context, "context", "", "context of the kubeconfig whose cluster is asked")
	f.filter.register(fs)
	fs.IntVar(&f.last, "last", 1, "how many lookups that the filters take are told, the last first")
	fs.DurationVar(&f.since, "since", time.Hour, "how far back to look where not all digits of a trace ID are given")
	fs.StringVar(&f.server, "server", "",
		"of a trace ID whose socket asked several servers: the one to tell of, as observe names it")
	fs.StringVarP(&f.output, "output", "o", "text", "text, html (one page that needs nothing else) or json")
	fs.BoolVar(&f.hops, "hops", false, hopsUsage)
	cmd.MarkFlagsMutuallyExclusive(sources...)
	offer(cmd, "output", "text", "html", "json")
	f.filter.complete(cmd)
	for _, flag := range []string{"jaeger", "store", "last", "since", "server"} {
		offer(cmd, flag)
	}
	return cmd
}

func (f *explainFlags) run(cmd *cobra.Command, args []string) error {
	filter, err := f.filter.filter(cmd)
	chosen := f.filter.changed(cmd.Flags())
	switch {
	case err != nil:
		return err
	case len(args) == 1 && chosen != "":
		return fmt.Errorf("--%s goes without a trace ID", chosen)
	case len(args) == 0 && chosen == "":
		return errors.New("want a trace ID, --lost, or another filter")
	case len(args) == 0 && f.server != "":
		return errors.New("--server goes with a trace ID")
	case len(args) == 1 && cmd.Flags().Changed("last"):
		return errors.New("--last goes without a trace ID")
	case len(args) == 1 && len(args[0]) == traceIDDigits && cmd.Flags().Changed("since"):
		return errors.New("--since goes without a whole trace ID")
	case len(args) == 0 && f.ask != "":
		return errors.New("--ask goes with a trace ID")
	case f.ask != "" && (f.file != "" || f.socket != ""):
		return errors.New("--ask goes with a store or a Jaeger: that is where the spans are sent")
	case f.last < 1:
		return fmt.Errorf("--last %d: want at least 1", f.last)
	case f.since <= 0:
		return fmt.Errorf("--since %s: want more than 0", f.since)
	case !slices.Contains([]string{"text", "html", "json"}, f.output):
		return fmt.Errorf("--output %q: want text, html or json", f.output)
	case f.hops && f.output != "text":
		return fmt.Errorf("--hops goes with --output text: %s has every hop", f.output)
	case f.output == "html" && f.last > 1:
		return errors.New("--output html is a page of one lookup: leave --last out")
	}
	var found, others []*trace.Trace
	if !slices.ContainsFunc(sources, cmd.Flags().Changed) {
		store, err := reach(cmd, f.context)
		if err != nil {
			return err
		}
		if store != "" {
			f.jaeger = store
		}
	}
	if len(args) == 0 {
		found, others, err = f.search(cmd, filter)
	} else if found, others, err = f.byHand(cmd, args[0]); err == nil {
		found, err = f.asked(found)
	}
	if err != nil {
		return err
	}
	if f.output == "html" && len(found) > 1 {
		return fmt.Errorf("--output html is a page of one lookup, and trace %v has %d: choose with --server one of %s",
			found[0].ID, len(found), servers(found))
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

// Bounds of waiting for spans that were asked for by hand: programs send in batches.
const (
	byHandWait  = 12 * time.Second
	byHandAgain = 500 * time.Millisecond
)

// byHand is one, after those who saw the lookup were asked for it where --ask wants that.
func (f *explainFlags) byHand(cmd *cobra.Command, arg string) (found, others []*trace.Trace, err error) {
	if f.ask == "" {
		return f.one(cmd, arg)
	}
	digits := strings.ToLower(arg)
	if err := hindsight.CheckDigits(digits); err != nil {
		return nil, nil, err
	}
	got, err := hindsight.AskSocket(cmd.Context(), f.ask, digits)
	if err != nil {
		return nil, nil, err
	}
	if got.Found == 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: the agent at %s remembers no lookup %s\n", f.ask, digits)
	}
	seen := false
	for _, h := range got.Heard {
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: %s %s\n", h.Who, h.Said)
		seen = seen || h.Seen
	}
	for end := time.Now().Add(byHandWait); ; {
		found, others, err = f.one(cmd, arg)
		whole := err == nil && (!seen || slices.ContainsFunc(found, (*trace.Trace).Linked))
		if whole || got.Found == 0 || time.Now().After(end) {
			return found, others, err
		}
		select {
		case <-cmd.Context().Done():
			return nil, nil, cmd.Context().Err()
		case <-time.After(byHandAgain):
		}
	}
}

// one gives the trace with that ID, and others of its time where its verdict wants them.
func (f *explainFlags) one(cmd *cobra.Command, arg string) (found, others []*trace.Trace, err error) {
	if len(arg) < traceIDDigits {
		return f.prefixed(cmd, arg)
	}
	id, err := trace.ParseID(arg)
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
		i := slices.IndexFunc(others, func(t *trace.Trace) bool { return t.ID == id })
		if i < 0 {
			i = slices.IndexFunc(others, func(t *trace.Trace) bool { return t.ServedBy(id) })
		}
		if i < 0 {
			return nil, nil, fmt.Errorf("trace %v is not among the %d of %s", id, len(others), from)
		}
		return []*trace.Trace{linkedAmong(others[i], others).Whole(among(others))}, others, nil
	}
	c, err := f.api()
	if err != nil {
		return nil, nil, err
	}
	t, err := c.Trace(cmd.Context(), id)
	if err != nil {
		return nil, nil, f.unanswered(err)
	}
	t = linked(cmd.Context(), c, t)
	t = t.Whole(func(id link.TraceID) *trace.Trace {
		part, failed := c.Trace(cmd.Context(), id)
		if failed != nil && !errors.Is(failed, traceapi.ErrNotFound) {
			err = cmp.Or(err, failed)
		}
		return part
	})
	if err != nil {
		return nil, nil, f.unanswered(err)
	}
	if t.Verdict().Lost() {
		others, err = all(cmd.Context(), c, t.Start().Add(-explainAround), t.Start().Add(explainAround), explainOthers)
	}
	return []*trace.Trace{t}, others, err
}

// linked gives the trace under which CoreDNS's side of t is, where t is the other of the two traces of a lookup at an
// epoch boundary; else t.
func linked(ctx context.Context, c *traceapi.Client, t *trace.Trace) *trace.Trace {
	if t.Linked() {
		return t
	}
	for _, id := range t.Copies() {
		if other, err := c.Trace(ctx, id); err == nil && other.Linked() {
			return other
		}
	}
	return t
}

// linkedAmong is linked for a trace whose other one is among others.
func linkedAmong(t *trace.Trace, others []*trace.Trace) *trace.Trace {
	if t.Linked() {
		return t
	}
	for _, o := range others {
		if o.Linked() && slices.Contains(t.Copies(), o.ID) {
			return o
		}
	}
	return t
}

// asked gives the lookups of traces, those to one server alone where the user wants that.
func (f *explainFlags) asked(traces []*trace.Trace) ([]*trace.Trace, error) {
	all := trace.AllLookups(traces)
	if f.server == "" {
		return all, nil
	}
	var found []*trace.Trace
	for _, t := range all {
		if a := t.Asked().Address; a.String() == f.server || a.Addr().String() == f.server {
			found = append(found, t)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("--server %s: asked were %s", f.server, servers(all))
	}
	return found, nil
}

// servers names the servers that lookups of one trace were sent to.
func servers(lookups []*trace.Trace) string {
	names := make([]string, len(lookups))
	for i, t := range lookups {
		names[i] = t.Asked().String()
		if a := t.Asked().Address; a.IsValid() {
			names[i] = a.String()
		}
	}
	return strings.Join(names, ", ")
}

// traceIDDigits is how many a trace ID has, and fewestDigits how many of them tell one from others.
const (
	traceIDDigits = 32
	fewestDigits  = 4
)

// prefixed gives the trace whose ID begins with the digits, which must be one.
func (f *explainFlags) prefixed(cmd *cobra.Command, digits string) (found, others []*trace.Trace, err error) {
	digits = strings.ToLower(digits)
	if len(digits) < fewestDigits || strings.Trim(digits, "0123456789abcdef") != "" {
		return nil, nil, fmt.Errorf("%q is no trace ID: want 32 hexadecimal digits, or the first of them, at least %d",
			digits, fewestDigits)
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
		return nil, nil, fmt.Errorf("no trace ID begins with %s among the %d lookups looked through; --since looks "+
			"further back, all 32 digits find any", digits, len(others))
	case 1:
		return []*trace.Trace{linkedAmong(found[0], others).Whole(among(others))}, others, nil
	}
	return nil, nil, fmt.Errorf("%s begins %d trace IDs: %s", digits, len(ids), strings.Join(ids, ", "))
}

// search gives the lookups that the filter takes, the last first.
func (f *explainFlags) search(cmd *cobra.Command, filter *output.Filter) (found, others []*trace.Trace, err error) {
	if others, err = f.recent(cmd); err != nil {
		return nil, nil, err
	}
	if f.file == "" || cmd.Flags().Changed("since") {
		filter.Since = time.Now().Add(-f.since)
	}
	get := among(others)
	lookups := trace.AllLookups(others)
	shadows := trace.Shadows(lookups)
	known := trace.NewOthers(others)
	clients := 0
	for _, t := range lookups {
		if shadows[t] || t.OfServer() {
			continue
		}
		clients++
		t = t.Whole(get)
		if row := joined.Row(t, t.VerdictAmong(known), 0); row != nil && filter.Takes(row) {
			found = append(found, t)
		}
	}
	slices.SortFunc(found, func(a, b *trace.Trace) int { return b.Start().Compare(a.Start()) })
	of := "that the filters take"
	if f.filter.onlyLost(cmd.Flags()) {
		of = "that were lost"
	}
	switch n := min(f.last, len(found)); {
	case n == 0:
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: none of the %d lookups looked through is one of those %s\n", clients, of)
	case n < len(found):
		fmt.Fprintf(cmd.ErrOrStderr(), "dnstrail: the last %s of %d lookups %s; --last %d tells all of them\n",
			count(n), len(found), of, len(found))
	}
	return found[:min(f.last, len(found))], others, nil
}

// among gives each of the traces by its ID.
func among(traces []*trace.Trace) func(link.TraceID) *trace.Trace {
	byID := make(map[link.TraceID]*trace.Trace, len(traces))
	for _, t := range traces {
		byID[t.ID] = t
	}
	return func(id link.TraceID) *trace.Trace { return byID[id] }
}

// count writes a number of things, of which one needs none.
func count(n int) string {
	if n == 1 {
		return "one"
	}
	return strconv.Itoa(n)
}

// recent gives the traces that are searched.
func (f *explainFlags) recent(cmd *cobra.Command) ([]*trace.Trace, error) {
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
	// a clock may be ahead of this one
	traces, err := all(cmd.Context(), c, now.Add(-f.since), now.Add(time.Minute), explainSearch)
	return traces, f.unanswered(err)
}

// api gives the client of --jaeger or --store.
func (f *explainFlags) api() (*traceapi.Client, error) {
	hc, err := access.Client(f.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("--token-file: %w", err)
	}
	c, err := traceapi.NewClient(f.jaeger, hc)
	if err != nil {
		return nil, fmt.Errorf("--jaeger: %w", err)
	}
	return c, nil
}

// unanswered says what to do where nothing answers.
func (f *explainFlags) unanswered(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: no store and no Jaeger there; name yours with --store URL or --jaeger URL, or ask an "+
			"agent with --socket PATH", err)
	}
	return err
}

// past gives what the agent at the socket kept, as traces.
func (f *explainFlags) past(ctx context.Context) ([]*trace.Trace, error) {
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
func all(ctx context.Context, c *traceapi.Client, from, to time.Time, perService int) ([]*trace.Trace, error) {
	services, err := c.Services(ctx)
	if err != nil {
		return nil, err
	}
	seen := map[link.TraceID]bool{}
	var traces []*trace.Trace
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

// readTraces reads OTLP JSON, one document or several after another, as the collector's file exporter writes them; or
// an answer of Jaeger's API.
func readTraces(cmd *cobra.Command, name string) ([]*trace.Trace, error) {
	in := cmd.InOrStdin()
	if name != "-" {
		file, err := os.Open(name) // #nosec G304 -- the user's own choice
		if err != nil {
			return nil, err
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	byID := map[link.TraceID][]*trace.Span{}
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
		for _, s := range trace.FromOTLP(td) {
			if byID[s.TraceID] == nil {
				order = append(order, s.TraceID)
			}
			byID[s.TraceID] = append(byID[s.TraceID], s)
		}
	}
	traces := make([]*trace.Trace, len(order))
	for i, id := range order {
		traces[i] = trace.New(byID[id])
	}
	return traces, nil
}

func (f *explainFlags) write(w io.Writer, s explain.Story) error {
	switch f.output {
	case "html":
		return render.Page(w, s, render.Options{Location: time.Local})
	case "json":
		var doc bytes.Buffer
		enc := json.NewEncoder(&doc)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(s); err != nil {
			return err
		}
		_, err := w.Write(printable.JSON(doc.Bytes()))
		return err
	}
	o := render.Options{Location: time.Local}
	if file, ok := w.(*os.File); ok {
		o = render.For(file)
	}
	o.Hops = f.hops
	return render.Story(w, s, o)
}
