package trace

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Bounds of [Trace.Lookups]: what is received may say anything. A resolver has three servers.
const (
	maxLookups   = 16
	maxAddresses = 64 // of one server
)

// Key tells one lookup from all others: a trace ID may have several, each to a server of its own.
type Key struct {
	ID link.TraceID
	// Server is the address that the client asked; invalid where no agent saw the client.
	Server netip.AddrPort
	// Pod is the pod of the server, where nobody knows what the client asked.
	Pod string
}

// Key gives what tells t's lookup from others. Of a trace of several lookups it is that of the first.
func (t *Trace) Key() Key {
	if c := t.Client(); c != nil {
		return Key{ID: t.ID, Server: asked(c)}
	}
	k := Key{ID: t.ID}
	if s := t.Server(); s != nil {
		k.Pod = ServerName(s)
	}
	return k
}

// Lookups parts a trace into its lookups, by start: one, or several where a socket asked several servers the same with
// one ID. Each is a trace of its own, of which the client's span has the derived ID and no parent, and holds what
// belongs to that lookup: what the client's agent says of it, and what others saw where that server is. What may belong
// to several belongs to each of them.
func (t *Trace) Lookups() []*Trace {
	clients := t.clients()
	servers := t.serversByName()
	if len(clients) <= 1 && len(servers) <= 1 && (len(clients) == 0 || clients[0].SpanID == t.ID.ClientSpanID()) {
		return []*Trace{t}
	}
	p := &parting{t: t, owners: map[link.SpanID]owners{}}
	switch {
	case len(clients) > 0:
		for _, c := range clients {
			p.lookups = append(p.lookups, &oneOf{client: c, addresses: []netip.AddrPort{asked(c), c.Translated()}})
		}
	default:
		for _, s := range servers {
			p.lookups = append(p.lookups, &oneOf{server: ServerName(s), addresses: addressesOf(s)})
		}
	}
	p.part()
	p.inherit()
	found := make([]*Trace, 0, len(p.lookups))
	for i, l := range p.lookups {
		if spans := p.of(i, l.client); len(spans) > 0 {
			found = append(found, join(t.ID, spans))
		}
	}
	return found
}

// AllLookups gives the lookups of all traces, in their order.
func AllLookups(traces []*Trace) []*Trace {
	all := make([]*Trace, 0, len(traces))
	for _, t := range traces {
		all = append(all, t.Lookups()...)
	}
	return all
}

// asked gives the address to which the client's span says that it sent its query.
func asked(client *Span) netip.AddrPort {
	return endpoint(client, semconv.ServerAddress, semconv.ServerPort)
}

// clients gives the CLIENT spans, one of each server asked, by start. Of those of one server the one that knows most
// counts; the span with the derived ID comes before one beside it.
func (t *Trace) clients() []*Span {
	derived, home := t.ID.ClientSpanID(), t.home()
	var found []*Span
	for _, s := range t.Spans {
		if s.Kind != KindClient || !s.From(semconv.ScopeTracer) || s.SpanID != derived && s.Parent != derived || !t.has(s) {
			continue
		}
		i := slices.IndexFunc(found, func(f *Span) bool {
			return f.SpanID == s.SpanID || asked(f) == asked(s)
		})
		switch {
		case i < 0:
			if len(found) < maxLookups || s.SpanID == derived {
				found = append(found, s)
			}
		case (s.SpanID == derived) != (found[i].SpanID == derived):
			if s.SpanID == derived {
				found[i] = s
			}
		case better(s, found[i], home):
			found[i] = s
		}
	}
	return found
}

// ServerName names the CoreDNS that made a SERVER span, as [Key] does; "" if it does not say.
func ServerName(server *Span) string {
	return cmp.Or(server.String(semconv.K8SPodUID), server.String(semconv.K8SPodName), server.String(semconv.HostName))
}

