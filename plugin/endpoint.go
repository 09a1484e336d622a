package dnstrail

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/coredns/coremain"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/dnstrail/dnstrail/link/semconv"
)

// Version is the version of the plugin, as its spans carry it. The build sets it.
var Version = "dev"

// exportConfig says where spans go. What the Corefile does not say is taken from the OTEL_* variables of the environment.
type exportConfig struct {
	service  string // "" if the Corefile does not say
	endpoint string // host:port; "" if the Corefile does not say
	path     string // of OTLP over HTTP
	protocol otlpProtocol
	insecure bool
	headers  map[string]string
	none     bool // spans are not wanted
	nowhere  bool // nobody said where spans are to go
	batching
}

// otlpProtocol is a form of OTLP.
type otlpProtocol uint8

const (
	otlpGRPC otlpProtocol = iota
	otlpHTTP
)

// setEndpoint reads an endpoint property.
func (x *exportConfig) setEndpoint(s string) error {
	if s == "none" {
		x.none = true
		return nil
	}
	const want = "want none, or a URL such as grpc://collector:4317, grpcs://..., http://collector:4318 or https://..."
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("'%s' is not an endpoint; %s", s, want)
	}
	port := "4317"
	switch u.Scheme {
	case "grpc", "grpcs":
		x.protocol = otlpGRPC
		x.insecure = u.Scheme == "grpc"
		if u.Path != "" && u.Path != "/" {
			return fmt.Errorf("'%s' has a path, which gRPC has not; %s", s, want)
		}
	case "http", "https":
		x.protocol = otlpHTTP
		x.insecure = u.Scheme == "http"
		x.path = "/v1/traces"
		if u.Path != "" && u.Path != "/" {
			x.path = u.Path
		}
		port = "4318"
	default:
		return fmt.Errorf("'%s' has an unknown scheme; %s", s, want)
	}
	if u.Hostname() == "" {
		return fmt.Errorf("'%s' has no host; %s", s, want)
	}
	x.endpoint = u.Host
	if u.Port() == "" {
		x.endpoint += ":" + port
	}
	return nil
}

// firstEnv gives the value of the first of some environment variables that is set, and its name.
func firstEnv(names ...string) (value, name string) {
	for _, n := range names {
		if v := strings.TrimSpace(os.Getenv(n)); v != "" {
			return v, n
		}
	}
	return "", ""
}

// complete takes from the environment what the Corefile does not say.
func (x *exportConfig) complete() error {
	var err error
	number := func(name string, def int) int {
		v, _ := firstEnv(name)
		if v == "" {
			return def
		}
		n, e := strconv.Atoi(v)
		if e != nil || n < 1 {
			err = fmt.Errorf("environment variable %s: '%s' is not a number of at least 1", name, v)
			return def
		}
		return n
	}
	x.batching = batching{
		queue:   number("OTEL_BSP_MAX_QUEUE_SIZE", 8192),
		batch:   number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 2048),
		delay:   time.Duration(number("OTEL_BSP_SCHEDULE_DELAY", 1000)) * time.Millisecond,
		timeout: time.Duration(number("OTEL_BSP_EXPORT_TIMEOUT", 30000)) * time.Millisecond,
	}
	if err != nil {
		return err
	}
	if disabled, _ := firstEnv("OTEL_SDK_DISABLED"); strings.EqualFold(disabled, "true") {
		x.none = true
	}
	if x.none || x.endpoint != "" {
		return nil
	}
	if e, _ := firstEnv("OTEL_TRACES_EXPORTER"); e == "none" {
		x.none = true
		return nil
	} else if e != "" && e != "otlp" {
		return fmt.Errorf("environment variable OTEL_TRACES_EXPORTER: '%s' is not known; want otlp or none", e)
	}
	if e, _ := firstEnv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"); e == "" {
		x.nowhere = true // OpenTelemetry's default is localhost, where in a pod nobody listens
		return nil
	}
	switch p, name := firstEnv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); p {
	case "", "http/protobuf":
		x.protocol = otlpHTTP
	case "grpc":
		x.protocol = otlpGRPC
	default:
		return fmt.Errorf("environment variable %s: '%s' is not known; want grpc or http/protobuf", name, p)
	}
	return nil
}

