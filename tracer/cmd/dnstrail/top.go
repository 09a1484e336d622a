package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/tally"
)

const (
	topWindow = 10 * time.Second
	topLines  = 20
	// topRows is how many lookups are kept at most: of more the last count.
	topRows = 200_000
	// topHead is how many lines of the terminal stand above and below the table's own.
	topHead = 4
)

type topFlags struct {
	source sourceFlags
	by     string
	sort   string
	window time.Duration
	every  time.Duration
	during time.Duration
	once   bool
	lines  int
}

func newTopCommand() *cobra.Command {
	var f topFlags
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show a live table of clients, names, upstreams or places, by rate, time or failures",
		Long: `top counts lookups by client, name, upstream, place (where they ended, and why) and so on, over the last while
(--window), and draws the table anew each second. FAILED are those without an answer and those whose answer
says that the server could not; WAITED is the sum of what all of them took.

It takes lookups from where observe does, with the same flags and filters: a store, an agent, a file (--from),
or this host as root. A lookup counts when it has ended: lost ones come later than others.

Elsewhere than on a terminal, and with --for, it waits for so long (10s if not given) and prints one table;
--once prints what an agent or a store had in the last --window.`,
		Example: `  dnstrail top
  dnstrail top --by place --sort failures
  dnstrail top --by upstream --store http://127.0.0.1:16686
  dnstrail top --by name --namespace shop --for 30s
  dnstrail top --once --window 10m --socket /run/dnstrail/agent.sock`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.source.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.by, "by", string(tally.Client), "what to count by: "+words(tally.Bys))
	fs.StringVar(&f.sort, "sort", string(tally.Rate), "the most of what comes first: "+words(tally.Sorts))
	fs.DurationVar(&f.window, "window", topWindow, "how far back lookups count")
	fs.DurationVar(&f.every, "every", time.Second, "how often the table is drawn")
	fs.DurationVar(&f.during, "for", 0, "wait for so long, and print one table of it")
	fs.BoolVar(&f.once, "once", false, "print what an agent or a store had in the last --window, and end")
	fs.IntVar(&f.lines, "lines", 0, "at most so many lines; what fits on the terminal, or 20, if not given")
	offer(cmd, "by", strs(tally.Bys)...)
	offer(cmd, "sort", strs(tally.Sorts)...)
	return cmd
}

func strs[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, w := range list {
		out[i] = string(w)
	}
	return out
}

func words[T ~string](list []T) string { return strings.Join(strs(list), ", ") }

func (f *topFlags) check(cmd *cobra.Command) error {
	switch {
	case !slices.Contains(tally.Bys, tally.By(f.by)):
		return fmt.Errorf("--by %q: want one of %s", f.by, words(tally.Bys))
	case !slices.Contains(tally.Sorts, tally.Sort(f.sort)):
		return fmt.Errorf("--sort %q: want one of %s", f.sort, words(tally.Sorts))
	case f.window <= 0 || f.every <= 0 || f.during < 0:
		return fmt.Errorf("--window %s, --every %s, --for %s: want more than 0", f.window, f.every, f.during)
	case f.lines < 0:
		return fmt.Errorf("--lines %d: want 0 or more", f.lines)
	case f.once && f.during > 0:
		return errors.New("--once and --for: want one of them")
	case f.during > 0 && cmd.Flags().Changed("window"):
		return errors.New("--window and --for: want one of them")
	}
	return nil
}

