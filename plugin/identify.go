package dnstrail

import (
	"context"
	"net/netip"
	"strings"

	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/pkg/cache"
	"github.com/zeebo/xxh3"

	"github.com/dnstrail/dnstrail/identity"
	"github.com/dnstrail/dnstrail/link"
)

// maxMetadataClients is how many clients are remembered that plugin kubernetes told: a pod has several queries, and is
// made once.
const maxMetadataClients = 10000

// metadataClients are the clients that plugin kubernetes told, by a hash of what it told.
var metadataClients = cache.New[*identity.Client](maxMetadataClients)

// identify tells who asks.
func (d *Dnstrail) identify(ctx context.Context, addr netip.Addr) *identity.Client {
	if d.config.ids.source == identityMetadata {
		return fromMetadata(ctx, d.config.ids.labels)
	}
	return d.index.Lookup(addr)
}

// identifyLate tells who asks once all metadata is there, of a query that was begun for its own: plugin kubernetes is
// asked after us.
func (q *query) identifyLate(ctx context.Context) {
	d := q.d
	if d.config.ids.source != identityMetadata {
		return
	}
	q.client = d.identify(ctx, q.addr.Addr())
	if q.reason == notKept {
		q.reason = d.keep.atStart(q, true, 0) // by the rules about clients; a trace's own are settled
		if q.reason != notKept {
			q.size = q.request.Len()
			q.flags = link.FlagSampled
		}
	}
}

// fromMetadata makes a client of what plugin kubernetes says in its metadata. It knows no workload, no UID and no node;
// and of the pods in a node's host network it names any, as they share the address.
func fromMetadata(ctx context.Context, labels []string) *identity.Client {
	get := func(label string) string {
		if f := metadata.ValueFunc(ctx, "kubernetes/"+label); f != nil {
			return f()
		}
		return ""
	}
	d := identity.Description{Kind: identity.Pod, Namespace: get("client-namespace"), Pod: get("client-pod-name")}
	if d.Pod == "" {
		return (*identity.Index)(nil).Lookup(netip.Addr{})
	}
	var key strings.Builder
	key.WriteString(d.Namespace + "\x00" + d.Pod)
	for _, l := range labels {
		if v := get("client-label/" + l); v != "" {
			if d.Labels == nil {
				d.Labels = make(map[string]string, len(labels))
			}
			d.Labels[l] = v
			key.WriteString("\x00" + l + "\x00" + v)
		}
	}
	hash := xxh3.HashString(key.String())
	if c, ok := metadataClients.Get(hash); ok && c.Pod() == d.Pod && c.Namespace() == d.Namespace {
		return c
	}
	c := identity.NewClient(d)
	metadataClients.Add(hash, c)
	return c
}
