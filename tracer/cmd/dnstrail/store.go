package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/memory"
	"github.com/dnstrail/dnstrail/tracer/page"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// maxQueries is how many searches are under way at a time: each looks through all that is kept.
const maxQueries = 4

type storeFlags struct {
	grpc, http, api string
	limits          store.Limits
	memory          memory.Budget

	otlpTokens, apiTokens string
	otlpAudience          string
	reviews               bool
	apiHosts              []string

	certificate, key, clientCA string
}

func newStoreCommand() *cobra.Command {
	var flags storeFlags
	c := &cobra.Command{
		Use:   "store",
		Short: "Keep the last traces in memory: OTLP in, Jaeger's query API out",
		Long: `store receives OTLP over gRPC and HTTP, joins what CoreDNS and the tracers send to one trace a lookup, and
keeps the last of them in memory. It answers GET /api/v3/traces, /api/v3/traces/TRACE_ID and /api/v3/services
as a Jaeger does, in OTLP JSON, and GET /stats with its own figures; GET / is a page to look at, of where
lookups spend their time and are lost, who asks, and the lookups; and it gives "dnstrail observe --store" the
lookups of all nodes, live, one row each. It holds what fits into memory and nothing else: keep traces for
longer in a Jaeger, to which a collector can send them as well.

Who may read them sees what everybody asks for. So queries are answered on loopback (kubectl port-forward
reaches it), or to those who show a token: of a file (--api-token-file), or one that the cluster's API server
knows and allows to "get" /dnstrail/* (--reviews; a nonResourceURL).

Who may send them can say what becomes of lookups. With --otlp-token-file, --otlp-audience, --reviews or
--tls-client-ca each sender needs a credential, and one of a node or pod sends spans of that node or pod
alone; without, each span tells the address that it came from. With --otlp-audience senders show a token of
their service account that is meant for this audience (a projected volume; agent and plugin read it where
DNSTRAIL_OTLP_TOKEN_FILE says), and need the right to "create" /v1/traces. A token file has a line for each
token:

  TOKEN  node/NAME              an agent: spans of that node
  TOKEN  pod/NAMESPACE/NAME     a CoreDNS: spans of that pod
  TOKEN  any/NAME               a collector; a reader`,
		Example: `  dnstrail store
  dnstrail store --grpc 127.0.0.1:14317 --http "" --spans 1000000
  dnstrail store --grpc :4317 --tls-cert tls.crt --tls-key tls.key --tls-client-ca ca.crt
  dnstrail store --api :16686 --api-token-file readers
  dnstrail observe --store http://127.0.0.1:16686
  dnstrail explain --lost --jaeger http://127.0.0.1:16686`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if flags.limits.Spans <= 0 {
				return fmt.Errorf("--spans %d: want more than 0", flags.limits.Spans)
			}
			return flags.run(cmd)
		},
	}
	f := c.Flags()
	f.StringVar(&flags.grpc, "grpc", "127.0.0.1:4317", "address to receive OTLP over gRPC at; empty for none")
	f.StringVar(&flags.http, "http", "127.0.0.1:4318", "address to receive OTLP over HTTP at; empty for none")
	f.StringVar(&flags.api, "api", "127.0.0.1:16686", "address to answer queries at; empty for none")
	f.IntVar(&flags.limits.Spans, "spans", store.DefaultSpans, "how many spans are kept at most")
	f.Var(&flags.memory, "memory", "memory to stay within, half of it for spans, a sixteenth for the page; what the "+
		"cgroup allows if not given, "+
		"or else 256MiB")
	f.StringVar(&flags.otlpTokens, "otlp-token-file", "", "file of the tokens of those who may send; an "+
		"OTEL_EXPORTER_OTLP_HEADERS sends one")
	f.StringVar(&flags.apiTokens, "api-token-file", "", "file of the tokens of those who may read")
	f.StringVar(&flags.otlpAudience, "otlp-audience", "", "ask the API server of the cluster about the tokens of "+
		"those who send, which must be for this audience")
	f.BoolVar(&flags.reviews, "reviews", false, "ask the API server of the cluster about the tokens of both "+
		"(TokenReview, SubjectAccessReview)")
	f.StringArrayVar(&flags.apiHosts, "api-host", nil, "a further name that the query API is asked by, where no token "+
		"is needed (repeatable)")
	f.StringVar(&flags.certificate, "tls-cert", "", "certificate of the store, for all that listens")
	f.StringVar(&flags.key, "tls-key", "", "its key")
	f.StringVar(&flags.clientCA, "tls-client-ca", "", "certificates that issue those of senders; a common name is a "+
		"subject as in a token file")
	return c
}

// receiver gives the receiver of OTLP as the flags say.
func (f *storeFlags) receiver(s *store.Store, reviews access.Checker) (*store.Receiver, error) {
	r := &store.Receiver{Store: s, Gauge: &memory.Gauge{Budget: f.memory}}
	var tokens access.Checker
	if f.otlpTokens != "" {
		t, err := access.OpenTokens(f.otlpTokens)
		if err != nil {
			return nil, fmt.Errorf("--otlp-token-file: %w", err)
		}
		tokens = t
	}
	r.Checker = access.First(tokens, reviews)
	var err error
	if r.TLS, err = access.TLS(f.certificate, f.key, f.clientCA); err != nil {
		return nil, fmt.Errorf("--tls-cert, --tls-key, --tls-client-ca: %w", err)
	}
	return r, nil
}

