package main

import (
	"context"
	"fmt"
	"os"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// axeFile names the environment variable that says where axe-core's script is. Without it nothing is asked of axe.
const axeFile = "DNSTRAIL_AXE"

// rules is what axe-core is asked for: what it finds serious or worse. What it says of elements that move is left
// alone.
const rules = `axe.run(document, {resultTypes: ["violations"], iframes: false}).then(r => r.violations
	.filter(v => v.impact === "serious" || v.impact === "critical")
	.map(v => v.impact + " " + v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map(n => n.html.slice(0, 120)).join(" ")))`

// axe has axe-core look at the page as it is now, and complains of what it finds.
func axe(c *complaints, view string) chromedp.Action {
	return chromedp.ActionFunc(func(ctx context.Context) error {
		file := os.Getenv(axeFile)
		if file == "" {
			return nil
		}
		script, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var found []string
		if err := chromedp.Evaluate(string(script)+";undefined", nil).Do(ctx); err != nil {
			return fmt.Errorf("axe-core: %w", err)
		}
		wait := func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }
		if err := chromedp.Evaluate(rules, &found, wait).Do(ctx); err != nil {
			return fmt.Errorf("axe-core: %w", err)
		}
		for _, what := range found {
			c.add("%s: axe: %s", view, what)
		}
		return nil
	})
}
