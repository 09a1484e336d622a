package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// found is what the page showed after each of the ways to find something.
type found struct {
	// All is what it showed at first.
	All json.RawMessage
	// Pair is what it showed when the red cell of the table from node to node was chosen; Upstream, when the first of the
	// upstreams by p50 was; Client, when the first of the clients by search path was.
	Pair, Upstream, Client json.RawMessage
	// What was chosen of each.
	ChosenPair, ChosenUpstream, ChosenClient string
	Wrong                                    []string
}

// choose clicks what a selector finds, and waits until the page shows what is chosen by it.
func choose(selector string) chromedp.Action {
	return chromedp.Tasks{
		chromedp.WaitVisible(selector, chromedp.ByQuery),
		chromedp.Evaluate(`delete document.body.dataset.ready; document.querySelector(`+quoted(selector)+`).click()`, nil),
		chromedp.WaitReady(`body[data-ready]`, chromedp.ByQuery),
	}
}

func quoted(text string) string {
	b, err := json.Marshal(text)
	if err != nil {
		panic(err) // never: it is a string
	}
	return string(b)
}

// sortBy clicks the head of a table's column.
func sortBy(table, column string) chromedp.Action {
	return chromedp.Evaluate(`[...document.querySelectorAll('#`+table+` th button')].find(b => b.textContent === '`+column+
		`').click()`, nil)
}

// demo finds what is wrong in the lab of make demo PAGE=1 as somebody would who looks at the page, and prints it.
func demo(url, shots string) error {
	ctx, end, c := session(url, 8*time.Minute)
	defer end()
	var f found
	first := func(table string) string {
		return "#" + table + " tr[data-key] [data-pick]"
	}
	all := "#clear"
	err := chromedp.Run(ctx, network.Enable(), log.Enable(), runtime.Enable(),
		emulation.SetDeviceMetricsOverride(1280, 900, 1, false),
		chromedp.Navigate(url), chromedp.WaitReady(`body[data-ready]`, chromedp.ByQuery), read(&f.All))
	if err != nil {
		return fmt.Errorf("opening %s: %w", url, err)
	}
	if err := views(ctx, c, shots); err != nil {
		return err
	}
	err = chromedp.Run(ctx,
		emulation.SetDeviceMetricsOverride(1280, 900, 1, false),
		chromedp.Click("#tab-now", chromedp.ByQuery),
		chromedp.Evaluate(`document.querySelector('#matrix td.lossy').dataset.pair`, &f.ChosenPair),
		choose("#matrix td.lossy button"), read(&f.Pair), screenshot(filepath.Join(shots, "pair.png")),
		choose(all),
		chromedp.Click("#tab-who", chromedp.ByQuery), sortBy("upstreams", "p50"),
		chromedp.Evaluate(`document.querySelector('#upstreams tr[data-key]').dataset.key`, &f.ChosenUpstream),
		choose(first("upstreams")), read(&f.Upstream), screenshot(filepath.Join(shots, "upstream.png")),
		choose(all), sortBy("clients", "search path"),
		chromedp.Evaluate(`document.querySelector('#clients tr[data-key]').dataset.key`, &f.ChosenClient),
		choose(first("clients")), read(&f.Client), screenshot(filepath.Join(shots, "client.png")),
	)
	if err != nil {
		return fmt.Errorf("looking for what is wrong: %w", err)
	}
	f.Wrong = c.list
	return json.NewEncoder(os.Stdout).Encode(f)
}