// serversByName gives the first SERVER span of each CoreDNS that the client itself asked, by start.
func (t *Trace) serversByName() []*Span {
	var found []*Span
	for _, s := range t.topServers() {
		if len(found) == maxLookups {
			break
		}
		if !slices.ContainsFunc(found, func(f *Span) bool { return ServerName(f) == ServerName(s) }) {
			found = append(found, s)
		}
	}
	return found
}

// topServers gives the SERVER spans of the client's own query: not those of one CoreDNS that another asked.
func (t *Trace) topServers() []*Span {
	if len(t.servers) < 2 {
		return t.servers
	}
	plugins := make(map[link.SpanID]bool, len(t.Spans))
	for _, s := range t.Spans {
		if s.From(semconv.ScopePlugin) {
			plugins[s.SpanID] = true
		}
	}
	var found []*Span
	for _, s := range t.servers {
		if !plugins[s.Parent] {
			found = append(found, s)
		}
	}
	return found
}

// addressesOf gives the addresses that a CoreDNS says it has, without ports.
func addressesOf(server *Span) []netip.AddrPort {
	var found []netip.AddrPort
	if server.Resource == nil {
		return nil
	}
	list := server.Resource.Attributes.Strings(semconv.HostIP)
	for _, text := range append(list, server.Resource.Attributes.String(semconv.K8SPodIP)) {
		if a, err := netip.ParseAddr(text); err == nil && len(found) < maxAddresses {
			found = append(found, netip.AddrPortFrom(a.Unmap(), 0))
		}
	}
	return found
}

// oneOf is one of the lookups of a trace.
type oneOf struct {
	client    *Span            // nil where no agent saw it
	server    string           // its name, where there is no client
	addresses []netip.AddrPort // at which the server was asked, on either side of a translation; port 0: any
}

// learn notes a further address of the server.
func (l *oneOf) learn(a netip.AddrPort) {
	if len(l.addresses) < maxAddresses && !l.at(a) {
		l.addresses = append(l.addresses, a)
	}
}

func (l *oneOf) at(a netip.AddrPort) bool {
	return slices.ContainsFunc(l.addresses, func(have netip.AddrPort) bool {
		return have.IsValid() && have.Addr() == a.Addr() && (have.Port() == a.Port() || have.Port() == 0 || a.Port() == 0)
	})
}

// owners are the lookups that a span belongs to, a bit each.
type owners uint32

// parting finds out which spans of a trace belong to which of its lookups.
type parting struct {
	t       *Trace
	lookups []*oneOf
	owners  map[link.SpanID]owners // of spans at the top, and then of those below them
}

func (p *parting) all() owners { return 1<<len(p.lookups) - 1 }

// at gives the lookups whose server has one of the addresses.
func (p *parting) at(addresses ...netip.AddrPort) (found owners) {
	for i, l := range p.lookups {
		if slices.ContainsFunc(addresses, func(a netip.AddrPort) bool { return a.IsValid() && l.at(a) }) {
			found |= 1 << i
		}
	}
	return found
}

func (p *parting) part() {
	derived := p.t.ID.ClientSpanID()
	var segments, servers, upstreams []*Span
	top := map[*Span]bool{}
	for _, s := range p.t.topServers() {
		top[s] = true
	}
	for _, s := range p.t.Spans {
		switch {
		case s.Kind == KindClient && s.From(semconv.ScopeTracer) && (s.SpanID == derived || s.Parent == derived):
			p.owners[s.SpanID] = p.at(asked(s))
		case !p.t.has(s):
			// it hangs below a server's own query
		case s.Kind == KindServer && s.From(semconv.ScopePlugin):
			if top[s] {
				servers = append(servers, s) // else it hangs below another's attempt
			}
		case s.Parent != derived || !s.From(semconv.ScopeTracer):
		case s.Stage() == verdict.Upstream && s.Attributes.String(semconv.ClientAddress) != "":
			upstreams = append(upstreams, s)
		default:
			segments = append(segments, s)
		}
	}
	p.ownSegments()
	p.assign(segments, p.segment)
	for _, s := range segments {
		// Where another node than the client's translates, its agent tells to what.
		if to := s.Translated(); to.IsValid() {
			for i, l := range p.lookups {
				if p.owners[s.SpanID]&(1<<i) != 0 {
					l.learn(to)
				}
			}
		}
	}
	p.assign(servers, p.serverSpan)
	for _, s := range upstreams {
		// A server asked it for one of them, or nobody knows for which.
		from := endpoint(s, semconv.ClientAddress, semconv.ClientPort)
		p.owners[s.SpanID] = cmp.Or(p.at(netip.AddrPortFrom(from.Addr(), 0)), p.all())
	}
}

