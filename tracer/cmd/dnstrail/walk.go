package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/collector/pdata/ptrace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/export"
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/podns"
	"github.com/dnstrail/dnstrail/tracer/render"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// How long after its end a walk waits for the last events, and for CoreDNS's spans in a Jaeger.
const (
	walkGrace  = 2 * time.Second
	walkJoin   = 10 * time.Second
	walkSettle = 300 * time.Millisecond
	// walkClock is how far the time of a kernel event may be off this process's.
	walkClock = 10 * time.Millisecond
)

type walkFlags struct {
	watch   watchFlags
	query   queryFlags
	from    string
	jaeger  string
	hops    bool
	here    bool
	image   string
	context string // of the kubeconfig; see reach
}

func newWalkCommand() *cobra.Command {
	var f walkFlags
	cmd := &cobra.Command{
		Use:   "walk NAME [TYPE]",
		Short: "Send one lookup, as a pod if you like, and print its walk hop by hop as it happens",
		Long: `walk sends one query from a pod's network namespace and prints every place at which its packet and
the answer's are seen: every device of every network namespace of this host, translations, drops,
the DNS server's read. Then it draws the whole. It is the walk that is otherwise done with a tcpdump
on five interfaces. The name is asked as it stands: the pod's search list is not applied.

Where a kubeconfig names a cluster ($KUBECONFIG, ~/.kube/config), the query is sent in that cluster:
in the pod of --from, by an ephemeral container that stays in the pod, ended, as Kubernetes has it;
or in a pod made for that and deleted. What CoreDNS and the agents of all nodes saw of it is taken
from the cluster's store and drawn. It needs the rights to patch pods/ephemeralcontainers (or to
create pods in kube-system) and to create pods/portforward. --here walks on this host, as root.`,
		Example: `  dnstrail walk kubernetes.default.svc.cluster.local
  dnstrail walk api.stripe.com AAAA --from shop/cart-7f9c5d4b8-x2x7k
  dnstrail walk kubernetes.default.svc.cluster.local --here   # this host, as root
  dnstrail walk example.com --from 10.244.1.10 --server 10.96.0.10 --tcp
  dnstrail walk example.com --jaeger http://jaeger-query:16686   # with CoreDNS's own side`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 {
				return fmt.Errorf("want a name, and a type if it is not A: dnstrail walk NAME [TYPE]; got %d arguments", len(args))
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return commonTypes, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: f.run,
	}
	fs := cmd.Flags()
	f.watch.register(fs)
	if err := fs.MarkHidden("give-up"); err != nil { // --timeout says it
		panic(err)
	}
	fs.StringVar(&f.from, "from", "", "as whom: NAMESPACE/POD, POD, an address or pid:PID; this host if empty")
	f.query.register(fs)
	fs.StringVar(&f.jaeger, "jaeger", "", "URL of a Jaeger or a dnstrail store: CoreDNS's own spans are drawn, too")
	fs.BoolVar(&f.hops, "hops", false, hopsUsage)
	fs.BoolVar(&f.here, "here", false, "walk on this host, even where a kubeconfig names a cluster")
	fs.StringVar(&f.image, "image", "", "in a cluster: dnstrail's image; the agents' if not given")
	fs.StringVar(&f.context, "context", "", "context of the kubeconfig whose cluster is walked in")
	return cmd
}

// walk is one lookup under way.
type walk struct {
	place   podns.Place
	server  netip.AddrPort
	query   *dns.Msg
	qname   []byte // in wire form
	tcp     bool
	local   netip.AddrPort
	sent    time.Time
	names   *podns.Names
	servers map[netip.AddrPort]bool // the one asked, and what its address was translated to
	out     *render.Walk
	results *store.Store
	trace   link.TraceID
	final   chan struct{} // closed when the tracer has its last word
	done    bool
	outErr  error

	// What the last line said, for what the next need not say.
	first   int64 // time of the first packet seen
	flow    flow
	process hop.Process
}

// flow is from whom to whom a packet goes, and whether it is of our own query.
type flow struct {
	src, dst netip.AddrPort
	ours     bool
}

func (f *walkFlags) run(cmd *cobra.Command, args []string) error {
	if f.query.timeout <= 0 {
		return fmt.Errorf("--timeout %s: want more than 0", f.query.timeout)
	}
	if far, err := f.far(cmd); err != nil || far != nil {
		if err == nil {
			err = far.run(cmd, args)
		}
		return err
	}
	f.watch.giveUp = f.query.timeout
	o, closeAll, err := f.watch.options()
	if err != nil {
		return err
	}
	defer closeAll()
	var api *traceapi.Client
	if f.jaeger != "" {
		if api, err = traceapi.NewClient(f.jaeger, nil); err != nil {
			return fmt.Errorf("--jaeger: %w", err)
		}
	}
	w, err := f.prepare(args, o.Index)
	if err != nil {
		return err
	}
	options := render.Options{Location: time.Local}
	if file, ok := cmd.OutOrStdout().(*os.File); ok {
		options = render.For(file)
	}
	w.out = render.NewWalk(cmd.OutOrStdout(), options)

	exporter, err := export.New(toStore{w.results}, export.Options{
		Sample: link.NewRatio(1), Guard: f.watch.guard, Node: f.watch.node, Host: hostname(), Owner: o.Namespace,
		Index: o.Index, Version: version(),
	})
	if err != nil {
		return err
	}
	o.Packet = w.packet
	o.Result = func(r pipeline.Result) { w.result(r, exporter) }
	p, err := pipeline.Open(o)
	if err != nil {
		return err
	}
	defer p.Close()

	if err := w.out.Line(fmt.Sprintf("%s %s, as %s, of %s", w.query.Question[0].Name,
		dns.TypeToString[w.query.Question[0].Qtype], w.place.Name, w.server)); err != nil {
		return err
	}
	sendErr := w.watch(cmd.Context(), p, f.query.timeout)
	err = errors.Join(exporter.Close(context.WithoutCancel(cmd.Context())), w.outErr)
	if err != nil {
		return err
	}
	var nerr net.Error
	if sendErr != nil && (!errors.As(sendErr, &nerr) || !nerr.Timeout()) {
		fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: the query:", sendErr)
	}
	t := w.results.Trace(w.trace)
	if t == nil {
		footer(cmd.ErrOrStderr(), p.Stats())
		return fmt.Errorf("nothing was seen of the query: is port %d among --port, and the pod's namespace among --netns?",
			w.server.Port())
	}
	if api != nil {
		t = join(cmd.Context(), api, t)
	}
	if _, err := fmt.Fprintln(cmd.OutOrStdout()); err != nil {
		return err
	}
	s := explain.Tell(t, nil)
	options.Hops = f.hops
	if err := render.Trace(cmd.OutOrStdout(), t, options); err != nil {
		return err
	}
	if err := render.Advice(cmd.OutOrStdout(), s, options); err != nil {
		return err
	}
	footer(cmd.ErrOrStderr(), p.Stats())
	return nil
}

// prepare finds the pod and the server, and makes the query.
func (f *walkFlags) prepare(args []string, index *identity.Index) (*walk, error) {
	w := &walk{servers: map[netip.AddrPort]bool{}, tcp: f.query.tcp, results: store.New(store.Limits{}),
		final: make(chan struct{})}
	var err error
	if w.query, err = query(args); err != nil {
		return nil, err
	}
	if w.qname, err = link.AppendQName(nil, args[0]); err != nil {
		return nil, err
	}
	if f.from == "" {
		w.place, err = podns.Self()
	} else {
		w.place, err = podns.Find(f.from, index)
	}
	if err != nil {
		return nil, fmt.Errorf("--from: %w", err)
	}
	if w.server, err = serverAddr(f.query.server, w.place); err != nil {
		return nil, err
	}
	if w.names, err = podns.NewNames(index, f.watch.node); err != nil {
		return nil, err
	}
	return w, nil
}

// serverAddr reads --server, or else the place's resolv.conf.
func serverAddr(server string, p podns.Place) (netip.AddrPort, error) {
	if server == "" {
		conf, err := p.ResolvConf()
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("resolv.conf of %s: %w", p.Name, err)
		}
		if len(conf.Servers) == 0 {
			return netip.AddrPort{}, fmt.Errorf("resolv.conf of %s names no server: give --server", p.Name)
		}
		server = conf.Servers[0]
	}
	if a, err := netip.ParseAddr(server); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	ap, err := netip.ParseAddrPort(server)
	if err != nil {
		return ap, fmt.Errorf("--server %q: want an address, or address:port", server)
	}
	return ap, nil
}