func (f *topFlags) run(cmd *cobra.Command) error {
	if err := f.check(cmd); err != nil {
		return err
	}
	filter, err := f.source.filter.filter(cmd)
	if err != nil {
		return err
	}
	from, client, err := f.source.open(cmd)
	if err != nil {
		return err
	}
	w := tally.Window{Max: topRows}
	if from == fromFile {
		if err := flagsGo(cmd.Flags(), "--from", "once", "for", "window", "every"); err != nil {
			return err
		}
		return f.file(cmd, filter, &w)
	}
	if f.once && from == fromKernel {
		return errors.New("--once needs --socket, --store or a cluster: only a running agent or a store knows the past")
	}
	out, live := cmd.OutOrStdout().(*os.File)
	live = live && !f.once && f.during == 0 && term.IsTerminal(int(out.Fd()))
	if !live && !f.once && f.during == 0 {
		f.during = topWindow
	}
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	if f.during > 0 {
		ctx, stop = context.WithTimeout(ctx, f.during)
		defer stop()
		f.window = f.during
	}
	w.Keep = f.window + f.source.watch.giveUp // a lost lookup is told when it is given up
	var mu sync.Mutex
	add := func(r *output.Row) {
		if r == nil {
			return
		}
		mu.Lock()
		w.Add(r)
		mu.Unlock()
	}
	begin := time.Now()
	var drawing sync.WaitGroup
	if live {
		drawing.Go(func() { f.draw(ctx, stop, out, &w, &mu) })
	}
	switch from {
	case fromKernel:
		err = f.source.watchRows(ctx, cmd, filter, add)
	default:
		past := -1
		if f.once || live {
			filter.Since = begin.Add(-f.window)
			past = 0
		}
		err = client.Lookups(ctx, filter, past, !f.once, func(r *output.Row) error { add(r); return nil })
	}
	stop()
	drawing.Wait()
	if err != nil {
		return err
	}
	if live {
		return nil
	}
	long := f.window
	if f.during > 0 {
		long = min(long, time.Since(begin)) // it may have been ended sooner
	} else {
		begin = begin.Add(-long)
	}
	rows, dropped := w.Rows(time.Now())
	return f.print(cmd.OutOrStdout(), rows, begin, long, columns(cmd), cmp.Or(f.lines, topLines), dropped)
}

// file prints the table of all rows of a file.
func (f *topFlags) file(cmd *cobra.Command, filter *output.Filter, w *tally.Window) error {
	if err := readRows(cmd, f.source.from, filter, w.Add); err != nil {
		return err
	}
	rows, dropped := w.Rows(time.Now())
	var first, last time.Time
	for i, r := range rows {
		if i == 0 || r.Time.Before(first) {
			first = r.Time
		}
		if end := r.Time.Add(time.Duration(r.Total)); end.After(last) {
			last = end
		}
	}
	return f.print(cmd.OutOrStdout(), rows, first, last.Sub(first), columns(cmd), cmp.Or(f.lines, topLines), dropped)
}

func (f *topFlags) print(w io.Writer, rows []*output.Row, from time.Time, long time.Duration, width, lines int,
	dropped uint64) error {
	_, err := io.WriteString(w, f.table(rows, from, long, width, lines, dropped))
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// table writes the head and the table of rows.
func (f *topFlags) table(rows []*output.Row, from time.Time, long time.Duration, width, lines int,
	dropped uint64) string {
	n, failed := 0, 0
	for _, r := range rows {
		if r.Own || r.Connect {
			continue
		}
		n++
		if tally.Failed(r.Result) {
			failed++
		}
	}
	head := fmt.Sprintf("%d lookups in %s, %d failed; by %s, the most %s first", n, long.Round(100*time.Millisecond),
		failed, f.by, f.sort)
	if dropped > 0 {
		head += fmt.Sprintf("; %d further ones do not count: too many", dropped)
	}
	return head + "\n\n" + tally.Table(tally.Lines(rows, tally.By(f.by), tally.Sort(f.sort), from, long), tally.By(f.by),
		width, lines)
}

// What a terminal is told (ECMA-48): to the upper left corner; clear to the end of the line, of the screen.
const (
	toCorner   = "\x1b[H"
	clearLine  = "\x1b[K"
	clearBelow = "\x1b[J"
)

// draw draws the table again and again, until ctx ends or nobody sees it.
func (f *topFlags) draw(ctx context.Context, stop func(), out *os.File, w *tally.Window, mu *sync.Mutex) {
	ticker := time.NewTicker(f.every)
	defer ticker.Stop()
	screen := "\x1b[2J"
	for {
		width, height, err := term.GetSize(int(out.Fd()))
		if err != nil {
			width, height = 0, 0
		}
		now := time.Now()
		from := now.Add(-f.window)
		mu.Lock()
		rows, dropped := w.Rows(now)
		rows = slices.Clone(rows)
		mu.Unlock()
		rows = slices.DeleteFunc(rows, func(r *output.Row) bool { return r.Time.Add(time.Duration(r.Total)).Before(from) })
		lines := f.lines
		if lines == 0 {
			lines = max(1, height-topHead)
		}
		text := f.table(rows, from, f.window, width-1, lines, dropped)
		screen += toCorner + strings.ReplaceAll(text, "\n", clearLine+"\n") + clearBelow
		if _, err := io.WriteString(out, screen); err != nil {
			stop()
			return
		}
		screen = ""
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
