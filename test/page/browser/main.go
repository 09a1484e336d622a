// Command browser opens a page of `dnstrail explain -o html` in a headless Chromium and reports what is wrong with it:
// messages on the console, requests for anything beyond the file itself, bars that do not keep to the scale, overflow
// at the width of a desk and of a telephone.
//
//	browser store URL DIRECTORY    uses the page that a store serves, and prints what it showed as JSON
//	browser demo URL DIRECTORY     finds by clicking what is wrong in the lab of make demo PAGE=1, and prints it as JSON
//	browser PAGE.html DIRECTORY    screenshots go to the directory; exit status 1 and the list if something is wrong
package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

type complaints struct {
	mu   sync.Mutex
	list []string
}

func (c *complaints) add(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, fmt.Sprintf(format, args...))
}

func main() {
	if use := map[string]func(url, shots string) error{"store": store, "demo": demo}; len(os.Args) == 4 &&
		use[os.Args[1]] != nil {
		if err := use[os.Args[1]](os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "browser:", err)
			os.Exit(2)
		}
		return
	}
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: browser PAGE.html DIRECTORY, or browser store|demo URL DIRECTORY")
		os.Exit(2)
	}
	wrong, err := check(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "browser:", err)
		os.Exit(2)
	}
	for _, w := range wrong {
		fmt.Fprintln(os.Stderr, w)
	}
	if len(wrong) > 0 {
		os.Exit(1)
	}
}

// measure gives, of each visible bar, its distance from the left end of its track and its width, as shares of the
// track, beside what its style says.
const measure = `[...document.querySelectorAll('.bar')].filter(b => getComputedStyle(b).display != 'none').map(b => {
	const t = b.parentElement.getBoundingClientRect(), r = b.getBoundingClientRect();
	return {left: (r.left - t.left) / t.width * 100, width: r.width / t.width * 100, pixel: 100 / t.width,
		wantLeft: parseFloat(b.style.left), wantWidth: parseFloat(b.style.width)};
})`

// chain gives the states of the stages as they are seen, from left to right and from top to bottom.
const chain = `[...document.querySelectorAll('.stages li')].map(e => [e.getBoundingClientRect(), e.className]).sort((a, b) => a[0].top - b[0].top || a[0].left - b[0].left).map(e => e[1])`

type bar struct{ Left, Width, Pixel, WantLeft, WantWidth float64 }

func check(file, shots string) ([]string, error) {
	file, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	url := "file://" + file
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU)
	ctx, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	defer stop()
	ctx, cancel := chromedp.NewContext(ctx)
	defer cancel()
	ctx, cancelTimeout := context.WithTimeout(ctx, time.Minute)
	defer cancelTimeout()

	var c complaints
	chromedp.ListenTarget(ctx, func(ev any) {
		switch e := ev.(type) {
		case *runtime.EventConsoleAPICalled:
			c.add("console.%s", e.Type)
		case *runtime.EventExceptionThrown:
			c.add("exception: %s", e.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			c.add("log: %s: %s", e.Entry.Level, e.Entry.Text)
		case *network.EventRequestWillBeSent:
			if e.Request.URL != url && e.Request.URL != "data:," {
				c.add("request for %s", e.Request.URL)
			}
		case *page.EventJavascriptDialogOpening:
			c.add("dialog: %s", e.Message)
		}
	})
	if err := chromedp.Run(ctx, network.Enable(), log.Enable(), runtime.Enable(), chromedp.Navigate(url)); err != nil {
		return nil, fmt.Errorf("opening %s: %w", url, err)
	}

	for _, view := range []struct {
		name          string
		width, height int64
		dark          bool
	}{{"desk", 1200, 1000, false}, {"desk-dark", 1200, 1000, true}, {"telephone", 400, 800, false}} {
		scheme := "light"
		if view.dark {
			scheme = "dark"
		}
		var overflow bool
		var bars []bar
		var png string
		err := chromedp.Run(ctx,
			emulation.SetDeviceMetricsOverride(view.width, view.height, 1, false),
			emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}),
			chromedp.Evaluate(`document.documentElement.scrollWidth > document.documentElement.clientWidth`, &overflow),
			chromedp.Evaluate(measure, &bars),
			chromedp.ActionFunc(func(ctx context.Context) error {
				b, err := page.CaptureScreenshot().WithCaptureBeyondViewport(true).Do(ctx)
				png = base64.StdEncoding.EncodeToString(b)
				return err
			}),
			axe(&c, view.name),
		)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", view.name, err)
		}
		if overflow {
			c.add("%s: wider than the window", view.name)
		}
		judge(&c, view.name, bars)
		b, err := base64.StdEncoding.DecodeString(png)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(shots, view.name+".png"), b, 0o644); err != nil {
			return nil, err
		}
	}

	var stages []string
	if err := chromedp.Run(ctx, chromedp.Evaluate(chain, &stages)); err != nil {
		return nil, fmt.Errorf("reading the stages: %w", err)
	}
	if i := slices.Index(stages, "lost"); i >= 0 && slices.Contains(stages[i:], "passed") || len(stages) > 0 && i < 0 {
		c.add("stages in an order that no packet takes: %s", strings.Join(stages, " "))
	}

	var hasNear bool
	if err := chromedp.Run(ctx, chromedp.Evaluate(`!!document.getElementById('near')`, &hasNear)); err != nil {
		return nil, fmt.Errorf("looking for the second scale: %w", err)
	}
	if hasNear {
		var bars []bar
		if err := chromedp.Run(ctx, chromedp.Click("#near", chromedp.ByQuery),
			chromedp.Evaluate(measure, &bars)); err != nil {
			return nil, fmt.Errorf("choosing the second scale: %w", err)
		}
		judge(&c, "the packet's way", bars)
	}
	var shown bool
	if err := chromedp.Run(ctx, chromedp.Click("details summary", chromedp.ByQuery),
		chromedp.Evaluate(
			`document.querySelector('details').open && document.querySelector('.attributes').getBoundingClientRect().height > 0`, &shown)); err != nil {
		return nil, fmt.Errorf("opening a line: %w", err)
	}
	if !shown {
		c.add("a line does not open on a click")
	}
	return c.list, nil
}

// judge holds the drawn bars against what they should be, to a pixel's rounding; a bar is at least two pixels wide.
func judge(c *complaints, view string, bars []bar) {
	if len(bars) == 0 {
		c.add("%s: no bar is drawn", view)
	}
	for i, b := range bars {
		want := max(b.WantWidth, 2*b.Pixel)
		if abs(b.Left-b.WantLeft) > 1.5*b.Pixel || abs(b.Width-want) > 1.5*b.Pixel {
			c.add("%s: bar %d from %.2f %% for %.2f %%, want %.2f and %.2f", view, i, b.Left, b.Width, b.WantLeft, want)
		}
	}
}

func abs(f float64) float64 { return max(f, -f) }