// watch runs the tracer, sends the query when it watches, and ends when the tracer has had its last word. The error is
// the exchange's.
func (w *walk) watch(ctx context.Context, p *pipeline.Pipeline, timeout time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.sent = time.Now()
	conn, err := w.dial(ctx, timeout)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	w.local = netip.MustParseAddrPort(conn.LocalAddr().String())
	sent := make(chan error, 1)
	go func() {
		defer cancel()
		err := w.exchange(conn, timeout)
		sent <- err
		select {
		case <-w.final:
			time.Sleep(walkSettle) // for the upstream queries' own last words
		case <-time.After(walkGrace):
		case <-ctx.Done():
		}
	}()
	if err := p.Run(ctx); err != nil {
		return err
	}
	select {
	case err := <-sent:
		return err
	case <-time.After(walkGrace):
		return ctx.Err() // interrupted with the query under way
	}
}

func (w *walk) dial(ctx context.Context, timeout time.Duration) (conn net.Conn, err error) {
	network := "udp"
	if w.tcp {
		network = "tcp"
	}
	err = w.place.Do(func() error {
		conn, err = (&net.Dialer{Timeout: timeout, Resolver: &net.Resolver{PreferGo: true}}).DialContext(
			ctx, network, w.server.String())
		return err
	})
	return conn, err
}

