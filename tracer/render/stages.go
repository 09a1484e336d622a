package render

import (
	"slices"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// stage is one of the stages that a lookup passes.
type stage struct {
	name         string
	passed, lost bool
}

// stages gives the stages in the order in which the packet met them: those that it passed, the one where it was lost,
// and those that it did not reach.
func (d *drawing) stages() []stage {
	seen := d.stagesSeen()
	lost := slices.Index(trace.Stages, d.verdict.Where)
	var list []stage
	for i, name := range trace.Stages {
		if i != lost && !seen[name] && d.unmet(name, i < lost) {
			continue
		}
		list = append(list, stage{name: name, lost: i == lost, passed: i != lost && (i < lost || seen[name])})
	}
	at := slices.IndexFunc(list, func(s stage) bool { return s.lost })
	if at < 0 {
		return list
	}
	if d.verdict.Where == string(verdict.Service) {
		// What was not translated, or not rightly, may go on for a while: it is not on its way any more.
		for i := at + 1; i < len(list); i++ {
			list[i].passed = false
		}
		return list
	}
	// A stage may come twice: a drop on the server's node is at "node", after the way between the nodes; an answer that
	// comes too late is lost at "client". It is drawn where it happened, behind all that was passed.
	for i := len(list) - 1; i > at; i-- {
		if !list[i].passed {
			continue
		}
		again := list[at]
		list = slices.Insert(list, i+1, again)
		if seen[again.name] {
			list[at].lost, list[at].passed = false, true
		} else {
			list = slices.Delete(list, at, at+1)
		}
		break
	}
	return list
}

// stagesSeen gives the stages that a span is of which tells more than a drop.
func (d *drawing) stagesSeen() map[string]bool {
	seen := map[string]bool{
		string(verdict.Client): d.t.Client() != nil, string(verdict.CoreDNS): d.t.Server() != nil,
		string(verdict.Service): d.t.Translated().IsValid(),
	}
	for _, s := range d.t.Spans {
		if s.Attributes.String(semconv.DropReason) == "" {
			seen[s.Attributes.String(semconv.Segment)] = true
		}
		if isUpstream(s) {
			seen[string(verdict.Upstream)] = true
		}
		if d.elsewhere(s) {
			seen[string(verdict.BetweenNodes)] = true // it got there
		}
	}
	return seen
}

// unmet tells whether a stage of which nothing was seen lies on other lookups' way, not on this one's. before says that
// it lies before the one where this was lost.
func (d *drawing) unmet(name string, before bool) bool {
	c := d.t.Client()
	switch verdict.Where(name) {
	case verdict.Upstream:
		return true // most lookups need none
	case verdict.PodLink:
		return before && c != nil && c.Int(semconv.HopsLost) == 0 // the client is in the node's own network
	case verdict.Service:
		return before && c != nil && c.Int(semconv.HopsLost) == 0 // it asked the server's own address
	case verdict.BetweenNodes:
		node := d.t.Asked().Node
		return before && node != "" && node == d.t.Asker().Node // the server is on the client's node
	}
	return false
}
