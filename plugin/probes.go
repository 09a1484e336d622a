package dnstrail

import (
	"slices"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
)

// probeSites puts our probes into the chains of the server blocks that have us. A probe has no directive; it is put in
// while the Corefile is being read, right after the directive that it belongs to.
type probeSites struct {
	once sync.Once

	mu     sync.Mutex
	blocks map[caddy.Context][]*probeSite
}

type probeSite struct {
	config *dnsserver.Config
	d      *Dnstrail
	before int // plugins in the chain before the directive that is next
}

var probes probeSites

// expect remembers a server block that is being set up.
func (p *probeSites) expect(c *caddy.Controller, site *dnsserver.Config, d *Dnstrail) {
	p.once.Do(func() {
		p.around("cache", func(b *probeSite, after int) {
			if after > b.before {
				b.config.AddPlugin(func(next plugin.Handler) plugin.Handler { return &refreshProbe{Next: next, d: b.d} })
			}
		})
		p.around("forward", func(b *probeSite, after int) {
			if after > b.before {
				b.config.Plugin = slices.Insert(b.config.Plugin, b.before, func(next plugin.Handler) plugin.Handler {
					return &upstreamProbe{Next: next, d: b.d}
				})
			}
		})
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocks == nil {
		p.blocks = map[caddy.Context][]*probeSite{}
	}
	p.blocks[c.Context()] = append(p.blocks[c.Context()], &probeSite{config: site, d: d})
}

// around calls f for each block when a directive has been set up in all of them.
func (p *probeSites) around(directive string, f func(b *probeSite, after int)) {
	i := slices.Index(dnsserver.Directives, directive)
	if i < 1 {
		return // this CoreDNS is built without it
	}
	caddy.RegisterParsingCallback("dns", dnsserver.Directives[i-1], func(ctx caddy.Context) error {
		for _, b := range p.of(ctx) {
			b.before = len(b.config.Plugin)
		}
		return nil
	})
	caddy.RegisterParsingCallback("dns", directive, func(ctx caddy.Context) error {
		for _, b := range p.of(ctx) {
			f(b, len(b.config.Plugin))
		}
		return nil
	})
}

func (p *probeSites) of(ctx caddy.Context) []*probeSite {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.blocks[ctx]
}

// forget drops what was remembered: all chains are complete.
func (p *probeSites) forget(ctx caddy.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.blocks, ctx)
}
