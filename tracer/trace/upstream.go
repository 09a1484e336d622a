package trace

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// attempts gives the upstream attempts of one CoreDNS for one query, by start: not those of a CoreDNS that it asked.
func (s *sight) attempts(server *Span) []*Span {
	var found []*Span
	var find func(*Span, int)
	find = func(sp *Span, depth int) {
		for _, c := range s.below[sp.SpanID] {
			switch {
			case depth > len(s.t.Spans) || !c.From(semconv.ScopePlugin) || c.Kind == KindServer:
			case c.Kind == KindClient:
				found = append(found, c)
			default:
				find(c, depth+1)
			}
		}
	}
	find(server, 0)
	slices.SortStableFunc(found, func(a, b *Span) int { return a.Start.Compare(b.Start) })
	return found
}

// answeredWell tells whether an attempt got what is no failure.
func answeredWell(attempt *Span) bool {
	if attempt.Status == StatusError || attempt.Attributes.String(semconv.ErrorType) != "" {
		return false
	}
	rcode := attempt.Attributes.String(semconv.ResponseCode)
	return rcode == "NOERROR" || rcode == "NXDOMAIN"
}

// failures are the upstream attempts that failed, and what became of the last.
type failures struct {
	last     *Span // the attempt, of the CoreDNS that is farthest from the client
	cause    verdict.Cause
	sure     bool // of the cause: its error alone may tell it, or not
	evidence []string
	more     string // what the server that was asked tells, where its side is here; "" else
}

// failed gives why CoreDNS could not answer from its upstreams; false where its last attempt was answered well, or
// there was none. Of a CoreDNS that asked another CoreDNS it is what the other one tells.
func (s *sight) failed(server *Span) (failures, bool) {
	attempts := s.attempts(server)
	if len(attempts) == 0 || answeredWell(attempts[len(attempts)-1]) {
		return failures{}, false
	}
	f := failures{last: attempts[len(attempts)-1]}
	for _, a := range attempts {
		if answeredWell(a) {
			continue
		}
		f.evidence = append(f.evidence, fmt.Sprintf("CoreDNS asked %s after %s: it %s", peer(a),
			short(a.Start.Sub(s.t.Start())), fate(a)))
		f.evidence = append(f.evidence, s.onTheNetwork(a)...)
	}
	f.cause, f.sure = s.upstreamCause(f.last)
	for _, u := range slices.Backward(s.sentFor(f.last)) {
		if v, ok := s.wordBelow(u); ok {
			f.more, f.evidence = strings.TrimPrefix(v.Text, cameTooLate), append(f.evidence, v.Evidence...)
			if cause := verdict.Cause(v.Cause); cause != f.cause {
				f.cause, f.sure = cause, false // that the query was made for this lookup is concluded
			}
			break
		}
	}
	for _, next := range s.below[f.last.SpanID] {
		if next.Kind != KindServer || !next.From(semconv.ScopePlugin) {
			continue
		}
		if deeper, ok := s.failed(next); ok {
			f.last, f.cause, f.sure, f.more = deeper.last, deeper.cause, deeper.sure, deeper.more
			f.evidence = append(f.evidence, deeper.evidence...)
			break
		}
	}
	return f, true
}

// upstreamCause gives the cause of an attempt that failed: by its error, else by its rcode. That a host is unreachable
// has several causes (no route, no neighbor, an ICMP error from afar): it is known where an agent saw the drop.
func (s *sight) upstreamCause(attempt *Span) (cause verdict.Cause, sure bool) {
	switch attempt.Attributes.String(semconv.ErrorType) {
	case "timeout", "canceled":
		return verdict.CauseTimeout, true
	case "connection_refused":
		return verdict.CauseNoListener, true
	case "network_unreachable":
		return verdict.CauseNoRoute, true
	case "host_unreachable":
		for _, u := range s.sentFor(attempt) {
			if c, _ := verdict.DropCause(u.Attributes.String(semconv.DropReason)); c != verdict.CauseDropped {
				return c, true
			}
		}
		return verdict.CauseNoRoute, false
	}
	if attempt.Attributes.String(semconv.ResponseCode) == "REFUSED" {
		return verdict.CauseRefused, true
	}
	return verdict.CauseServerError, true
}

// fate tells what became of an attempt that failed, so that it can stand after the upstream's name.
func fate(attempt *Span) string {
	if rcode := attempt.Attributes.String(semconv.ResponseCode); rcode != "" {
		return "answered " + rcode
	}
	switch e := attempt.Attributes.String(semconv.ErrorType); e {
	case "timeout":
		return "did not answer within " + short(attempt.Duration())
	case "canceled":
		return "had not answered after " + short(attempt.Duration()) + ", when CoreDNS gave up"
	case "connection_refused":
		return "refused the connection"
	case "host_unreachable", "network_unreachable":
		return "was not reached: " + strings.ReplaceAll(e, "_", " ")
	case "connection_reset", "connection_closed":
		return "closed the connection"
	}
	return cmp.Or(attempt.Message, "failed")
}

