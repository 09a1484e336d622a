// Package job is what the machine that boots a kernel and the machine that is booted say to each other.
package job

import (
	"encoding/json"
	"slices"
	"strings"
)

// Path is where the booted machine finds its [Job].
const Path = "/job.json"

// Marker begins each line of the booted machine's console that is a [Record]. Everything else there is for people.
const Marker = "@@dnstrail "

// Job is what the booted machine does, in order.
type Job struct {
	Doctor bool       // run dnstrail doctor
	Demo   bool       // run the demo
	Faults [][]string // arguments of test/faults, one run each
	Paths  string     // which data paths to try, a regular expression; none if empty
}

// Record is what the booted machine found out. One of the fields is set.
type Record struct {
	Boot   *Boot   `json:"boot,omitempty"`
	Load   *Load   `json:"load,omitempty"`
	Doctor *Doctor `json:"doctor,omitempty"`
	Demo   *Demo   `json:"demo,omitempty"`
	Row    *Row    `json:"row,omitempty"`
	Kernel *Kernel `json:"kernel,omitempty"`
	End    bool    `json:"end,omitempty"`
	// Problem is what kept the machine from doing a part of its job.
	Problem string `json:"problem,omitempty"`
}

// Boot is the kernel as it came up.
type Boot struct {
	Release string  `json:"release"` // as uname(2) gives it
	Seconds float64 `json:"seconds"` // since the kernel started
}

// Load is how the eBPF programs were loaded and attached.
type Load struct {
	Error        string    `json:"error,omitempty"`
	Missing      []string  `json:"missing,omitempty"` // what is done without, in dnstrail's words
	Refused      []string  `json:"refused,omitempty"` // features, and the kernel's last word on each
	Milliseconds int64     `json:"ms"`
	Programs     []Program `json:"programs,omitempty"`
}

// InfersCauses says that the kernel gives no reasons for drops.
func (l *Load) InfersCauses() bool {
	return slices.ContainsFunc(l.Missing, func(m string) bool { return strings.HasPrefix(m, "the reasons of drops") })
}

// Program is one eBPF program in the kernel.
type Program struct {
	Name         string `json:"name"`
	Instructions int    `json:"instructions"` // after the kernel took out what it never runs
	Verified     uint32 `json:"verified"`     // instructions that the verifier walked; 0 before 5.16, which do not say
}

// Doctor is what dnstrail doctor printed.
type Doctor struct {
	Text string `json:"text"`
}

// Demo is how the demo ended.
type Demo struct {
	OK   bool   `json:"ok"`
	Last string `json:"last"` // its last line
}

// Row is a row of the fault matrix, as test/faults writes it with -jsonl.
type Row struct {
	Fault     string  `json:"fault"`
	Setting   string  `json:"setting,omitempty"` // where agents looked from
	Family    string  `json:"family"`
	Expected  string  `json:"expected"` // where/cause, as all of these
	Observed  string  `json:"observed"`
	Traced    string  `json:"traced"`
	Explained string  `json:"explained"`
	Judged    string  `json:"judged,omitempty"` // where/cause and certainty, as one who judged has it
	Certainty string  `json:"certainty,omitempty"`
	Text      string  `json:"text,omitempty"`
	Right     bool    `json:"right"`
	Seconds   float64 `json:"seconds"` // until the right verdict; 0 if it never came
	Problem   string  `json:"problem,omitempty"`
	Absent    string  `json:"absent,omitempty"` // why it could not be tried: the kernel has no such thing
	Way       string  `json:"way,omitempty"`    // the hops of one lookup, in words
}

// Kernel is what the kernel complained of while the job ran.
type Kernel struct {
	Lines []string `json:"lines"`
}

// Line gives a record as a line of the console, without its end.
func (r *Record) Line() string {
	b, err := json.Marshal(r)
	if err != nil {
		return Marker + `{"problem":"a record that cannot be written"}`
	}
	return Marker + string(b)
}
