package identity

import "slices"

// An address is one client's at a time, but the API tells one pod after the other: while pods swap addresses, two of
// them have the same one for a moment. So each client claims its addresses, and the claims decide:
//
//   - a client that lives goes before one that is gone, which is found only while nobody else claims the address;
//   - of those that live, the one with the latest claim has it. A claim is as late as the last sign that the client
//     has its addresses (its start, that of its sandbox or of a container). One that a known client came by later is,
//     besides, later than all claims that were known then: the API told the change after those;
//   - a NodeLocal DNSCache goes before its own node.
//
// When a claim is withdrawn, those that remain decide again. Which client it is in the end thus depends on who claims
// the address in the end, and not on the order in which that was told.

// claim is a client's word that it has an address.
type claim struct {
	client *Client
	at     int64 // how late it is, in seconds since 1970
}

// claims gives who claims the address at k. Only addresses that more than one client claims have a list of their own.
func (x *Index) claims(k key) []claim {
	if cs, ok := x.contested[k]; ok {
		return cs
	}
	if c := x.addrs.get(k); c != nil {
		return []claim{{c, int64(c.start)}}
	}
	return nil
}

// claim makes c one of those who claim the address at k. moved says that c was known without it: it came by the address
// after those that are known to claim it. Callers hold mu.
func (x *Index) claim(c *Client, k key, moved bool) {
	if x.addrs.get(k) == nil { // as nearly always
		x.addrs.put(k, c)
		return
	}
	cs := x.claims(k)
	at := int64(c.start)
	for _, other := range cs {
		if other.client == c {
			return
		}
		if moved {
			at = max(at, other.at+1)
		}
	}
	x.settle(k, append(cs, claim{c, at}))
}

// substitute puts c in the place of old, which claims the address at k, too. Callers hold mu.
func (x *Index) substitute(old, c *Client, k key) {
	cs := x.claims(k)
	i := slices.IndexFunc(cs, func(o claim) bool { return o.client == old })
	if i < 0 { // old was gone, and another has taken the address
		x.claim(c, k, false)
		return
	}
	cs[i] = claim{c, max(cs[i].at, int64(c.start))}
	x.settle(k, cs)
}

// withdraw says that c does not claim the address at k any more. Callers hold mu.
func (x *Index) withdraw(c *Client, k key) {
	cs := x.claims(k)
	n := len(cs)
	cs = slices.DeleteFunc(cs, func(o claim) bool { return o.client == c })
	switch {
	case len(cs) == n: // somebody else's
	case len(cs) == 0:
		x.addrs.remove(k, c)
	default:
		x.settle(k, cs)
	}
}

// settle gives the address at k to one of those who claim it; there is one at least. Callers hold mu.
func (x *Index) settle(k key, cs []claim) {
	lives := func(o claim) bool { _, gone := x.gone[o.client]; return !gone }
	if slices.ContainsFunc(cs, lives) {
		// Who is gone comes after all that live. A cache is kept nonetheless: it comes before its node.
		cs = slices.DeleteFunc(cs, func(o claim) bool { return !lives(o) && o.client.Kind() != NodeLocalDNS })
	}
	best := func(among func(*Client) bool) *Client {
		var b claim
		for _, o := range cs {
			if !among(o.client) {
				continue
			}
			if b.client == nil || lives(o) && !lives(b) || lives(o) == lives(b) && o.at >= b.at {
				b = o
			}
		}
		return b.client
	}
	winner := best(func(*Client) bool { return true })
	if winner.Kind() == Node {
		cache := best(func(c *Client) bool { return c.Kind() == NodeLocalDNS && c.Node() == winner.Node() })
		if cache != nil {
			winner = cache
		}
	}
	if len(cs) > 1 {
		x.contested[k] = cs
	} else {
		delete(x.contested, k)
	}
	if x.addrs.get(k) != winner {
		x.addrs.put(k, winner)
	}
}

// depart marks c as gone: its addresses are others', where these claim them. Callers hold mu.
func (x *Index) depart(c *Client) {
	for a := range c.Addrs() {
		if k := keyOf(a.As16()); x.contested[k] != nil {
			x.settle(k, x.contested[k])
		}
	}
}

// back takes c, which was gone, for living again. Callers hold mu.
func (x *Index) back(c *Client) {
	if _, was := x.gone[c]; !was {
		return
	}
	delete(x.gone, c)
	for a := range c.Addrs() {
		k := keyOf(a.As16())
		x.claim(c, k, false)
		if cs := x.contested[k]; cs != nil {
			x.settle(k, cs)
		}
	}
}
