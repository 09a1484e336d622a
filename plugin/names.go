package dnstrail

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
)

// namePolicy says how names are shown in spans.
type namePolicy struct {
	rules []nameRule
	key   []byte // of the hash
}

// nameRule says how the names of some zones are shown.
type nameRule struct {
	zones  []string // canonical
	labels int      // below the zone, that are shown
	hash   bool     // what is not shown is hashed, not only left out
}

// newHashKey makes a key that only this process knows.
func newHashKey() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it never fails
	return key
}

// show gives a name as it may be shown, and whether that is less than the whole name. Of the zones that hold the name, the longest one rules.
// What is hidden is replaced by one label: "*", or the hash of the hidden part in lower case.
func (p *namePolicy) show(name string) (shown string, hidden bool) {
	var rule *nameRule
	zone := ""
	for i := range p.rules {
		if z := plugin.Zones(p.rules[i].zones).Matches(strings.ToLower(name)); len(z) > len(zone) {
			rule, zone = &p.rules[i], z
		}
	}
	if rule == nil {
		return name, false
	}
	labels := dns.Split(name)
	keep := dns.CountLabel(zone) + rule.labels
	if len(labels) <= keep {
		return name, false
	}
	tail := "."
	cut := len(name)
	if keep > 0 {
		cut = labels[len(labels)-keep]
		tail = "." + name[cut:]
	}
	if !rule.hash {
		return "*" + tail, true
	}
	mac := hmac.New(sha256.New, p.key)
	mac.Write([]byte(strings.ToLower(name[:cut])))
	return "h-" + hex.EncodeToString(mac.Sum(nil)[:8]) + tail, true
}