func (w *walk) exchange(conn net.Conn, timeout time.Duration) error {
	c := dns.Client{Timeout: timeout, UDPSize: 1232}
	if w.tcp {
		c.Net = "tcp"
	}
	_, _, err := c.ExchangeWithConn(w.query, &dns.Conn{Conn: conn})
	return err
}

// packet prints a packet of ours, or one with our question that a server sends on.
func (w *walk) packet(p *hop.Packet) {
	src, dst := p.Src.AddrPort(), p.Dst.AddrPort()
	ours := src.Port() == w.local.Port() || dst.Port() == w.local.Port()
	question := p.HasHead && bytes.EqualFold(p.Head.Name, w.qname) && p.Head.Type == w.query.Question[0].Qtype
	if p.HasHead {
		ours = question && p.Head.ID == w.query.Id
	}
	if ours && dst.Port() != w.local.Port() {
		w.servers[dst] = true
	}
	if !ours && (w.servers[src] || w.servers[dst]) {
		return // somebody else asks the same
	}
	if !ours && !question || w.outErr != nil || p.Time < w.sent.UnixNano()-int64(walkClock) ||
		(p.Kind == hop.Drop && p.Reason.Harmless()) {
		return
	}
	if w.first == 0 {
		w.first = p.Time
	}
	s := render.Seen{
		At:        time.Duration(p.Time - w.first),
		Namespace: fmt.Sprintf("netns %d", p.NetNS), Other: !ours, Failed: p.Kind == hop.Drop,
		Answer: p.Answer || ours && dst.Port() == w.local.Port(), // a segment of TCP does not say
		Place:  strings.TrimSpace(p.Device() + " " + p.Kind.String()),
	}
	if o, ok := w.names.Of(p.NetNS); ok {
		s.Namespace = o.Short()
	}
	if p.NetNS == w.place.NetNS {
		s.Namespace = w.place.Name
	}
	if _, pod, ok := strings.Cut(s.Namespace, "/"); ok {
		s.Namespace = pod // its namespace stands below
	}
	if p.Kind == hop.Read {
		s.Place = "socket read"
	}
	// What is as on the line before is not said again.
	if flow := (flow{src, dst, ours}); flow != w.flow && p.Kind != hop.Read {
		s.Flow = src.String() + " > " + dst.String()
		if w.flow.ours == ours && (w.flow.src == src) != (w.flow.dst == dst) {
			s.Flow = "now " + s.Flow // translated
		}
		w.flow = flow
	}
	if p.Process != nil && *p.Process != w.process {
		s.Note, w.process = fmt.Sprintf("%s[%d]", p.Process.Name, p.Process.PID), *p.Process
	}
	if p.Kind == hop.Drop {
		_, s.Note = verdict.DropCause(p.Reason.String())
	}
	w.outErr = w.out.Seen(s)
}

// result keeps what the tracer has to say of our lookup, and of those that a server made for it.
func (w *walk) result(r pipeline.Result, e *export.Exporter) {
	l := r.Lookup
	switch {
	case l.Client.AddrPort() == w.local && l.ID == w.query.Id:
		if !l.Final {
			return
		}
		e.Add(l, r.Verdict, r.Judge, r.Origin)
		key := l.Key()
		if epochs := l.Epochs(nil, link.DefaultGuard); len(epochs) > 0 {
			w.trace = key.TraceID(epochs[0])
		}
		if !w.done {
			w.done = true
			close(w.final)
		}
	case l.Serves != nil && l.Final && bytes.EqualFold(l.Name, w.qname):
		e.Add(l, r.Verdict, r.Judge, r.Origin)
	}
}

// join gives t with what the query API has of it besides, as soon as CoreDNS's side has come there.
func join(ctx context.Context, api *traceapi.Client, t *trace.Trace) *trace.Trace {
	ctx, cancel := context.WithTimeout(ctx, walkJoin)
	defer cancel()
	for {
		if theirs, err := api.Trace(ctx, t.ID); err == nil && theirs.Server() != nil {
			spans := t.Spans
			for _, s := range theirs.Spans {
				// an agent on this node saw what we saw
				if s.Scope == nil || t.Client() == nil || s.Scope.Name != t.Client().Scope.Name {
					spans = append(spans, s)
				}
			}
			return trace.New(spans)
		}
		select {
		case <-ctx.Done():
			return t
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// toStore is an OTLP client whose collector is a store in this process.
type toStore struct{ store *store.Store }

func (toStore) Start(context.Context) error { return nil }
func (toStore) Stop(context.Context) error  { return nil }

func (s toStore) UploadTraces(_ context.Context, spans []*tracepb.ResourceSpans) error {
	b, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return err
	}
	td, err := (&ptrace.ProtoUnmarshaler{}).UnmarshalTraces(b)
	if err != nil {
		return err
	}
	s.store.Receive(td, access.Caller{})
	return nil
}
