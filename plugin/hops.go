package dnstrail

import (
	"reflect"

	"github.com/coredns/coredns/plugin"
)

// chain is the plugins behind us, in the order in which a query passes them.
type chain struct {
	hops  []hop
	cache int  // the index of plugin cache if our probe stands behind it, otherwise -1
	loop  bool // plugin loop is among them
}

// hop is one plugin of the chain.
type hop struct {
	name string
	pass pass
}

// probe says that it is one of ours, which is not shown.
func (h *hop) probe() bool { return h.name == refreshName || h.name == upstreamName }

// pass says what a plugin does with a query that it does not answer itself, and so what can be told by counting the
// steps down the chain.
type pass uint8

const (
	// unsure: it may ask Next more than once, look other names up through the server, or is not one we know.
	unsure pass = iota
	// once: it calls Next once at most and asks nothing else.
	once
	// guarded: our own probe stands directly behind it and tells what happens.
	guarded
)

// passOnce lists the plugins of CoreDNS v1.15.0 that pass a query on once at most and make no look-ups of their own. A
// plugin that is missing here costs a little time, because it is watched with spans; one that is here wrongly costs the
// truth.
var passOnce = map[string]bool{
	"acl": true, "any": true, "bufsize": true, "cancel": true, "chaos": true, "dnssec": true, "dnstap": true,
	"erratic": true, "errors": true,
	"geoip": true, "header": true, "hosts": true, "loadbalance": true, "local": true, "log": true, "loop": true,
	"metadata": true,
	"nsid":     true, "prometheus": true, "shed": true, "trace": true, "tsig": true, "whoami": true,
	refreshName: true, upstreamName: true,
}

// walk lists the chain that starts at h. CoreDNS does not say what follows a plugin; by its convention the plugin's
// struct does, in a field Next.
func walk(h plugin.Handler) chain {
	c := chain{cache: -1}
	for h != nil && len(c.hops) < 1000 {
		step := hop{name: h.Name()}
		if passOnce[step.name] {
			step.pass = once
		}
		c.loop = c.loop || step.name == "loop"
		next := following(h)
		if step.name == "cache" {
			if _, ok := next.(*refreshProbe); ok {
				step.pass = guarded
				c.cache = len(c.hops)
			}
		}
		c.hops = append(c.hops, step)
		h = next
	}
	return c
}

func following(h plugin.Handler) plugin.Handler {
	v := reflect.ValueOf(h)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return nil
	}
	f := v.FieldByName("Next")
	if !f.IsValid() || !f.CanInterface() {
		return nil
	}
	next, _ := reflect.TypeAssert[plugin.Handler](f)
	return next
}
