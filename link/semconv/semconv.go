// Package semconv is the one list of the attribute names that dnstrail's spans and resources carry.
//
// A name comes from OpenTelemetry's semantic conventions 1.44 where they have one, from the proposal
// open-telemetry/semantic-conventions#2432 where they do not yet, and is dnstrail.* for the rest. What is not in [All]
// is not sent: the end-to-end test holds every exported attribute against it. docs/attributes.md is generated from it.
package semconv

// Version is the version of the semantic conventions that the names follow, as in the schema URL.
const Version = "1.44.0"

// SchemaURL is the schema URL that dnstrail's resources and scopes carry.
const SchemaURL = "https://opentelemetry.io/schemas/" + Version

// The instrumentation scopes of the two programs.
const (
	ScopePlugin = "github.com/dnstrail/dnstrail/plugin"
	ScopeTracer = "github.com/dnstrail/dnstrail/tracer"
)

// The values of [FailureCause].
const (
	FailedByLimit    = "concurrency_limit"
	FailedByUpstream = "upstream"
	FailedInCache    = "cached"
)

// Origin says where a name comes from.
type Origin string

// The origins.
const (
	Standard Origin = "semantic conventions 1.44"
	Proposed Origin = "semantic-conventions#2432"
	Own      Origin = "dnstrail"
)

// Attribute describes one attribute.
type Attribute struct {
	Name   string
	Type   string // string, int, double, boolean, string[]; "template" ends in a key of the user's own
	Origin Origin
	Brief  string // what the value is, with its unit
}

// Names of the semantic conventions.
const (
	QuestionName = "dns.question.name"
	Answers      = "dns.answers"
	ErrorType    = "error.type"

	ClientAddress       = "client.address"
	ClientPort          = "client.port"
	ServerAddress       = "server.address"
	ServerPort          = "server.port"
	NetworkPeerAddress  = "network.peer.address"
	NetworkPeerPort     = "network.peer.port"
	NetworkTransport    = "network.transport"
	NetworkType         = "network.type"
	NetworkProtocolName = "network.protocol.name"

	ProcessPID            = "process.pid"
	ProcessExecutableName = "process.executable.name"
	ContainerID           = "container.id"
	HostName              = "host.name"
	HostIP                = "host.ip"

	K8SPodName         = "k8s.pod.name"
	K8SPodUID          = "k8s.pod.uid"
	K8SPodIP           = "k8s.pod.ip"
	K8SNamespaceName   = "k8s.namespace.name"
	K8SNodeName        = "k8s.node.name"
	K8SContainerName   = "k8s.container.name"
	K8SDeploymentName  = "k8s.deployment.name"
	K8SStatefulSetName = "k8s.statefulset.name"
	K8SDaemonSetName   = "k8s.daemonset.name"
	K8SReplicaSetName  = "k8s.replicaset.name"
	K8SJobName         = "k8s.job.name"
	K8SCronJobName     = "k8s.cronjob.name"
	K8SPodLabelPrefix  = "k8s.pod.label." // template

	ServiceName       = "service.name"
	ServiceNamespace  = "service.namespace"
	ServiceInstanceID = "service.instance.id"
	ServiceVersion    = "service.version"
)

// Names of the proposal.
const (
	DNSID         = "dns.id"
	QuestionType  = "dns.question.type"
	QuestionClass = "dns.question.class"
	ResponseCode  = "dns.response_code"
	Operation     = "dns.operation"
)

