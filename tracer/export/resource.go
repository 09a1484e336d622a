package export

import (
	"sort"
	"strings"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/origin"
)

// workloadAttribute is where the name of a workload of each kind goes.
var workloadAttribute = map[string]string{
	"Deployment":  semconv.K8SDeploymentName,
	"StatefulSet": semconv.K8SStatefulSetName,
	"DaemonSet":   semconv.K8SDaemonSetName,
	"ReplicaSet":  semconv.K8SReplicaSetName,
	"Job":         semconv.K8SJobName,
	"CronJob":     semconv.K8SCronJobName,
}

// resource gives the resource of a client: its pod; or the tracer's own, for spans of a client out of sight.
func (e *Exporter) resource(k resourceKey) *resourcepb.Resource {
	if r := e.resources[k.origin]; r != nil {
		return r
	}
	r := &resourcepb.Resource{Attributes: e.resourceAttributes(k.origin)}
	e.resources[k.origin] = r
	return r
}

func (e *Exporter) resourceAttributes(o *origin.Origin) []*commonpb.KeyValue {
	var a []*commonpb.KeyValue
	put := func(key, value string) {
		if value != "" {
			a = append(a, &commonpb.KeyValue{Key: strings.ToValidUTF8(key, "\uFFFD"), Value: &commonpb.AnyValue{
				Value: &commonpb.AnyValue_StringValue{StringValue: strings.ToValidUTF8(value, "\uFFFD")},
			}})
		}
	}
	if o == nil {
		put(semconv.ServiceName, "dnstrail")
		put(semconv.ServiceVersion, e.o.Version)
		put(semconv.K8SNodeName, e.o.Node)
		put(semconv.HostName, e.o.Host)
		return a
	}
	put(semconv.ServiceName, e.serviceName(o))
	put(semconv.ServiceNamespace, o.Namespace)
	put(semconv.ServiceInstanceID, o.PodUID)
	put(semconv.K8SNamespaceName, o.Namespace)
	put(semconv.K8SPodName, o.Pod)
	put(semconv.K8SPodUID, o.PodUID)
	switch a := o.Addr; {
	case o.Kind != identity.Pod:
	case o.OwnAddr.IsValid():
		put(semconv.K8SPodIP, o.OwnAddr.String())
	case a.IsValid() && !a.IsUnspecified() && !a.IsLoopback():
		put(semconv.K8SPodIP, a.String())
	}
	if key := workloadAttribute[o.WorkloadKind]; key != "" {
		put(key, o.Workload)
	}
	node := o.Node
	if node == "" {
		node = e.o.Node
	}
	put(semconv.K8SNodeName, node)
	put(semconv.ContainerID, o.ContainerID)
	put(semconv.HostName, e.o.Host)
	keys := make([]string, 0, len(o.Labels))
	for k := range o.Labels {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		put(semconv.K8SPodLabelPrefix+k, o.Labels[k])
	}
	return a
}

// serviceName is the workload; outside Kubernetes the process, else the host.
func (e *Exporter) serviceName(o *origin.Origin) string {
	for _, s := range []string{o.Workload, o.Pod, o.Process, e.o.Host} {
		if s != "" {
			return s
		}
	}
	return "unknown_service"
}
