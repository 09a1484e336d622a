// Package otlpenv reads where spans go and how they are batched: one grammar and the same defaults for the CoreDNS
// plugin and the agent.
//
// A URL says where spans go: grpc:// and grpcs:// (default port 4317), http:// and https:// (default port 4318, default
// path /v1/traces); the forms that end in s use TLS. OpenTelemetry's environment variables are read where no URL is
// given, with one addition: where no variable names the protocol, port 4317 of an http:// or https:// URL without a
// path means gRPC, since nothing else is spoken there. Where nobody says where spans go, they go nowhere: the default
// of OpenTelemetry is this host, on which in a pod nobody listens.
//
// Headers, certificates, compression and time-outs stay with OpenTelemetry's own exporters, which read their variables.
// [TokenFile] is our own: a token that changes.
package otlpenv

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Protocol is a form of OTLP.
type Protocol uint8

// The protocols.
const (
	GRPC Protocol = iota
	HTTP
)

// String gives the protocol as OTEL_EXPORTER_OTLP_PROTOCOL names it.
func (p Protocol) String() string {
	if p == HTTP {
		return "http/protobuf"
	}
	return "grpc"
}

// The ports that are OTLP's own, and the path of traces over HTTP.
const (
	portGRPC   = "4317"
	portHTTP   = "4318"
	pathTraces = "/v1/traces"
)

// None is what is given in place of a URL by whoever wants no spans.
const None = "none"

// Want describes the URLs that [Parse] takes.
const Want = "want none, or a URL such as grpc://collector:4317, grpcs://..., http://collector:4318 or https://..."

// Target is where spans go. The zero value is nowhere, since nobody said.
type Target struct {
	Protocol Protocol
	Host     string // with its port; "" is nowhere
	Path     string // of HTTP
	TLS      bool
	Off      bool // spans are not wanted
	// Warning says what in the URL contradicts itself, and how it was taken; "" if nothing does.
	Warning string
}

// Sends says whether spans go anywhere.
func (t Target) Sends() bool { return t.Host != "" && !t.Off }

// String gives the target as a URL that [Parse] takes for the same; "" is nowhere.
func (t Target) String() string {
	switch {
	case t.Off:
		return None
	case t.Host == "":
		return ""
	}
	scheme := map[Protocol]string{GRPC: "grpc", HTTP: "http"}[t.Protocol]
	if t.TLS {
		scheme += "s"
	}
	return scheme + "://" + t.Host + t.Path
}

// Parse reads a URL, or [None].
func Parse(s string) (Target, error) {
	if s == None {
		return Target{Off: true}, nil
	}
	return parse(s, "", true)
}

// parse reads a URL. protocol is the one that is named beside it, "" if none is. whole says that the path, if there is
// one, is that of traces, and not what it is below.
func parse(s, protocol string, whole bool) (Target, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return Target{}, fmt.Errorf("'%s' is not an endpoint; %s", s, Want)
	}
	if u.Hostname() == "" {
		return Target{}, fmt.Errorf("'%s' has no host; %s", s, Want)
	}
	path := strings.TrimSuffix(u.Path, "/")
	t := Target{Host: u.Host}
	byPort := ""
	switch u.Scheme {
	case "grpc", "grpcs":
		t.Protocol, t.TLS = GRPC, u.Scheme == "grpcs"
		if protocol != "" && protocol != GRPC.String() {
			return Target{}, fmt.Errorf("'%s' is of gRPC, and the protocol is %s", s, protocol)
		}
	case "http", "https":
		t.Protocol, t.TLS = HTTP, u.Scheme == "https"
		switch {
		case protocol == GRPC.String():
			t.Protocol = GRPC
		case protocol == "" && path == "" && u.Port() == portGRPC:
			t.Protocol = GRPC
			byPort = fmt.Sprintf("; taken for grpc%s://%s", strings.TrimPrefix(u.Scheme, "http"), u.Host)
		}
	default:
		return Target{}, fmt.Errorf("'%s' has an unknown scheme; %s", s, Want)
	}
	if t.Protocol == GRPC && path != "" {
		return Target{}, fmt.Errorf("'%s' has a path, which gRPC has not; %s", s, Want)
	}
	own, other := portGRPC, portHTTP
	if t.Protocol == HTTP {
		own, other = portHTTP, portGRPC
		if t.Path = path; !whole || path == "" {
			t.Path += pathTraces
		}
	}
	switch u.Port() {
	case "":
		t.Host = net.JoinHostPort(u.Hostname(), own)
	case other:
		t.Warning = fmt.Sprintf("'%s' is OTLP over %s at port %s, where OTLP over %s is usual: spans may not arrive",
			s, word(t.Protocol), other, word(1-t.Protocol))
	}
	if byPort != "" {
		t.Warning = fmt.Sprintf("'%s' is a URL of HTTP with the port of OTLP over gRPC%s", s, byPort)
	}
	return t, nil
}

func word(p Protocol) string {
	if p == HTTP {
		return "HTTP"
	}
	return "gRPC"
}