// handler gives the query API as the flags say, for a listener at l.
func (f *storeFlags) handler(s *store.Store, reviews access.Checker, l net.Listener) (http.Handler, error) {
	h := joined.Handler(s, page.Handler(&joined.Rows{Store: s}, s, int(f.memory.Share(1, 16)),
		access.AtOnce(maxQueries, traceapi.Handler(s))))
	var tokens access.Checker
	if f.apiTokens != "" {
		t, err := access.OpenTokens(f.apiTokens)
		if err != nil {
			return nil, fmt.Errorf("--api-token-file: %w", err)
		}
		tokens = t
	}
	checker := access.First(tokens, reviews)
	switch {
	case checker != nil:
		return access.SameOrigin(access.Handler(checker, h)), nil
	case !access.Loopback(l.Addr()):
		return nil, fmt.Errorf("--api %s: others than this machine can reach it and would read what everybody asks for: "+
			"give --api-token-file or --reviews, or listen on 127.0.0.1 (kubectl port-forward reaches that)", f.api)
	}
	return access.Local(f.apiHosts, h), nil
}

// inCluster gives a checker that asks the API server of the cluster that the program runs in.
// audience is whom tokens must be meant for; "" is the API server itself.
func inCluster(audience string) (access.Checker, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &access.Reviews{Client: client, Audience: audience}, nil
}

func (f *storeFlags) run(cmd *cobra.Command) error {
	if f.grpc == "" && f.http == "" {
		return errors.New("--grpc and --http are both empty: nothing can be received")
	}
	if f.memory == 0 && memory.Allowed() == 0 { // nobody bounds it but the number of spans
		f.memory = max(memory.Default, memory.Budget(int64(f.limits.Spans)*bytesASpan))
	}
	f.memory = f.memory.Or()
	f.memory.Hold(0)
	f.limits.Bytes = f.memory.Share(1, 2)
	s := store.New(f.limits)
	var reviews, senders access.Checker
	var err error
	if f.reviews {
		if reviews, err = inCluster(""); err != nil {
			return fmt.Errorf("--reviews: %w", err)
		}
		senders = reviews
	}
	if f.otlpAudience != "" {
		if senders, err = inCluster(f.otlpAudience); err != nil {
			return fmt.Errorf("--otlp-audience: %w", err)
		}
	}
	receiver, err := f.receiver(s, senders)
	if err != nil {
		return err
	}
	var open []net.Listener
	ran := false
	defer func() {
		for _, l := range open {
			if !ran {
				_ = l.Close()
			}
		}
	}()
	listen := func(flag, addr string) (net.Listener, error) {
		if addr == "" {
			return nil, nil
		}
		l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", flag, err)
		}
		open = append(open, l)
		return l, nil
	}
	grpcListener, err := listen("grpc", f.grpc)
	if err != nil {
		return err
	}
	httpListener, err := listen("http", f.http)
	if err != nil {
		return err
	}
	apiListener, err := listen("api", f.api)
	if err != nil {
		return err
	}
	var api http.Handler
	if apiListener != nil {
		if api, err = f.handler(s, reviews, apiListener); err != nil {
			return err
		}
	}
	ran = true
	out := cmd.ErrOrStderr()
	for _, l := range []struct {
		what string
		l    net.Listener
	}{{"OTLP over gRPC", grpcListener}, {"OTLP over HTTP", httpListener}, {"queries", apiListener}} {
		if l.l != nil {
			fmt.Fprintf(out, "%s at %v\n", l.what, l.l.Addr())
		}
	}
	if open := receiver.Checker == nil && f.clientCA == ""; open && (exposed(grpcListener) || exposed(httpListener)) {
		fmt.Fprintln(out, "dnstrail: whoever reaches OTLP may send spans, and say what becomes of lookups: "+
			"--otlp-token-file, --otlp-audience, --reviews or --tls-client-ca ask for a credential")
	}

	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	var wg sync.WaitGroup
	var apiErr error
	if apiListener != nil {
		wg.Go(func() {
			defer cancel()
			l := access.Listener(apiListener)
			if receiver.TLS != nil {
				l = tls.NewListener(l, withoutClients(receiver.TLS))
			}
			apiErr = access.Serve(ctx, l, api)
		})
	}
	err = receiver.Serve(ctx, grpcListener, httpListener)
	cancel()
	wg.Wait()
	stats := s.Stats()
	fmt.Fprintf(out, "received %d spans; kept %d traces of %d spans; evicted %d traces, refused %d spans\n",
		stats.SpansReceived, stats.Traces, stats.Spans, stats.TracesEvicted, stats.SpansRefused+stats.SpansForeign)
	return errors.Join(err, apiErr)
}

// bytesASpan is how much memory is set aside for each span where only their number is given, twice what one takes.
const bytesASpan = 5 << 10

func exposed(l net.Listener) bool { return l != nil && !access.Loopback(l.Addr()) }

// withoutClients gives c for those who read, who have tokens and no certificates.
func withoutClients(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.ClientAuth, c.ClientCAs = tls.NoClientCert, nil
	return c
}
