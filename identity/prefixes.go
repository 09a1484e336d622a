package identity

import (
	"net/netip"
	"slices"
)

// prefixes is a set of network prefixes, which in a cluster are many and of one or two lengths. It does not change once
// it can be seen.
type prefixes struct {
	set     map[netip.Prefix]struct{}
	lengths []int
}

func newPrefixes(of map[string][]netip.Prefix) *prefixes {
	p := &prefixes{set: make(map[netip.Prefix]struct{}, len(of))}
	for _, ps := range of {
		for _, q := range ps {
			p.set[q.Masked()] = struct{}{}
			if !slices.Contains(p.lengths, q.Bits()) {
				p.lengths = append(p.lengths, q.Bits())
			}
		}
	}
	return p
}

// contain says whether an address, not mapped into IPv6, is in one of the prefixes. A nil set is empty.
func (p *prefixes) contain(a netip.Addr) bool {
	if p == nil {
		return false
	}
	for _, n := range p.lengths {
		if q, err := a.Prefix(n); err == nil {
			if _, ok := p.set[q]; ok {
				return true
			}
		}
	}
	return false
}
