package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

// kept gives what the boots of each kernel found out, of those that were booted.
func kept(cache string) (results []*result, err error) {
	for _, k := range kernels {
		records, err := recorded(k, cache)
		if err != nil {
			return nil, err
		}
		if records != nil {
			results = append(results, &result{kernel: k, records: records})
		}
	}
	return results, nil
}

// recorded gives what is kept of a kernel's boots; nil if nothing is.
func recorded(k kernel, cache string) (records []job.Record, err error) {
	text, err := os.ReadFile(filepath.Join(cache, k.name+".json")) // #nosec G304 -- ours
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &records); err != nil {
		return nil, fmt.Errorf("what is kept of %s: %w", k.name, err)
	}
	return records, nil
}

// merged adds to what a boot found out what earlier ones of the same release did, of rows and the demo that this one
// had none of: on an emulated processor one boot for everything takes long.
func merged(before, now []job.Record) []job.Record {
	release := func(of []job.Record) string {
		for _, r := range of {
			if r.Boot != nil {
				return r.Boot.Release
			}
		}
		return ""
	}
	all := slices.Clone(now)
	if release(before) != release(now) {
		return all
	}
	for _, old := range before {
		if old.Row == nil && old.Demo == nil && old.Doctor == nil {
			continue
		}
		again := slices.ContainsFunc(now, func(r job.Record) bool {
			return old.Demo != nil && r.Demo != nil || old.Doctor != nil && r.Doctor != nil || old.Row != nil &&
				r.Row != nil && old.Row.Fault == r.Row.Fault && old.Row.Family == r.Row.Family
		})
		if !again {
			all = append(all, old)
		}
	}
	return all
}

//go:embed preface.md
var preface string

// document is docs/kernels.md.
func document(results []*result) string {
	var b strings.Builder
	b.WriteString(preface)
	b.WriteString("## What was booted\n\n")
	b.WriteString("| kernel | loaded and attached in | demo | rows right | without |\n| --- | --- | --- | --- | --- |\n")
	for _, r := range results {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(r.line(), " | "))
	}
	b.WriteString("\n## The rows\n\nEmpty: right. Otherwise what was said in place of it, or what went wrong.\n\n")
	header(&b, "row", results)
	for _, name := range rows(results) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, r := range results {
			fmt.Fprintf(&b, " %s |", r.cell(name))
		}
		b.WriteByte('\n')
	}
	ways(&b, results)
	b.WriteString("\n## The programs\n\nInstructions in the kernel, and how many the verifier walked to accept them ")
	b.WriteString("(kernels before 5.16 do not say).\n\n")
	header(&b, "program", results)
	var names []string
	for _, r := range results {
		for _, p := range r.programs() {
			if !slices.Contains(names, p.Name) {
				names = append(names, p.Name)
			}
		}
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "| %s |", name)
		for _, r := range results {
			b.WriteByte(' ')
			for _, p := range r.programs() {
				if p.Name != name {
					continue
				}
				fmt.Fprint(&b, p.Instructions)
				if p.Verified > 0 {
					fmt.Fprintf(&b, ", %d", p.Verified)
				}
			}
			b.WriteString(" |")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func header(b *strings.Builder, first string, results []*result) {
	fmt.Fprintf(b, "| %s |", first)
	for _, r := range results {
		fmt.Fprintf(b, " %s |", r.name)
	}
	b.WriteString("\n|" + strings.Repeat(" --- |", len(results)+1) + "\n")
}

// ways writes the hops of one lookup over each path, by the first kernel that has them.
func ways(b *strings.Builder, results []*result) {
	told := map[string]bool{}
	for _, r := range results {
		for _, rec := range r.records {
			row := rec.Row
			if row == nil || row.Way == "" || told[row.Fault] {
				continue
			}
			if len(told) == 0 {
				b.WriteString("\n## The hops\n\nOf one lookup over each path: devices that it left by (>) and came in by, the ")
				b.WriteString("answer's behind the slash, a\ntunnel's outer packet in parentheses, and in capitals where it was ")
				b.WriteString("dropped.\n\n| path | of | hops |\n| --- | --- | --- |\n")
			}
			told[row.Fault] = true
			fmt.Fprintf(b, "| %s | %s | %s |\n", row.Fault, row.Judged, strings.ReplaceAll(row.Way, "|", "/"))
		}
	}
}

// rows gives the names of all rows, with their family, in the order in which they were run.
func rows(results []*result) (names []string) {
	for _, r := range results {
		for _, rec := range r.records {
			if rec.Row != nil && !slices.Contains(names, rec.Row.Fault+", "+rec.Row.Family) {
				names = append(names, rec.Row.Fault+", "+rec.Row.Family)
			}
		}
	}
	return names
}

func (r *result) programs() []job.Program {
	for _, rec := range r.records {
		if rec.Load != nil {
			return rec.Load.Programs
		}
	}
	return nil
}

// line is the kernel's line of the first table.
func (r *result) line() []string {
	cells := []string{r.name, "-", "-", "-", ""}
	right, all := 0, 0
	for _, rec := range r.records {
		switch {
		case rec.Boot != nil:
			cells[0] = rec.Boot.Release + " (" + r.arch + ")"
		case rec.Load != nil && rec.Load.Error != "":
			cells[1] = "not loaded"
		case rec.Load != nil:
			cells[1] = fmt.Sprintf("%.1f s", float64(rec.Load.Milliseconds)/1000)
			cells[4] = strings.Join(rec.Load.Missing, "; ")
		case rec.Demo != nil && rec.Demo.OK:
			cells[2] = "all right"
		case rec.Demo != nil:
			cells[2] = "not right"
		case rec.Row != nil && rec.Row.Absent == "":
			all++
			if rec.Row.Right {
				right++
			}
		}
	}
	if all > 0 {
		cells[3] = fmt.Sprintf("%d of %d", right, all)
	}
	return cells
}

// cell is what a kernel says of a row.
func (r *result) cell(name string) string {
	for _, rec := range r.records {
		row := rec.Row
		if row == nil || row.Fault+", "+row.Family != name {
			continue
		}
		switch {
		case row.Right:
			return ""
		case row.Absent != "":
			return row.Absent
		}
		return strings.ReplaceAll(row.Problem, "|", "/")
	}
	return "not run"
}
