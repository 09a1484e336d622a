package trace

import (
	"cmp"
	"net/netip"

	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// Place is one end of a segment; the zero value is one that the span does not have.
type Place = verdict.Spot

// eventDrop is the event of a place where the kernel dropped the packet.
const eventDrop = "drop"

// Begin gives where a segment starts.
func (s *Span) Begin() Place {
	return s.place(
		semconv.SegmentFromDevice, semconv.SegmentFromEvent, semconv.SegmentFromNetNS,
		semconv.SegmentFromOwnerKind, semconv.SegmentFromOwnerName,
	)
}

// Finish gives where a segment ends.
func (s *Span) Finish() Place {
	return s.place(
		semconv.SegmentToDevice, semconv.SegmentToEvent, semconv.SegmentToNetNS,
		semconv.SegmentToOwnerKind, semconv.SegmentToOwnerName,
	)
}

// DropAt gives where the kernel dropped the packet: of a segment, its end; of the span that has the verdict, what ended
// the lookup.
func (s *Span) DropAt() Place {
	switch {
	case s.IsDrop():
		return s.Finish()
	case s.Attributes.String(semconv.DropReason) == "":
		return Place{}
	}
	p := s.place(semconv.DropDevice, "", semconv.DropNetNS, semconv.DropOwnerKind, semconv.DropOwnerName)
	p.Event = eventDrop
	return p
}

func (s *Span) place(device, event, netns, ownerKind, ownerName string) Place {
	a := s.Attributes
	return Place{
		Device: a.String(device), Event: a.String(event),
		NetNS: uint32(a.Int(netns)), // #nosec G115 -- an inode number of a network namespace
		Owner: verdict.Owner{Kind: verdict.OwnerKind(a.String(ownerKind)), Name: a.String(ownerName)},
	}
}

// Translated gives the address and port that the query really went to: the one from which the connection-tracking entry
// expects the reply. Invalid if the span does not say.
func (s *Span) Translated() netip.AddrPort {
	return endpoint(s, semconv.TranslatedAddress, semconv.TranslatedPort)
}

// IsAnswer tells whether a segment is of the answer's way, from end to end.
func (s *Span) IsAnswer() bool { return s.Attributes.String(semconv.SegmentWay) == semconv.WayAnswer }

// IsTurn tells whether a segment goes from a query to its answer.
func (s *Span) IsTurn() bool { return s.Attributes.String(semconv.SegmentWay) == semconv.WayTurn }

// Stage gives the stage that a segment spans; "" of a span that is no segment.
func (s *Span) Stage() verdict.Where { return verdict.Where(s.Attributes.String(semconv.Segment)) }

// IsDrop tells whether the kernel dropped the packet at the segment's end.
func (s *Span) IsDrop() bool {
	return s.Kind == KindInternal && s.Attributes.String(semconv.SegmentToEvent) == eventDrop
}

// Node gives the node whose agent, or whose CoreDNS, made the span: by its name, else the host's; "" if neither is
// known.
func (s *Span) Node() string {
	return cmp.Or(s.String(semconv.K8SNodeName), s.String(semconv.HostName))
}

// corrects tells whether the span's verdict takes the place of the CLIENT span's.
func (s *Span) corrects() bool {
	yes, _ := s.Attributes.Bool(semconv.VerdictCorrection)
	return yes
}
