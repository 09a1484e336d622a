package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// drawn reads what the store's page shows.
const drawn = `(() => {
	const text = e => e ? e.textContent.trim() : "";
	const fields = e => Object.fromEntries([...e.querySelectorAll('[data-field]')].map(f => [f.dataset.field, text(f)]));
	return {
		totals: Object.fromEntries([...document.querySelectorAll('[data-total]')].map(e => [e.dataset.total, text(e)])),
		stages: Object.fromEntries([...document.querySelectorAll('[data-stage]')].map(e => [e.dataset.stage, {lossy: e.classList.contains('lossy') ? 'yes' : '', ...fields(e)}])),
		pairs: Object.fromEntries([...document.querySelectorAll('[data-pair]')].map(e => [e.dataset.pair, text(e)])),
		tables: Object.fromEntries(['clients', 'names', 'upstreams', 'instances'].map(id => [id,
			Object.fromEntries([...document.querySelectorAll('#' + id + ' tr[data-key]')].map(e => [e.dataset.key, fields(e)]))])),
		rows: [...document.querySelectorAll('#lookups tr[data-trace]')].map(e => e.dataset.trace),
		images: document.querySelectorAll('img, script:not([src]), style').length,
	};
})()`

// Seen is what the browser found.
type seen struct {
	First, Chosen json.RawMessage
	Command       string
	Wrong         []string
}

// session opens a browser for at most so long. Of what it shows of a URL it notes what no page may do: it is to ask
// nobody else, and to complain of nothing.
func session(url string, limit time.Duration) (ctx context.Context, end func(), c *complaints) {
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU)
	ctx, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, cancel := chromedp.NewContext(ctx)
	ctx, cancelTimeout := context.WithTimeout(ctx, limit)
	c = &complaints{}
	chromedp.ListenTarget(ctx, func(ev any) {
		switch e := ev.(type) {
		case *runtime.EventConsoleAPICalled:
			c.add("console.%s", e.Type)
		case *runtime.EventExceptionThrown:
			c.add("exception: %s", e.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			c.add("log: %s: %s", e.Entry.Level, e.Entry.Text)
		case *network.EventRequestWillBeSent:
			if !strings.HasPrefix(e.Request.URL, url) && e.Request.URL != "data:," {
				c.add("request for %s", e.Request.URL)
			}
		case *network.EventResponseReceived:
			if e.Response.Status >= 400 {
				c.add("%s: %d", e.Response.URL, e.Response.Status)
			}
		case *page.EventJavascriptDialogOpening:
			c.add("dialog: %s", e.Message)
		}
	})
	return ctx, func() { cancelTimeout(); cancel(); stop() }, c
}

// read gives what the page shows, as JSON.
func read(into *json.RawMessage) chromedp.Action {
	return chromedp.ActionFunc(func(ctx context.Context) error {
		var v any
		if err := chromedp.Evaluate(drawn, &v).Do(ctx); err != nil {
			return err
		}
		b, err := json.Marshal(v)
		*into = b
		return err
	})
}

// screenshot writes what the window shows into a file.
func screenshot(file string) chromedp.Action {
	return chromedp.ActionFunc(func(ctx context.Context) error {
		png, err := page.CaptureScreenshot().Do(ctx)
		if err != nil {
			return err
		}
		return os.WriteFile(file, png, 0o644)
	})
}

// views looks at each view of the page, in windows of each kind.
func views(ctx context.Context, c *complaints, shots string) error {
	for _, view := range []string{"now", "who", "rows"} {
		for _, size := range []struct {
			name          string
			width, height int64
			dark          bool
		}{{"desk", 1280, 900, false}, {"desk-dark", 1280, 900, true}, {"telephone", 420, 900, false}, {"telephone-dark", 420, 900, true}} {
			scheme := "light"
			if size.dark {
				scheme = "dark"
			}
			var wide bool
			var small []string
			err := chromedp.Run(ctx,
				emulation.SetDeviceMetricsOverride(size.width, size.height, 1, false),
				emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}),
				chromedp.Click("#tab-"+view, chromedp.ByQuery), chromedp.WaitVisible("#"+view, chromedp.ByQuery),
				chromedp.Evaluate(`document.documentElement.scrollWidth > document.documentElement.clientWidth`, &wide),
				chromedp.Evaluate(unnamed, &small),
				screenshot(filepath.Join(shots, view+"-"+size.name+".png")),
				axe(c, view+" at "+size.name),
			)
			if err != nil {
				return fmt.Errorf("%s at %s: %w", view, size.name, err)
			}
			if wide {
				c.add("%s at %s: wider than the window", view, size.name)
			}
			for _, what := range small {
				c.add("%s at %s: %s", view, size.name, what)
			}
		}
	}
	return nil
}

