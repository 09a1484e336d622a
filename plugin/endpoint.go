package dnstrail

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/coredns/coredns/coremain"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"

	"github.com/dnstrail/dnstrail/link/otlpenv"
	"github.com/dnstrail/dnstrail/link/semconv"
)

// Version is the version of the plugin, as its spans carry it. The build sets it.
var Version = "dev"

// exportConfig says where spans go. What the Corefile does not say is taken from the OTEL_* variables of the
// environment.
type exportConfig struct {
	service  string // "" if the Corefile does not say
	endpoint string // a URL, or otlpenv.None; "" if the Corefile does not say
	headers  map[string]string
	target   otlpenv.Target
	otlpenv.Batching
}

// defaultQueue is how many spans may wait where the environment does not say.
const defaultQueue = 8192

// setEndpoint reads an endpoint property.
func (x *exportConfig) setEndpoint(s string) error {
	_, err := otlpenv.Parse(s)
	x.endpoint = s
	return err
}

// complete takes from the environment what the Corefile does not say.
func (x *exportConfig) complete() (err error) {
	if x.Batching, err = otlpenv.ReadBatching(defaultQueue); err != nil {
		return err
	}
	x.target, err = otlpenv.Resolve(x.endpoint)
	return err
}

// key tells apart what needs an exporter of its own.
func (x *exportConfig) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %+v", x.target.String(), x.service, x.Batching)
	for _, k := range slices.Sorted(maps.Keys(x.headers)) {
		fmt.Fprintf(&b, " %q=%q", k, x.headers[k])
	}
	return b.String()
}

// open makes OpenTelemetry's client and starts it. It connects later, and again and again.
func (x *exportConfig) open(ctx context.Context) (otlptrace.Client, error) {
	c, err := x.target.NewClient(x.headers)
	if err == nil {
		err = c.Start(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("starting the OTLP exporter: %w", err)
	}
	return c, nil
}

// namespaceFile is where Kubernetes writes a pod's namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// resource describes this CoreDNS: by what the environment says (OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME, and
// POD_NAME, POD_NAMESPACE, POD_UID and NODE_NAME, which a manifest fills from the downward API), and otherwise by what
// can be seen from inside a pod.
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
	if list := ownAddresses(); len(list) > 0 {
		res.Attributes = append(res.Attributes, &commonpb.KeyValue{Key: semconv.HostIP, Value: &commonpb.AnyValue{
			Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: list}},
		}})
	}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		if v := values[k]; v != "" {
			res.Attributes = append(res.Attributes, &commonpb.KeyValue{Key: string(k), Value: &commonpb.AnyValue{
				Value: &commonpb.AnyValue_StringValue{StringValue: strings.ToValidUTF8(v, "\uFFFD")},
			}})
		}
	}
	return res
}

// maxOwnAddresses bounds the addresses that a resource lists: a node with kube-proxy in IPVS mode has one for each
// service.
const maxOwnAddresses = 32

// ownAddresses gives the addresses at which this CoreDNS can be asked, but for loopback and link-local ones of IPv6,
// which many have: by them a trace's reader knows which of several servers it is.
func ownAddresses() (list []*commonpb.AnyValue) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		log.Warningf("reading the addresses of this host: %v", err)
	}
	for _, a := range addresses {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil || prefix.Addr().IsLoopback() || prefix.Addr().Is6() && prefix.Addr().IsLinkLocalUnicast() {
			continue
		}
		if len(list) == maxOwnAddresses {
			break
		}
		list = append(list, &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: prefix.Addr().String()}})
	}
	return list
}