// first gives the value of the first of some environment variables that is set, and its name.
func first(names ...string) (value, name string) {
	for _, n := range names {
		if v := strings.TrimSpace(os.Getenv(n)); v != "" {
			return v, n
		}
	}
	return "", ""
}

// Resolve gives where spans go: to the URL if it is not empty, else where the OTEL_* variables of the environment say.
// With OTEL_SDK_DISABLED they go nowhere in any case.
func Resolve(endpoint string) (Target, error) {
	if disabled, _ := first("OTEL_SDK_DISABLED"); strings.EqualFold(disabled, "true") {
		return Target{Off: true}, nil
	}
	if endpoint != "" {
		return Parse(endpoint)
	}
	switch e, _ := first("OTEL_TRACES_EXPORTER"); e {
	case "", "otlp":
	case "none":
		return Target{Off: true}, nil
	default:
		return Target{}, fmt.Errorf("environment variable OTEL_TRACES_EXPORTER: '%s' is not known; want otlp or none", e)
	}
	const general, traces = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	protocol, of := first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
	switch protocol {
	case "", GRPC.String(), HTTP.String():
	default:
		return Target{}, fmt.Errorf("environment variable %s: '%s' is not known; want grpc or http/protobuf", of, protocol)
	}
	value, name := first(traces, general)
	if value == "" {
		return Target{}, nil
	}
	if strings.Contains(value, "$(") {
		// Kubernetes leaves a reference as it stands where a pod starts before what it refers to. It must not keep DNS down.
		return Target{Warning: fmt.Sprintf("%s is '%s', of which nobody has set the variable: spans go nowhere", name,
			value)}, nil
	}
	t, err := parse(value, protocol, name == traces)
	if err != nil {
		return Target{}, fmt.Errorf("environment variable %s: %w", name, err)
	}
	return t, nil
}

var errNowhere = errors.New("no OTLP client: spans go nowhere")

// NewClient makes OpenTelemetry's client for the target, which is to send. headers, where not nil, go before those of
// the environment. It connects later, and again and again.
func (t Target) NewClient(headers map[string]string) (otlptrace.Client, error) {
	if !t.Sends() {
		return nil, errNowhere
	}
	u := "http://"
	if t.TLS {
		u = "https://"
	}
	u += t.Host + t.Path
	bearer := tokenOf(headers)
	if t.Protocol == HTTP {
		open := func(headers map[string]string) otlptrace.Client {
			o := []otlptracehttp.Option{
				otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf), otlptracehttp.WithEndpointURL(u),
			}
			if headers != nil {
				o = append(o, otlptracehttp.WithHeaders(headers))
			}
			return otlptracehttp.NewClient(o...)
		}
		if bearer == nil {
			return open(headers), nil
		}
		return &renewed{token: bearer, open: func(authorization string) otlptrace.Client {
			return open(withAuthorization(headers, authorization))
		}}, nil
	}
	o := []otlptracegrpc.Option{
		otlptracegrpc.WithEndpointURL(u),
		otlptracegrpc.WithDialOption(grpc.WithConnectParams(grpc.ConnectParams{
			// gRPC's own upper bound is two minutes: too long for a collector that is back.
			Backoff: backoff.Config{BaseDelay: 500 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2,
				MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		})),
		// A collector is an address or a name. To ask DNS for a service's configuration besides costs look-ups over the whole
		// search list.
		otlptracegrpc.WithDialOption(grpc.WithDisableServiceConfig()),
	}
	if headers != nil {
		o = append(o, otlptracegrpc.WithHeaders(headers))
	}
	if bearer != nil {
		o = append(o, otlptracegrpc.WithDialOption(grpc.WithPerRPCCredentials(bearer)))
	}
	return otlptracegrpc.NewClient(o...), nil
}

// MaxBatchBytes is the size in bytes at which a batch is sent though it has fewer spans than it may: gRPC servers take
// 4 MiB if they are not told otherwise.
const MaxBatchBytes = 2 << 20

// Batching are the sizes and times of OpenTelemetry's batch span processor.
type Batching struct {
	Queue   int           // spans that may wait
	Batch   int           // spans in a batch, about: what belongs together is not divided
	Delay   time.Duration // how long a span waits for its batch to fill
	Timeout time.Duration // how long sending a batch may take
}

// ReadBatching reads the OTEL_BSP_* variables. queue is the default of spans that may wait; the others' are 2048 spans,
// 1 s and 30 s.
func ReadBatching(queue int) (Batching, error) {
	var err error
	number := func(name string, def int) int {
		v, _ := first(name)
		if v == "" {
			return def
		}
		n, e := strconv.Atoi(v)
		if e != nil || n < 1 {
			err = cmp.Or(err, fmt.Errorf("environment variable %s: '%s' is not a number of at least 1", name, v))
			return def
		}
		return n
	}
	b := Batching{
		Queue:   number("OTEL_BSP_MAX_QUEUE_SIZE", queue),
		Batch:   number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 2048),
		Delay:   time.Duration(number("OTEL_BSP_SCHEDULE_DELAY", 1000)) * time.Millisecond,
		Timeout: time.Duration(number("OTEL_BSP_EXPORT_TIMEOUT", 30000)) * time.Millisecond,
	}
	return b, err
}
