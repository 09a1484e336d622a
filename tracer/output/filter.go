package output

import (
	"fmt"
	"path"
	"strings"
	"time"
)

// Filter chooses rows. Its conditions hold together; within one, any value will do, and those that start with "!" must
// not hold. The zero value takes everything.
type Filter struct {
	// Lost, if not nil, takes lookups without an answer only, or those with one only.
	Lost *bool
	// Slow takes lookups that took at least this long; 0 takes all.
	Slow time.Duration
	// Rcodes, Types, Names, Clients, Namespaces and Processes are shell patterns (path.Match), case does not matter. A
	// name needs no final dot, and * matches dots. A client is an address, a pod as namespace/pod or pod alone, a workload
	// or a node.
	Rcodes, Types, Names, Clients, Namespaces, Processes []string
	// Wheres and Causes are patterns, too: of the stage and the cause of the verdict.
	Wheres, Causes []string
	// Since leaves out what began before it; zero takes all.
	Since time.Time
}

// Check says whether the patterns can be read; the error names the first that cannot.
func (f *Filter) Check() error {
	for _, list := range [][]string{f.Rcodes, f.Types, f.Names, f.Clients, f.Namespaces, f.Processes, f.Wheres, f.Causes} {
		for _, p := range list {
			p = strings.TrimPrefix(p, "!")
			if p == "" {
				return fmt.Errorf("an empty pattern")
			}
			if _, err := path.Match(p, ""); err != nil {
				return fmt.Errorf("pattern %q: %w", p, err)
			}
		}
	}
	return nil
}

// Takes says whether a row is chosen.
func (f *Filter) Takes(r *Row) bool {
	c := &r.Client
	return (f.Lost == nil || *f.Lost == (r.Result == Lost)) &&
		time.Duration(r.Total) >= f.Slow &&
		!r.Time.Before(f.Since) &&
		holds(f.Rcodes, r.Result) &&
		holds(f.Types, r.Type) &&
		f.TakesName(r.Name) &&
		holds(f.Namespaces, c.Namespace) &&
		holds(f.Processes, c.Process) &&
		holds(f.Wheres, r.Verdict.Where) &&
		holds(f.Causes, r.Verdict.Cause) &&
		holds(f.Clients, c.host(), c.Namespace+"/"+c.Pod, c.Pod, c.Namespace+"/"+c.Workload, c.Workload, c.Node)
}

// TakesName says whether the names that are chosen are all, or a row's name is one of them.
func (f *Filter) TakesName(name string) bool {
	return len(f.Names) == 0 || holds(f.Names, strings.TrimSuffix(name, "."), name)
}

// holds says whether any of the values matches any of the patterns, and none of them a negated one.
func holds(patterns []string, values ...string) bool {
	found, wanted := false, false
	for _, p := range patterns {
		p, not := strings.CutPrefix(p, "!")
		m := false
		for _, v := range values {
			m = m || v != "" && match(p, v)
		}
		if not && m {
			return false
		}
		if !not {
			wanted = true
			found = found || m
		}
	}
	return found || !wanted
}

// match is path.Match without its notion of a path: a star matches slashes, too.
func match(pattern, s string) bool {
	hide := strings.NewReplacer("/", "\x01")
	ok, err := path.Match(hide.Replace(strings.ToLower(pattern)), hide.Replace(strings.ToLower(s)))
	return err == nil && ok
}
