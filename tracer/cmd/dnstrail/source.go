package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/pipeline"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
)

// sourceFlags are the flags that say whose rows are taken: those of observe, and a file of observe's.
type sourceFlags struct {
	watch     watchFlags
	filter    filterFlags
	socket    string
	store     string
	tokenFile string
	from      string
	here      bool
	// context of the kubeconfig; see reach.
	context string
}

func (f *sourceFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	f.watch.register(fs)
	f.filter.register(fs)
	fs.StringVar(&f.socket, "socket", "", "ask the agent that listens on this Unix socket, instead of watching the kernel")
	fs.StringVar(&f.tokenFile, "token-file", "", "file of the token to show to the store")
	fs.StringVar(&f.store, "store", "", "ask the dnstrail store at this URL for the lookups of the whole cluster")
	fs.StringVar(&f.from, "from", "", "read the rows of observe -o jsonl from this file, - for standard input")
	fs.BoolVar(&f.here, "here", false, "watch this host, even where a kubeconfig names a cluster")
	fs.StringVar(&f.context, "context", "", "context of the kubeconfig whose cluster is asked")
	f.filter.complete(cmd)
}

// rowSource is where rows come from.
type rowSource int

const (
	fromKernel rowSource = iota
	fromAPI              // an agent or a store: client is who answers
	fromFile
)

// open checks the flags and tells where rows come from.
func (f *sourceFlags) open(cmd *cobra.Command) (rowSource, *rowapi.Client, error) {
	named := ""
	for _, flag := range []string{"socket", "store", "from", "here"} {
		if !cmd.Flags().Changed(flag) {
			continue
		}
		if named != "" {
			return 0, nil, fmt.Errorf("--%s and --%s: want one of them", named, flag)
		}
		if named = flag; cmd.Flags().Lookup(flag).Value.String() == "" {
			return 0, nil, fmt.Errorf("--%s is empty", flag)
		}
	}
	if other := f.watch.changed(cmd.Flags()); other != "" && named != "" && named != "here" {
		return 0, nil, fmt.Errorf("--%s is for watching the kernel here, and does not go with --%s", other, named)
	} else if named == "" && other == "" {
		var err error
		if f.store, err = reach(cmd, f.context); err != nil {
			return 0, nil, err
		}
	}
	switch {
	case f.from != "":
		return fromFile, nil, nil
	case f.socket != "":
		return fromAPI, rowapi.NewSocketClient(f.socket), nil
	case f.store != "":
		hc, err := access.Client(f.tokenFile)
		if err != nil {
			return 0, nil, fmt.Errorf("--token-file: %w", err)
		}
		client, err := rowapi.NewStoreClient(f.store, hc)
		if err != nil {
			return 0, nil, fmt.Errorf("--store: %w", err)
		}
		return fromAPI, client, nil
	}
	return fromKernel, nil, nil
}

// maxLine is how long a line of jsonl may be.
const maxLine = 16 << 20

// readRows gives each row of a file that observe wrote as jsonl and that the filter takes.
func readRows(cmd *cobra.Command, name string, filter *output.Filter, give func(*output.Row)) error {
	in := cmd.InOrStdin()
	if name != "-" {
		file, err := os.Open(name) // #nosec G304 -- the user's own choice
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	corrections := output.Corrections{Filter: filter}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		if len(lines.Bytes()) == 0 {
			continue
		}
		row := new(output.Row)
		if err := json.Unmarshal(lines.Bytes(), row); err != nil {
			return fmt.Errorf("%s, line %d: no row of observe -o jsonl: %w", name, n, err)
		}
		if row.Schema != output.SchemaVersion {
			return fmt.Errorf("%s, line %d: schema %d, want %d", name, n, row.Schema, output.SchemaVersion)
		}
		if corrections.Takes(row) {
			give(row)
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// watchRows gives each row of this host's lookups that the filter takes, and now and then nil, until ctx ends.
func (f *sourceFlags) watchRows(ctx context.Context, cmd *cobra.Command, filter *output.Filter,
	give func(*output.Row)) error {
	o, closeAll, err := f.watch.options()
	if err != nil {
		return err
	}
	defer closeAll()
	corrections := output.Corrections{Filter: filter}
	o.Result = func(r pipeline.Result) {
		if r.Lookup.Confirms {
			return
		}
		if row := output.NewRow(r.Lookup, r.Verdict, r.Origin, f.watch.node, f.watch.guard); corrections.Takes(row) {
			give(row)
		}
	}
	o.Tick = func(time.Time) { give(nil) }
	p, err := pipeline.Open(o)
	if err != nil {
		return err
	}
	defer p.Close()
	for _, m := range p.Missing() {
		fmt.Fprintln(cmd.ErrOrStderr(), "dnstrail: without", m)
	}
	err = p.Run(ctx)
	footer(cmd.ErrOrStderr(), p.Stats())
	return err
}

// flagsGo says which of the flags go with a source, of those that were given.
func flagsGo(fs *pflag.FlagSet, with string, not ...string) error {
	if i := slices.IndexFunc(not, fs.Changed); i >= 0 {
		return fmt.Errorf("--%s does not go with %s", not[i], with)
	}
	return nil
}