// key tells apart what needs an exporter of its own.
func (x *exportConfig) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %q %q %t %q %+v", x.protocol, x.endpoint, x.path, x.insecure, x.service, x.batching)
	for _, k := range slices.Sorted(maps.Keys(x.headers)) {
		fmt.Fprintf(&b, " %q=%q", k, x.headers[k])
	}
	return b.String()
}

// open makes OpenTelemetry's client and starts it. It connects later, and again and again.
func (x *exportConfig) open(ctx context.Context) (otlptrace.Client, error) {
	c := x.newClient()
	if err := c.Start(ctx); err != nil {
		return nil, fmt.Errorf("starting the OTLP exporter: %w", err)
	}
	return c, nil
}

func (x *exportConfig) newClient() otlptrace.Client {
	if x.protocol == otlpHTTP {
		opts := []otlptracehttp.Option{otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf)}
		if x.endpoint != "" {
			opts = append(opts, otlptracehttp.WithEndpoint(x.endpoint), otlptracehttp.WithURLPath(x.path))
			if x.insecure {
				opts = append(opts, otlptracehttp.WithInsecure())
			} else {
				opts = append(opts, otlptracehttp.WithTLSClientConfig(&tls.Config{MinVersion: tls.VersionTLS12}))
			}
		}
		if x.headers != nil {
			opts = append(opts, otlptracehttp.WithHeaders(x.headers))
		}
		return otlptracehttp.NewClient(opts...)
	}
	opts := []otlptracegrpc.Option{otlptracegrpc.WithDialOption(grpc.WithConnectParams(grpc.ConnectParams{
		// gRPC's own upper bound is two minutes: too long for a collector that is back.
		Backoff:           backoff.Config{BaseDelay: 500 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
		MinConnectTimeout: 5 * time.Second,
	}))}
	if x.endpoint != "" {
		opts = append(opts, otlptracegrpc.WithEndpoint(x.endpoint))
		if x.insecure {
			opts = append(opts, otlptracegrpc.WithInsecure())
		} else {
			opts = append(opts, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})))
		}
	}
	if x.headers != nil {
		opts = append(opts, otlptracegrpc.WithHeaders(x.headers))
	}
	return otlptracegrpc.NewClient(opts...)
}

// namespaceFile is where Kubernetes writes a pod's namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// resource describes this CoreDNS: by what the environment says (OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME, and POD_NAME, POD_NAMESPACE, POD_UID and
// NODE_NAME, which a manifest fills from the downward API), and otherwise by what can be seen from inside a pod.
func (x *exportConfig) resource(ctx context.Context) *resourcepb.Resource {
	values := map[attribute.Key]string{
		semconv.ServiceName:      "coredns",
		semconv.ServiceVersion:   coremain.CoreVersion,
		semconv.K8SPodName:       os.Getenv("POD_NAME"),
		semconv.K8SNamespaceName: os.Getenv("POD_NAMESPACE"),
		semconv.K8SPodUID:        os.Getenv("POD_UID"),
		semconv.K8SNodeName:      os.Getenv("NODE_NAME"),
	}
	host, _ := os.Hostname()
	values[semconv.HostName] = host
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		if values[semconv.K8SPodName] == "" {
			values[semconv.K8SPodName] = host // of a pod in the host's network it is the node's: such a one sets POD_NAME
		}
		if values[semconv.K8SNamespaceName] == "" {
			ns, _ := os.ReadFile(namespaceFile)
			values[semconv.K8SNamespaceName] = strings.TrimSpace(string(ns))
		}
	}
	values[semconv.ServiceInstanceID] = values[semconv.K8SPodUID]
	env, err := resource.New(ctx, resource.WithFromEnv())
	if err != nil {
		log.Warningf("reading OTEL_RESOURCE_ATTRIBUTES: %v", err)
	}
	for _, kv := range env.Attributes() {
		values[kv.Key] = kv.Value.String()
	}
	if x.service != "" {
		values[semconv.ServiceName] = x.service
	}
	res := &resourcepb.Resource{}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		if v := values[k]; v != "" {
			res.Attributes = append(res.Attributes, &commonpb.KeyValue{Key: string(k), Value: &commonpb.AnyValue{
				Value: &commonpb.AnyValue_StringValue{StringValue: strings.ToValidUTF8(v, "\uFFFD")},
			}})
		}
	}
	return res
}
