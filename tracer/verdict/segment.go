package verdict

import (
	"github.com/dnstrail/dnstrail/tracer/hop"
	"github.com/dnstrail/dnstrail/tracer/lookup"
)

// Segment is the way between two neighboring hops.
type Segment struct {
	Name     string // low in cardinality
	Stage    Where
	Way      Way
	From, To *hop.Hop
}

// Way tells whose way a segment is of.
type Way uint8

// The ways.
const (
	OfQuery  Way = iota
	OfAnswer     // both its ends are the answer's
	OfTurn       // from the query to its answer: the server is between
)

func wayOf(a, b *hop.Hop) Way {
	switch {
	case a.Answer:
		return OfAnswer
	case b.Answer:
		return OfTurn
	}
	return OfQuery
}

// Segments gives the ways between neighboring hops of each attempt, in order of time, appended to dst.
func (j *Judge) Segments(dst []Segment, l *lookup.Lookup) []Segment {
	for attempt := range uint8(l.Attempts) {
		var prev *hop.Hop
		for i := range l.Hops {
			h := &l.Hops[i]
			if h.Attempt != attempt || h.Kind == hop.Unreachable || (h.Kind == hop.Drop && h.Reason.Harmless()) {
				continue
			}
			if prev != nil {
				name, stage := j.segment(l, prev, h)
				dst = append(dst, Segment{Name: name, Stage: stage, Way: wayOf(prev, h), From: prev, To: h})
			}
			prev = h
		}
	}
	return dst
}

// Names of segments that do not follow from their stage.
const (
	DNSServer = "DNS server" // from the query's arrival at the server to the answer's departure
	// from the query's departure to the answer's arrival, where the server is out of sight
	BeyondThisNode = "beyond this node"
	Dropped        = "dropped"
	ClientSocket   = "client socket" // the client's read of the answer
)

// Names of the spans that tell what came of a lookup after it had been reported for good.
const (
	LateAnswer = "late answer" // an answer
	AskedAgain = "asked again" // the same socket sent the same query again
	SeenLater  = "seen later"  // neither: the server read the query late, the kernel dropped it, ...
)

func (j *Judge) segment(l *lookup.Lookup, a, b *hop.Hop) (string, Where) {
	if b.Kind == hop.Drop {
		return Dropped, j.way(l, a, b)
	}
	if !a.Answer && b.Answer {
		if a.NetNS == b.NetNS && b.Local {
			return DNSServer, CoreDNS
		}
		return BeyondThisNode, BetweenNodes
	}
	stage := j.way(l, a, b)
	if !a.Answer {
		return nameOf(stage), stage
	}
	switch stage {
	case CoreDNSSocket:
		return ClientSocket, Client
	default:
		return returnNameOf(stage), ReturnPath
	}
}

// nameOf gives the name of a segment of the way there.
func nameOf(stage Where) string {
	switch stage {
	case Client:
		return "client"
	case PodLink:
		return "pod link"
	case Node:
		return "node"
	case Service:
		return "service translation"
	case BetweenNodes:
		return "node to node"
	case CoreDNSSocket:
		return "DNS server's socket"
	}
	return ""
}

// returnNameOf gives the name of a segment of the way back.
func returnNameOf(stage Where) string {
	switch stage {
	case Client:
		return "return: client"
	case PodLink:
		return "return: pod link"
	case Node:
		return "return: node"
	case Service:
		return "return: service translation"
	case BetweenNodes:
		return "return: node to node"
	}
	return ""
}

// way gives the stage between two hops of one direction.
func (j *Judge) way(l *lookup.Lookup, a, b *hop.Hop) Where {
	switch {
	case b.Kind == hop.Read:
		return CoreDNSSocket
	case a.NetNS == b.NetNS:
		switch {
		case !a.Answer && a.Dst != b.Dst, a.Answer && a.Src != b.Src:
			return Service
		case a.NetNS == l.ClientNetNS && !j.isNode(a.NetNS):
			return Client
		}
		return Node
	case j.isNode(a.NetNS) && j.isNode(b.NetNS):
		return BetweenNodes
	}
	return PodLink
}

// Timing is where the time of a lookup went, in ns; the three parts add up to Total. A part that was not seen is -1.
type Timing struct {
	Total, ToServer, Server, Return int64
	// ServerSeen is false where the server is out of sight: then Server includes the network between.
	ServerSeen bool
}

// Times splits the time of an answered lookup: until the query of the answered attempt came to the server, in the
// server, and back. The time of attempts that went before is on the way there. Of a lost lookup Total alone is known.
func Times(l *lookup.Lookup) Timing {
	t := Timing{Total: l.End() - l.Start(), ToServer: -1, Server: -1, Return: -1}
	if l.Ending != lookup.Answered {
		return t
	}
	last := len(l.Hops) - 1
	for last >= 0 && (!l.Hops[last].Answer || l.Hops[last].Kind == hop.Drop || l.Hops[last].Kind == hop.Unreachable) {
		last--
	}
	if last < 0 {
		return t
	}
	attempt := l.Hops[last].Attempt
	answer, arrived := -1, -1
	for i := range l.Hops[:last+1] {
		switch h := &l.Hops[i]; {
		case h.Kind == hop.Drop || h.Kind == hop.Unreachable || h.Attempt != attempt:
		case h.Answer && answer < 0:
			answer = i
		case !h.Answer && answer < 0:
			arrived = i
		}
	}
	if answer < 0 || arrived < 0 {
		return t
	}
	sent, end := l.Start(), l.Hops[last].Time
	t.ToServer = l.Hops[arrived].Time - sent
	t.Server = l.Hops[answer].Time - l.Hops[arrived].Time
	t.Return = end - l.Hops[answer].Time
	t.ServerSeen = l.Hops[answer].Local
	t.Total = end - sent
	return t
}
