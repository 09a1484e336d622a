package trace

import (
	"strings"
	"time"
)

// Filter chooses traces. A zero field lets everything through; the fields set must all match.
type Filter struct {
	// Name is the name asked: case and a final dot do not count.
	Name string
	// Type and Rcode are in words: "AAAA", "NXDOMAIN"; case does not count.
	Type, Rcode string
	// Client is a namespace/pod, a pod, or an address.
	Client string
	// Lost is true for lookups that got no answer, false for those that did.
	Lost *bool
	// Linked is true for traces with both sides.
	Linked *bool
	// Since leaves out what began before.
	Since time.Time
	// Limit is how many traces are wanted at most, 0 for all.
	Limit int
}

// Match tells whether f lets t through; Limit does not count here.
func (f Filter) Match(t *Trace) bool {
	if f.Name != "" && !strings.EqualFold(strings.TrimSuffix(f.Name, "."), strings.TrimSuffix(t.Name(), ".")) {
		return false
	}
	if f.Type != "" && !strings.EqualFold(f.Type, t.Type()) || f.Rcode != "" && !strings.EqualFold(f.Rcode, t.Rcode()) {
		return false
	}
	if f.Client != "" {
		who := t.Asker()
		address := ""
		if who.Address.IsValid() {
			address = who.Address.Addr().String()
		}
		if f.Client != who.Pod && f.Client != who.String() && f.Client != address {
			return false
		}
	}
	if f.Lost != nil && *f.Lost != t.Verdict().Lost() || f.Linked != nil && *f.Linked != t.Linked() {
		return false
	}
	return f.Since.IsZero() || !t.Start().Before(f.Since)
}