// ownSegments adds the addresses that the client's agent saw its query translated to, in all attempts.
func (p *parting) ownSegments() {
	for _, s := range p.t.Spans {
		to := s.Translated()
		if !to.IsValid() || s.Kind != KindInternal || !s.From(semconv.ScopeTracer) {
			continue
		}
		for _, l := range p.lookups {
			if l.client != nil && s.Parent == l.client.SpanID && s.SameSender(l.client) && !s.hasServer() {
				l.learn(to)
			}
		}
	}
}

func (s *Span) hasServer() bool { return s.Attributes.String(semconv.ServerAddress) != "" }

// segment gives the lookups of a span right below the client's: by the server that it names, else by its sender.
func (p *parting) segment(s *Span) owners {
	if s.hasServer() {
		return p.at(endpoint(s, semconv.ServerAddress, semconv.ServerPort))
	}
	for i, l := range p.lookups {
		if l.client != nil && l.client.SpanID == s.Parent && s.SameSender(l.client) {
			return 1 << i
		}
	}
	return 0
}

// serverSpan gives the lookups that may have asked the CoreDNS of a SERVER span.
func (p *parting) serverSpan(s *Span) owners {
	for i, l := range p.lookups {
		if l.client == nil && l.server == ServerName(s) {
			return 1 << i
		}
	}
	return p.at(addressesOf(s)...)
}

// assign gives spans to the lookups of which which tells. Those of which it tells none belong to a lookup that is the
// only one, if none of them do: else they are of a lookup that was not told yet.
func (p *parting) assign(spans []*Span, which func(*Span) owners) {
	var all owners
	for _, s := range spans {
		of := which(s)
		p.owners[s.SpanID] = of
		all |= of
	}
	if all != 0 || len(p.lookups) > 1 {
		return
	}
	for _, s := range spans {
		p.owners[s.SpanID] = p.all()
	}
}

// inherit gives each span to the lookups of the one that it is below. Each is looked at once: what is received need not
// be a tree.
func (p *parting) inherit() {
	parents := make(map[link.SpanID]link.SpanID, len(p.t.Spans))
	for _, s := range p.t.Spans {
		parents[s.SpanID] = s.Parent
	}
	var path []link.SpanID
	for _, s := range p.t.Spans {
		path = path[:0]
		id := s.SpanID
		of, known := p.owners[id]
		for !known {
			parent, here := parents[id]
			if !here {
				break
			}
			p.owners[id] = 0 // until it is known; a circle belongs to nobody
			path = append(path, id)
			id = parent
			of, known = p.owners[id]
		}
		for _, id := range path {
			p.owners[id] = of
		}
	}
}

// of gives the spans of one lookup, those below the client's span below the derived one.
func (p *parting) of(i int, client *Span) []*Span {
	derived := p.t.ID.ClientSpanID()
	var spans []*Span
	for _, s := range p.t.Spans {
		if p.owners[s.SpanID]&(1<<i) == 0 {
			continue
		}
		if s.Kind == KindClient && s.From(semconv.ScopeTracer) && p.t.has(s) && client != nil && s != client {
			continue // it tells of the same, and knows less
		}
		if client != nil && client.SpanID != derived && (s == client || s.Parent == client.SpanID) {
			moved := *s
			if s == client {
				moved.SpanID, moved.Parent = derived, link.SpanID{}
			} else {
				moved.Parent = derived
			}
			s = &moved
		}
		spans = append(spans, s)
	}
	return spans
}
