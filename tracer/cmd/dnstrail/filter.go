package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/verdict"
)

// filterFlags are the flags that choose rows.
type filterFlags struct {
	lost bool
	slow time.Duration

	rcodes, types, names, clients, namespaces, processes, wheres, causes []string
}

func (f *filterFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.lost, "lost", false, "only lookups without an answer; --lost=false: only those with one")
	fs.DurationVar(&f.slow, "slow", 0, "only lookups that took at least this long")
	fs.StringSliceVar(&f.rcodes, "rcode", nil, "only with this result: NOERROR, NXDOMAIN, SERVFAIL, ..., LOST")
	fs.StringSliceVar(&f.types, "type", nil, "only of this type: A, AAAA, ...")
	fs.StringSliceVar(&f.names, "name", nil, "only for this name; * matches dots, too")
	fs.StringSliceVar(&f.clients, "client", nil, "only of this client: namespace/pod, pod, workload, node or address")
	fs.StringSliceVarP(&f.namespaces, "namespace", "n", nil, "only of pods in this namespace")
	fs.StringSliceVar(&f.processes, "process", nil, "only of processes with this name")
	fs.StringSliceVar(&f.wheres, "where", nil, "only those that ended at this stage: answered, client, node, "+
		"between-nodes, ...")
	fs.StringSliceVar(&f.causes, "cause", nil, "only those that ended for this cause: policy-drop, no-listener, "+
		"timeout, ...")
}

// filterNames are the flags that choose rows.
var filterNames = []string{"lost", "slow", "rcode", "type", "name", "client", "namespace", "process", "where", "cause"}

// changed gives the first flag that was given; "" if none was.
func (f *filterFlags) changed(fs *pflag.FlagSet) string {
	for _, name := range filterNames {
		if fs.Changed(name) {
			return name
		}
	}
	return ""
}

// onlyLost says that --lost was given and nothing else.
func (f *filterFlags) onlyLost(fs *pflag.FlagSet) bool {
	others := 0
	for _, name := range filterNames {
		if fs.Changed(name) {
			others++
		}
	}
	return f.lost && others == 1
}

// commonTypes are what the shell completes a type with; any other can be given.
var commonTypes = []string{"A", "AAAA", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "TXT"}

// complete offers the values that are known beforehand.
func (f *filterFlags) complete(cmd *cobra.Command) {
	offer(cmd, "rcode", output.Lost, "NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED", "FORMERR", "NOTIMP")
	offer(cmd, "type", commonTypes...)
	offer(cmd, "where", whereWords()...)
	offer(cmd, "cause", causeWords()...)
	for _, flag := range []string{"name", "client", "namespace", "process", "slow"} {
		offer(cmd, flag) // nothing that is known here, and no file
	}
}

// offer sets what the shell completes a flag's value with.
func offer(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(
		flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // no such flag
	}
}

func whereWords() []string { return append([]string{trace.Answered}, trace.Stages...) }

func causeWords() []string {
	words := make([]string, len(verdict.Causes))
	for i, c := range verdict.Causes {
		words[i] = string(c)
	}
	return words
}

// known says whether values are among the words that there are; a pattern may be anything.
func known(flag string, values []string, words []string) error {
	for _, v := range values {
		word := strings.ToLower(strings.TrimPrefix(v, "!"))
		if !strings.ContainsAny(word, "*?[\\") && !slices.Contains(words, word) {
			return fmt.Errorf("--%s %s: want one of %s", flag, v, strings.Join(words, ", "))
		}
	}
	return nil
}

func (f *filterFlags) filter(cmd *cobra.Command) (*output.Filter, error) {
	o := &output.Filter{
		Slow: f.slow, Rcodes: f.rcodes, Types: f.types, Names: f.names, Clients: f.clients, Namespaces: f.namespaces,
		Processes: f.processes,
		Wheres:    f.wheres, Causes: f.causes,
	}
	if cmd.Flags().Changed("lost") {
		o.Lost = &f.lost
	}
	if f.slow < 0 {
		return nil, fmt.Errorf("--slow %s: want 0 or more", f.slow)
	}
	for _, c := range []struct {
		flag string
		list []string
	}{
		{"rcode", f.rcodes}, {"type", f.types}, {"name", f.names}, {"client", f.clients}, {"namespace",
			f.namespaces}, {"process", f.processes},
		{"where", f.wheres}, {"cause", f.causes},
	} {
		if err := (&output.Filter{Names: c.list}).Check(); err != nil {
			return nil, fmt.Errorf("--%s: %w", c.flag, err)
		}
	}
	if err := known("where", f.wheres, whereWords()); err != nil {
		return nil, err
	}
	return o, known("cause", f.causes, causeWords())
}