// store opens the page that a dnstrail store serves at a URL, uses it, and prints what it showed.
func store(url, shots string) error {
	ctx, end, c := session(url, 8*time.Minute)
	defer end()
	var s seen
	if err := chromedp.Run(ctx, network.Enable(), log.Enable(), runtime.Enable(), chromedp.Navigate(url),
		chromedp.WaitReady(`body[data-ready]`, chromedp.ByQuery), read(&s.First)); err != nil {
		return fmt.Errorf("opening %s: %w", url, err)
	}
	if err := views(ctx, c, shots); err != nil {
		return err
	}
	// A lookup opens by keyboard, and closes by it.
	var open, closed bool
	var walk string
	err := chromedp.Run(ctx,
		emulation.SetDeviceMetricsOverride(1280, 900, 1, false),
		chromedp.Evaluate(`document.querySelector('#lookups button[data-walk]').focus()`, nil),
		chromedp.KeyEvent(kb.Enter),
		chromedp.WaitVisible("#walk[open]", chromedp.ByQuery),
		chromedp.Sleep(time.Second),
		chromedp.Evaluate(`document.getElementById('walk').open`, &open),
		chromedp.Evaluate(`document.getElementById('alone').href`, &walk),
		screenshot(filepath.Join(shots, "walk.png")),
		chromedp.KeyEvent(kb.Escape),
		chromedp.Sleep(300*time.Millisecond),
		chromedp.Evaluate(`!document.getElementById('walk').open`, &closed),
	)
	if err != nil {
		return fmt.Errorf("opening a lookup: %w", err)
	}
	if !open || !closed {
		c.add("a lookup by keyboard: open %t, closed %t", open, closed)
	}
	// A client chosen by a click filters all; a link has the filter; the command line, too.
	err = chromedp.Run(ctx,
		chromedp.Click("#tab-who", chromedp.ByQuery),
		chromedp.Evaluate(
			`delete document.body.dataset.ready; document.querySelector('#clients tr[data-key] [data-pick]').click()`, nil),
		chromedp.WaitReady(`body[data-ready]`, chromedp.ByQuery), read(&s.Chosen),
		chromedp.Evaluate(`command()`, &s.Command),
		chromedp.Reload(), chromedp.WaitReady(`body[data-ready]`, chromedp.ByQuery),
	)
	if err != nil {
		return fmt.Errorf("choosing a client: %w", err)
	}
	var again json.RawMessage
	var bars int
	err = chromedp.Run(ctx, read(&again),
		chromedp.Navigate(walk), chromedp.Evaluate(`document.querySelectorAll('.walk .bar').length`, &bars),
		axe(c, "a walk"))
	if err != nil {
		return fmt.Errorf("a link: %w", err)
	}
	if string(again) != string(s.Chosen) {
		c.add("by its link the page shows something else: %s, not %s", again, s.Chosen)
	}
	if bars == 0 {
		c.add("%s draws no bar", walk)
	}
	s.Wrong = c.list
	return json.NewEncoder(os.Stdout).Encode(s)
}

// unnamed gives what cannot be used with a screen reader or a keyboard: no name, no way to reach it, too little
// contrast.
const unnamed = `(() => {
	const wrong = [], shown = e => e.getClientRects().length > 0;
	for (const e of document.querySelectorAll('button, a, input, select, [role=img], table, section, iframe, dialog')) {
		if (!shown(e)) continue;
		const name = e.getAttribute('aria-label') || e.title || e.textContent.trim() || (e.labels && e.labels[0] && e.labels[0].textContent.trim()) ||
			e.getAttribute('aria-labelledby');
		if (!name) wrong.push('no name: ' + e.outerHTML.slice(0, 80));
	}
	for (const e of document.querySelectorAll('.wide')) if (shown(e) && e.tabIndex < 0) wrong.push('cannot be scrolled by keyboard: ' + e.firstElementChild.id);
	const rgb = s => (s.match(/[\d.]+/g) || []).map(Number);
	const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((a, v, i) => a + v * [.2126, .7152, .0722][i], 0);
	const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > .99) return c; } return [255, 255, 255]; };
	const low = new Set();
	for (const e of document.querySelectorAll('body *')) {
		if (!shown(e) || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.tagName === 'OPTION') continue;
		const a = light(rgb(getComputedStyle(e).color)), b = light(ground(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		if (ratio < 4.5) low.add('contrast ' + ratio.toFixed(1) + ' of ' + e.tagName + '.' + e.className);
	}
	return [...wrong, ...low];
})()`
