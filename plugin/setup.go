package dnstrail

import (
	"context"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
)

func init() { plugin.Register(pluginName, setup) }

func setup(c *caddy.Controller) error {
	cfg, err := parse(c)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	if cfg.accept && len(cfg.acceptFrom) == 0 {
		log.Warning("traceparent accept names no networks: any client decides under which trace its queries stand, " +
			"and that they are kept")
	}
	d := &Dnstrail{config: *cfg, keep: cfg.keeper(), names: cfg.names, observe: cfg.observer()}
	site := dnsserver.GetConfig(c)
	site.AddPlugin(func(next plugin.Handler) plugin.Handler {
		d.Next = next
		return d
	})
	probes.expect(c, site, d)
	setGlobalTracer()
	growEarly.Store(true)

	life := &life{d: d}
	c.OnStartup(func() error {
		probes.forget(c.Context())
		return life.start()
	})
	c.OnRestart(life.restart)
	c.OnRestartFailed(life.restartFailed)
	c.OnShutdown(life.shutdown)
	c.OnFinalShutdown(life.end)
	return nil
}

// life is the life of a handler, as CoreDNS tells of it. A reload starts the new instance before the old one is shut
// down; at CoreDNS's end an instance is shut down while it still serves, for as long as health's lameduck time, and
// only then comes the final shutdown.
type life struct {
	d          *Dnstrail
	restarting bool
	mu         sync.Mutex
	release    []func()
}

func (l *life) start() error {
	d := l.d
	d.chain = walk(d.Next)
	index, releaseIndex, err := takeIndex(&d.config.ids)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	exporter, releaseExporter, err := takeExporter(&d.config.export)
	if err != nil {
		releaseIndex()
		return plugin.Error(pluginName, err)
	}
	hindsight, releaseHindsight, err := takeHindsight(&d.config.hindsight)
	if err != nil {
		releaseIndex()
		releaseExporter()
		return plugin.Error(pluginName, err)
	}
	d.index, d.exporter, d.hindsight = index, exporter, hindsight
	l.release = []func(){releaseIndex, releaseExporter, releaseHindsight}
	restart.took(l.free)
	if t := d.config.export.target; t.Warning != "" {
		log.Warningf("endpoint: %s", t.Warning)
	} else if t.Host == "" && !t.Off {
		log.Info("spans go nowhere: no endpoint is given, neither in the Corefile nor by OTEL_EXPORTER_OTLP_ENDPOINT")
	}
	return nil
}

func (l *life) restart() error {
	l.restarting = true
	restart.begin()
	return nil
}

func (l *life) restartFailed() error {
	l.restarting = false
	restart.end(true)
	return nil
}

// shutdown gives back what a reload's new instance has taken too, or does not need. At CoreDNS's end it gives back
// nothing: queries are still served.
func (l *life) shutdown() error {
	if l.restarting {
		restart.end(false)
		l.free()
	}
	return nil
}

func (l *life) free() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, release := range l.release {
		release()
	}
	l.release = nil
}

// end sends what waits. The servers stop after it, and the process ends then; if it does not, everything is given back
// a little later.
func (l *life) end() error {
	if l.d.exporter != nil {
		ctx, cancel := context.WithTimeout(context.Background(), finalFlush)
		defer cancel()
		l.d.exporter.flush(ctx)
	}
	time.AfterFunc(finalFlush, l.free)
	return nil
}