// peer names the upstream of an attempt.
func peer(attempt *Span) string {
	if p := attempt.Peer(); p.IsValid() {
		return p.String()
	}
	host := cmp.Or(attempt.String(semconv.NetworkPeerAddress), attempt.String(semconv.ServerAddress))
	port := cmp.Or(attempt.Int(semconv.NetworkPeerPort), attempt.Int(semconv.ServerPort))
	switch {
	case host == "":
		return "an upstream"
	case port == 0:
		return host
	}
	return net.JoinHostPort(host, strconv.FormatInt(port, 10))
}

// onTheNetwork tells what agents saw of the packets of an attempt, where the kernel dropped them.
func (s *sight) onTheNetwork(attempt *Span) []string {
	var e []string
	for _, u := range s.sentFor(attempt) {
		if line := dropOfUpstream(u); line != "" && !slices.Contains(e, line) {
			e = append(e, line)
		}
	}
	return e
}

// sentFor gives what agents saw of the packets of an attempt.
func (s *sight) sentFor(attempt *Span) []*Span {
	var found []*Span
	for _, u := range s.upstreams {
		apart := u.End.Before(attempt.Start.Add(-clockGuard)) || u.Start.After(attempt.End.Add(clockGuard))
		if asked := endpoint(u, semconv.ServerAddress, semconv.ServerPort); !apart && asked == attempt.Peer() {
			found = append(found, u)
		}
	}
	return found
}

// deeper adds to a verdict that blames the upstream of a server, which has no spans of its own, what those tell that
// the server asked: a cache or forwarder in the pod asks CoreDNS, and CoreDNS knows why it failed.
func (s *sight) deeper(v Verdict) Verdict {
	if v.Where != string(verdict.Upstream) || len(s.servers) > 0 {
		return v
	}
	for _, u := range slices.Backward(s.upstreams) {
		told, ok := s.wordBelow(u)
		if !ok {
			continue
		}
		v.Cause, v.Joined = told.Cause, true
		v.Certainty = Inferred // that the query was made for this lookup is concluded
		if told.Text != "" {
			v.Text += "; " + strings.TrimPrefix(told.Text, cameTooLate)
		}
		v.Evidence = append(slices.Clone(v.Evidence), told.Evidence...)
		break
	}
	return v
}

// wordBelow gives the verdict on a server's own query, which has a trace of its own: see [Trace.Whole]. False is given
// where that is not here, or tells no more than that nothing is known of the failure.
func (s *sight) wordBelow(u *Span) (Verdict, bool) {
	v, known := s.words[u]
	if !known {
		i := slices.IndexFunc(u.Links, func(l Link) bool { return l.served() })
		if i >= 0 && s.t.depth < maxWordsDepth {
			if own := s.traceBelow(u, u.Links[i].TraceID); own != nil && own.client != nil {
				v = s.judge(own)
			}
		}
		if s.words == nil {
			s.words = map[*Span]Verdict{}
		}
		s.words[u] = v
	}
	switch verdict.Where(v.Where) {
	case verdict.CoreDNS, verdict.Upstream:
		return v, v.Joined // CoreDNS's own word, or that of the agent beside it
	}
	return Verdict{}, false
}

// maxWordsDepth is how many servers in a row are asked for their word: one in the pod, a cache on the node, CoreDNS.
const maxWordsDepth = 3

// traceBelow gives the trace of a server's own query, of which the roots hang below u; nil where none of it is here.
// Each span is looked at once: what is received need not be a tree.
func (s *sight) traceBelow(u *Span, id link.TraceID) *Trace {
	var spans []*Span
	seen := map[*Span]bool{u: true}
	for todo := []*Span{u}; len(todo) > 0; todo = todo[1:] {
		for _, sp := range s.below[todo[0].SpanID] {
			top := todo[0] == u
			if seen[sp] || top && sp.TraceID != id {
				continue
			}
			seen[sp] = true
			todo = append(todo, sp)
			if top {
				root := *sp
				root.Parent = link.SpanID{}
				spans = append(spans, &root)
				continue
			}
			spans = append(spans, sp)
		}
	}
	if len(spans) == 0 {
		return nil
	}
	own := join(id, spans)
	own.depth = s.t.depth + 1
	return own
}

// dropOfUpstream tells where the kernel dropped a query of a server's own; "" where it did not.
func dropOfUpstream(u *Span) string {
	reason := u.Attributes.String(semconv.DropReason)
	if reason == "" {
		return ""
	}
	at := u.DropAt()
	where := at.Owner.On()
	if node := u.Node(); where == "" && node != "" {
		where = "as seen on " + node
	}
	text := strings.ToUpper(cmp.Or(u.String(semconv.NetworkTransport), "udp"))
	if to := endpoint(u, semconv.ServerAddress, semconv.ServerPort); to.IsValid() {
		text += " to " + to.String()
	}
	text += " was dropped"
	if at.Device != "" {
		text += " at " + at.Device
	}
	if where != "" {
		text += " " + where
	}
	return text + ": " + reason
}

// short writes a duration with three digits.
func short(d time.Duration) string {
	switch abs := d.Abs(); {
	case abs >= time.Second:
		return fmt.Sprintf("%.3g s", d.Seconds())
	case abs >= time.Millisecond:
		return fmt.Sprintf("%.3g ms", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%.3g µs", d.Seconds()*1e6)
}