// dnstrail's own names. On the tracer's spans the client's pod is the resource; on the plugin's SERVER span the
// resource is the CoreDNS pod, and the client stands in dnstrail.client.*.
const (
	LinkVersion = "dnstrail.link.version"
	LinkCopy    = "dnstrail.link.copy"
	LinkEpoch   = "dnstrail.link.epoch"

	ClientKind           = "dnstrail.client.kind"
	ClientPodName        = "dnstrail.client.pod.name"
	ClientPodUID         = "dnstrail.client.pod.uid"
	ClientNamespaceName  = "dnstrail.client.namespace.name"
	ClientWorkloadKind   = "dnstrail.client.workload.kind"
	ClientWorkloadName   = "dnstrail.client.workload.name"
	ClientNodeName       = "dnstrail.client.node.name"
	ClientServiceAccount = "dnstrail.client.service_account"
	ClientLabelPrefix    = "dnstrail.client.label." // template

	PluginName         = "dnstrail.plugin.name"
	AnsweredBy         = "dnstrail.answered_by"
	FailureCause       = "dnstrail.failure.cause"
	CacheStatus        = "dnstrail.cache.status"
	ForwardDuration    = "dnstrail.forward.duration"
	UpstreamDuration   = "dnstrail.upstream.duration"
	UpstreamAttempts   = "dnstrail.upstream.attempts"
	UpstreamConnection = "dnstrail.upstream.connection"
	ResponseWritten    = "dnstrail.response.written"
	ResponseSize       = "dnstrail.response.size"
	ResponseTruncated  = "dnstrail.response.truncated"
	ResponseFlags      = "dnstrail.response.flags"
	RequestSize        = "dnstrail.request.size"
	KeepReason         = "dnstrail.keep.reason"
	AskedReason        = "dnstrail.asked.reason"
	SpansOmitted       = "dnstrail.spans.omitted"

	ResponseExtendedErrors = "dnstrail.response.extended_errors"

	VerdictWhere     = "dnstrail.verdict.where"
	VerdictCause     = "dnstrail.verdict.cause"
	VerdictText      = "dnstrail.verdict.text"
	VerdictCertainty = "dnstrail.verdict.certainty"
	VerdictEvidence  = "dnstrail.verdict.evidence"
	VerdictAnswered  = "dnstrail.verdict.answered"

	VerdictCorrection = "dnstrail.verdict.correction"

	Attempts          = "dnstrail.attempts"
	Segment           = "dnstrail.segment"
	SegmentWay        = "dnstrail.segment.way"
	SegmentTunnel     = "dnstrail.segment.tunnel"
	Hops              = "dnstrail.hops"
	HopsLost          = "dnstrail.hops.lost"
	DropReason        = "dnstrail.drop.reason"
	ConntrackOriginal = "dnstrail.conntrack.original"
	ConntrackReply    = "dnstrail.conntrack.reply"
	ConntrackStatus   = "dnstrail.conntrack.status"
	ConntrackOlder    = "dnstrail.conntrack.older"
	TranslatedAddress = "dnstrail.translated.address"
	TranslatedPort    = "dnstrail.translated.port"
	Inferred          = "dnstrail.inferred"
	Group             = "dnstrail.group"
	GroupAttempt      = "dnstrail.group.attempt"
	GroupRelation     = "dnstrail.group.relation"
	GroupSearchStep   = "dnstrail.group.search_step"
	ServerQuery       = "dnstrail.server_query"
	ServedTraceID     = "dnstrail.served.trace_id"
	ServedRelation    = "dnstrail.served.relation"
)

// KeptAsAsked is the value of [KeepReason] of a lookup that was kept because somebody asked for it.
const KeptAsAsked = "asked"

// Values of [ServedRelation].
const (
	Serves   = "serves"
	ServedBy = "served_by"
)

// The two ends of a segment, and the place of a drop. An owner is what has the network namespace for its own.
const (
	SegmentFromDevice    = "dnstrail.segment.from.device"
	SegmentFromEvent     = "dnstrail.segment.from.event"
	SegmentFromNetNS     = "dnstrail.segment.from.netns"
	SegmentFromOwnerKind = "dnstrail.segment.from.owner.kind"
	SegmentFromOwnerName = "dnstrail.segment.from.owner.name"

	SegmentToDevice    = "dnstrail.segment.to.device"
	SegmentToEvent     = "dnstrail.segment.to.event"
	SegmentToNetNS     = "dnstrail.segment.to.netns"
	SegmentToOwnerKind = "dnstrail.segment.to.owner.kind"
	SegmentToOwnerName = "dnstrail.segment.to.owner.name"

	DropDevice    = "dnstrail.drop.device"
	DropNetNS     = "dnstrail.drop.netns"
	DropOwnerKind = "dnstrail.drop.owner.kind"
	DropOwnerName = "dnstrail.drop.owner.name"
)

// Values of [SegmentWay].
const (
	WayQuery  = "query"
	WayAnswer = "answer"
	WayTurn   = "turn"
)

// Values of the attributes that end in owner.kind.
const (
	OwnerNode    = "node"
	OwnerHost    = "host"
	OwnerPod     = "pod"
	OwnerNamed   = "named"
	OwnerProcess = "process"
)

