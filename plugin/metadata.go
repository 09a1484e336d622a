package dnstrail

import (
	"context"
	"slices"

	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/request"
)

// Metadata implements metadata.Provider. Who asks is known at once, so that view can go by it; what became of the query
// is empty until it is known: plugins such as log and dnstap read it when the query is over.
func (d *Dnstrail) Metadata(ctx context.Context, state request.Request) context.Context {
	q := d.metadataOf(ctx, state)
	if q == nil {
		return ctx
	}
	for _, l := range [...]struct {
		name string
		f    metadata.Func
	}{
		{"trace-id", q.traceID.String},
		{"client-kind", func() string { return q.client.Kind().String() }},
		{"namespace", func() string { return q.client.Namespace() }},
		{"pod", func() string { return q.client.Pod() }},
		{"workload", func() string { return q.client.Workload() }},
		{"node", func() string { return q.client.Node() }},
		{"answered-by", func() string { return q.soFar().endedIn }},
		{"cache", func() string { return q.soFar().cache }},
		{"upstream", q.lastUpstream},
	} {
		metadata.SetValueFunc(ctx, pluginName+"/"+l.name, l.f)
	}
	if q.started.Load() {
		return ctx
	}
	return context.WithValue(ctx, queryKey{}, q)
}

// metadataOf gives the query that metadata is asked for; nil if there is none.
func (d *Dnstrail) metadataOf(ctx context.Context, state request.Request) (q *query) {
	defer func() {
		if p := recover(); p != nil {
			ownPanic("collecting metadata", p)
			q = nil
		}
	}()
	if known, ok := ctx.Value(queryKey{}).(*query); ok && known.started.Load() {
		return known // a look-up of a plugin: who asks is whoever asked first
	}
	if state.Req == nil || state.W == nil || len(state.Req.Question) != 1 {
		return nil
	}
	return d.begin(ctx, state.W, state.Req)
}

// soFar says how the query stands, for plugins that are behind us and so before the end.
func (q *query) soFar() result {
	res := result{endedIn: q.answeredBy}
	if q.messages == 0 && q.started.Load() && !q.closed.Load() {
		res.endedIn = q.at()
	}
	res.cache = q.cacheStatus(&res)
	return res
}

// lastUpstream gives the upstream that was asked last, as forward names it; "" if none was.
func (q *query) lastUpstream() string {
	rec := q.rec.Load()
	if rec == nil {
		return ""
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for _, n := range slices.Backward(rec.nodes) {
		if n.kind == attemptNode {
			return n.att.peer
		}
	}
	return ""
}