// What a store adds to each resource that it receives: who sent it. It believes nobody else of these.
const (
	SenderAddress = "dnstrail.sender.address"
	SenderName    = "dnstrail.sender.name"
	SenderTime    = "dnstrail.sender.time"
)

// All is every attribute that dnstrail sends. An attribute that is a template stands here with its prefix.
var All = []Attribute{
	{QuestionName, "string", Standard, "The name asked, as sent, in presentation form."},
	{Answers, "string[]", Standard, "The addresses and names of the answer section."},
	{ErrorType, "string", Standard, "Why the lookup failed: the rcode in words, `timeout`, or the verdict's cause."},
	{ClientAddress, "string", Standard, "The address the query came from."},
	{ClientPort, "int", Standard, "The port the query came from."},
	{ServerAddress, "string", Standard, "The address the client asked: usually the service's."},
	{ServerPort, "int", Standard, "The port the client asked."},
	{NetworkPeerAddress, "string", Standard, "The upstream's address, on an upstream attempt; the address that really " +
		"answered, on a CLIENT span."},
	{NetworkPeerPort, "int", Standard, "The port beside network.peer.address."},
	{NetworkTransport, "string", Standard, "`udp` or `tcp`."},
	{NetworkType, "string", Standard, "`ipv4` or `ipv6`."},
	{NetworkProtocolName, "string", Standard, "`dns`, or `dot`, `doh`, `doq`, `grpc` where CoreDNS was asked that way."},
	{ProcessPID, "int", Standard, "The process that asked, in the host's PID namespace."},
	{ProcessExecutableName, "string", Standard, "The name of the process that asked."},
	{ContainerID, "string", Standard, "The container that asked, from its cgroup."},
	{HostName, "string", Standard, "The host the tracer or CoreDNS runs on."},
	{HostIP, "string[]", Standard, "The addresses at which CoreDNS's pod, or its host, can be reached, " +
		"without loopback and link-local ones."},
	{K8SPodName, "string", Standard, "The pod."},
	{K8SPodUID, "string", Standard, "The pod's UID."},
	{K8SPodIP, "string", Standard, "The pod's address."},
	{K8SNamespaceName, "string", Standard, "The pod's namespace."},
	{K8SNodeName, "string", Standard, "The pod's node."},
	{K8SContainerName, "string", Standard, "The container's name in the pod."},
	{K8SDeploymentName, "string", Standard, "The Deployment that owns the pod."},
	{K8SStatefulSetName, "string", Standard, "The StatefulSet that owns the pod."},
	{K8SDaemonSetName, "string", Standard, "The DaemonSet that owns the pod."},
	{K8SReplicaSetName, "string", Standard, "The ReplicaSet that owns the pod, where no Deployment does."},
	{K8SJobName, "string", Standard, "The Job that owns the pod."},
	{K8SCronJobName, "string", Standard, "The CronJob that owns the pod."},
	{K8SPodLabelPrefix, "template", Standard, "A chosen label of the pod."},
	{ServiceName, "string", Standard, "The client's workload (tracer), `coredns` (plugin)."},
	{ServiceNamespace, "string", Standard, "The client's namespace (tracer)."},
	{ServiceInstanceID, "string", Standard, "The instance: the pod's UID."},
	{ServiceVersion, "string", Standard, "The version of the program."},
	{DNSID, "int", Proposed, "The ID of the DNS header."},
	{QuestionType, "string", Proposed, "The type asked: `A`, `AAAA`, ..."},
	{QuestionClass, "string", Proposed, "The class asked, where it is not `IN`."},
	{ResponseCode, "string", Proposed, "The rcode on the wire in words: `NOERROR`, `NXDOMAIN`, `RCODE99`, ..."},
	{Operation, "string", Proposed, "The opcode in words, where it is not `QUERY`: `NOTIFY`, `UPDATE`, `OPCODE9`, ..."},
	{LinkVersion, "int", Own, "The version of the trace link that derived the IDs."},
	{LinkCopy, "boolean", Own, "True on a span sent a second time because the lookup lies at an epoch boundary, " +
		"and on a link between the CLIENT spans of both."},
	{LinkEpoch, "int", Own, "The epoch of the trace ID, in units of 8 s since 1970."},
	{ClientKind, "string", Own, "What the client is: `pod`, `node`, `nodelocaldns`, `external`, `unknown`."},
	{ClientPodName, "string", Own, "The client's pod."},
	{ClientPodUID, "string", Own, "The UID of the client's pod."},
	{ClientNamespaceName, "string", Own, "The namespace of the client's pod."},
	{ClientWorkloadKind, "string", Own, "The kind of the client's workload: `Deployment`, ..."},
	{ClientWorkloadName, "string", Own, "The name of the client's workload."},
	{ClientNodeName, "string", Own, "The client's node."},
	{ClientServiceAccount, "string", Own, "The service account of the client's pod."},
	{ClientLabelPrefix, "template", Own, "A chosen label of the client's pod."},
	{PluginName, "string", Own, "The CoreDNS plugin that the span is of."},
	{AnsweredBy, "string", Own, "The CoreDNS plugin that wrote the answer, or that ended the query without one."},
	{FailureCause, "string", Own, "What CoreDNS's failure comes from, where CoreDNS knows: `concurrency_limit` " +
		"(forward took no more queries), `upstream` (no upstream answered well), `cached` (a failure that cache kept). " +
		"On a span link: to the query by whose failure the cache was filled."},
	{CacheStatus, "string", Own, "`hit`, `miss`, `stale`, `prefetch`; absent where no cache was passed."},
	{ForwardDuration, "double", Own, "Time in the plugins that forward, in seconds."},
	{UpstreamDuration, "double", Own, "Time spent waiting for upstreams, all attempts added, in seconds."},
	{UpstreamAttempts, "int", Own, "How many upstream attempts were made."},
	{UpstreamConnection, "string", Own, "`new` or `pooled`."},
	{ResponseWritten, "boolean", Own, "False where the query was dropped without an answer."},
	{ResponseSize, "int", Own, "Bytes of the answer."},
	{ResponseTruncated, "boolean", Own, "True where the answer carried TC."},
	{ResponseFlags, "string", Own, "The flags of the answer, as dig writes them: `qr rd ra`."},
	{RequestSize, "int", Own, "Bytes of the query."},
	{KeepReason, "string", Own, "Why CoreDNS kept the trace: `ratio`, `parent`, `client`, `name`, `error`, `slow`, " +
		"`asked` where somebody else asked for it, or `refresh` for a background refresh. " +
		"Of an agent's spans, only `asked`."},
	{AskedReason, "string", Own, "Why somebody asked for the lookup: `lost`, `failed`, `slow`, `rule`, or `hand`."},
	{SpansOmitted, "int", Own, "How many spans of the query were left out, because it had too many."},
	{ResponseExtendedErrors, "string[]", Own, "The extended DNS errors of the answer (RFC 8914)."},
	{VerdictWhere, "string", Own, "The stage where the lookup ended: `answered`, `client`, `pod-link`, `node`, " +
		"`service`, `between-nodes`, `coredns-socket`, `coredns`, `upstream`, `return-path`."},
	{VerdictCause, "string", Own, "Why, as one of a list of short words."},
	{VerdictText, "string", Own, "Where and why, as a sentence."},
	{VerdictCertainty, "string", Own, "`certain` where it was seen, `inferred` where it was concluded."},
	{VerdictEvidence, "string[]", Own, "What the verdict rests on."},
	{VerdictAnswered, "boolean", Own, "True where the client got an answer, of whatever rcode; of an agent elsewhere, " +
		"where the answer left towards the client."},
	{VerdictCorrection, "boolean", Own, "True on the span whose verdict takes the place of the CLIENT span's: an " +
		"answer came after the lookup had been sent as lost."},
	{Attempts, "int", Own, "How many times the client sent the query."},
	{Segment, "string", Own, "The stage that a segment spans, in the words of dnstrail.verdict.where."},
	{SegmentWay, "string", Own, "Whose way a segment is of: `query`, `answer`, or `turn`, from the query to its " +
		"answer, with the server between."},
	{SegmentFromDevice, "string", Own, "The device at which a segment starts, `socket` of a read; absent of a packet " +
		"that had none."},
	{SegmentFromEvent, "string", Own, "What happened where a segment starts: `out`, `in`, `read`, `drop`."},
	{SegmentFromNetNS, "int", Own, "The network namespace in which a segment starts, by its inode number."},
	{SegmentFromOwnerKind, "string", Own, "What has that network namespace for its own: `node`, `host` (this one, " +
		"whose node's name is not known), `pod`, `named` (by ip netns), `process`; absent where it is not known, and of an " +
		"answered lookup."},
	{SegmentFromOwnerName, "string", Own, "The owner's name: a pod's as namespace/pod."},
	{SegmentToDevice, "string", Own, "The device at which a segment ends, `socket` of a read; absent of a packet that " +
		"had none."},
	{SegmentToEvent, "string", Own, "What happened where a segment ends: `out`, `in`, `read`, `drop`."},
	{SegmentToNetNS, "int", Own, "The network namespace in which a segment ends, by its inode number."},
	{SegmentToOwnerKind, "string", Own, "What has that network namespace for its own: `node`, `host` (this one, whose " +
		"node's name is not known), `pod`, `named` (by ip netns), `process`; absent where it is not known, and of an " +
		"answered lookup."},
	{SegmentToOwnerName, "string", Own, "The owner's name: a pod's as namespace/pod."},
	{SegmentTunnel, "boolean", Own, "At the segment's end the packet is inside a tunnel's (VXLAN, GENEVE, IP in IP): " +
		"firewalls see the tunnel's addresses and port there."},
	{Hops, "string[]", Own, "Every hop seen, in order of time."},
	{HopsLost, "int", Own, "Kernel events that the tracer lost while the lookup was in flight: hops may be missing."},
	{DropReason, "string", Own, "The running kernel's name for why it dropped the packet."},
	{DropDevice, "string", Own, "The device at which the kernel dropped the packet that ended the lookup; absent of a " +
		"packet that had none."},
	{DropNetNS, "int", Own, "The network namespace in which it did, by its inode number."},
	{DropOwnerKind, "string", Own, "What has that network namespace for its own: see dnstrail.segment.to.owner.kind."},
	{DropOwnerName, "string", Own, "The owner's name: a pod's as namespace/pod."},
	{ConntrackOriginal, "string", Own, "The connection-tracking entry's original tuple."},
	{ConntrackReply, "string", Own, "The connection-tracking entry's reply tuple: what the translation made of it."},
	{ConntrackStatus, "string", Own, "The entry's status: `UNREPLIED`, `SEEN_REPLY`, `ASSURED`, ..."},
	{ConntrackOlder, "boolean", Own, "True where the entry that translated the query was made before the lookup " +
		"began, for an earlier query from the same port."},
	{TranslatedAddress, "string", Own, "The address that the query really went to: the one from which the " +
		"connection-tracking entry expects the reply."},
	{TranslatedPort, "int", Own, "The port beside dnstrail.translated.address."},
	{Inferred, "boolean", Own, "True on a span whose place in the trace was concluded, not seen: a server's upstream " +
		"query."},
	{Group, "string", Own, "The trace ID of the first of the lookups that belong together: A and AAAA, the names of a " +
		"search path, tries from several ports, TCP after a truncated answer."},
	{GroupAttempt, "int", Own, "Which try this lookup is, of those that asked the same from other ports or at other " +
		"servers; absent on the first."},
	{GroupRelation, "string", Own, "On a span link, what the linked lookup is to this one: `pair`, `retry`, `search`, " +
		"`truncated`."},
	{GroupSearchStep, "int", Own, "How many names of the search path were asked before this one; absent on the first."},
	{ServerQuery, "boolean", Own, "True on the CLIENT span of a query that a DNS server made for itself, " +
		"to answer what it was asked or to see that its upstream is alive: no client's lookup."},
	{ServedTraceID, "string", Own, "On the CLIENT span of a server's own query: " +
		"the trace of the lookup that it was made to answer (inferred), where that is known."},
	{ServedRelation, "string", Own, "On a span link between a server's own query and the lookup that it was " +
		"made to answer: `serves`, to the lookup's CLIENT span; `served_by`, to the query's."},
	{SenderAddress, "string", Own, "On a resource, added by a store: the address that its spans came from."},
	{SenderName, "string", Own, "On a resource, added by a store: the subject of the credential with which they came; " +
		"absent without one."},
	{SenderTime, "int", Own, "On a resource, added by a store: when they came, in ns since 1970."},
}
