package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/output"
)

// certainty says whether the verdict may be called certain.
type certainty uint8

const (
	may       certainty = iota // it may
	must                       // it must
	mustNot                    // it must not: nobody saw the place
	mustOver4                  // over IPv4 it must, over IPv6 it may: there the kernel tells less
)

// mayInfer says that nothing must be certain: on a kernel that gives no reasons for drops a function has to tell them,
// and some drop for several.
var mayInfer bool

// truth is what is true of one lookup, or of several alike.
type truth struct {
	// name, qtype, transport and server choose the lookups that it is said of; "" is any. Name is what stands before the
	// name of the row, "-" for the name alone; server is an address without its port.
	name, qtype, transport, server string
	// count is how many lookups there are, 1 if 0.
	count int
	// where and cause are those of the verdict; with | between them there are alternatives, and cause "*" is any.
	where, cause string
	// among is the cause where other lookups are known, too, if it is another then: that the node beyond was watched makes
	// it more exact.
	among string
	// result is what the client got: NOERROR if "" and the lookup was answered, otherwise LOST if "". With | between them
	// there are alternatives.
	result string
	// certain says whether the verdict may be called certain.
	certain certainty
	// text are words that stand in the text or the evidence of the verdict, and advice such that stand in what explain
	// says is to be looked at next. Words with | between them are alternatives.
	text, advice []string
	// mostly are words that stand in what explain says of where the time went.
	mostly string
	// unsaid are words that stand in none of the three.
	unsaid []string
	// process is the client's process, where it can be known.
	process string
	// blank says that the row must not tell what was asked, nor 0.0.0.0 as the client's address.
	blank bool
	// by says that only observe or only the store has a row of it.
	by witness
	// atLeast is how long the lookup took at least.
	atLeast time.Duration
	// attempts is how often the client sent the query, where that is judged.
	attempts int
}

// answered is the truth of a lookup without a fault.
var answered = truth{where: "answered", cause: "answered"}

// witness is who has a row of a lookup.
type witness uint8

const (
	both        witness = iota
	onlyObserve         // what an agent sees
	onlyStore           // what the store makes of it
)

// of gives those of the truths that a column has rows of.
func (w witness) of(truths []truth) []truth {
	var mine []truth
	for _, t := range truths {
		if t.by == both || t.by == w {
			mine = append(mine, t)
		}
	}
	return mine
}

func (t *truth) times() int { return max(1, t.count) }

func (t *truth) got() string {
	if t.result == "" && t.where != "answered" {
		return output.Lost
	}
	return cmp.Or(t.result, "NOERROR")
}

// well says whether the lookup went well, so that it is kept only by chance.
func (t *truth) well() bool { return t.where == "answered" && oneOf(t.got(), "NOERROR|NXDOMAIN") }

// wentWell says of a row what [truth.well] says of a truth.
func wentWell(l *output.Row) bool {
	return l.Verdict.Where == "answered" && oneOf(l.Result, "NOERROR|NXDOMAIN")
}

func (t *truth) String() string { return t.where + "/" + t.cause }

// chooses says whether the truth is said of a row; of is the name of the matrix's row.
func (t *truth) chooses(r *output.Row, of string) bool {
	if t.name != "" {
		want := of
		if t.name != "-" {
			want = t.name + "." + of
		}
		if !strings.EqualFold(strings.TrimSuffix(r.Name, "."), strings.TrimSuffix(want, ".")) {
			return false
		}
	}
	return (t.qtype == "" || r.Type == t.qtype) && (t.transport == "" || r.Transport == t.transport) &&
		(t.server == "" || hostOf(r.Server) == t.server)
}

func hostOf(address string) string {
	i := strings.LastIndexByte(address, ':')
	if i < 0 {
		return address
	}
	return strings.Trim(address[:i], "[]")
}

// said is what somebody says of a lookup.
type said struct {
	where, cause, certainty, result string
	text                            string // and the evidence
	advice                          string
	mostly                          string // where the time went
}

func rowSaid(r *output.Row) said {
	return said{
		where: r.Verdict.Where, cause: r.Verdict.Cause, certainty: r.Verdict.Certainty, result: r.Result,
		text: strings.Join(append([]string{r.Verdict.Text}, r.Verdict.Evidence...), "\n"),
	}
}

// denies gives what is wrong with what was said, "" if nothing is. others says that whoever says it knows other
// lookups.
func (t *truth) denies(s said, others bool) string {
	same := oneOf(s.where, t.where) && (t.cause == "*" || oneOf(s.cause, t.cause) ||
		others && t.among != "" && s.cause == t.among)
	switch {
	case s.where == "":
		return "nothing"
	case !same:
		return s.where + "/" + s.cause + map[bool]string{true: ", certain"}[s.certainty == "certain"]
	case s.result != "" && !oneOf(s.result, t.got()):
		return "result " + s.result + ", want " + t.got()
	case t.certain == must && !mayInfer && s.certainty != "certain" || t.certain == mustNot && s.certainty == "certain":
		return s.certainty
	}
	for _, words := range t.text {
		if !holds(s.text, words) {
			return fmt.Sprintf("%q not said", words)
		}
	}
	for _, words := range t.unsaid {
		if holds(s.text+"\n"+s.advice, words) {
			return fmt.Sprintf("%q said", words)
		}
	}
	return ""
}

// oneOf says whether a word is one of the alternatives.
func oneOf(word, alternatives string) bool {
	return slices.Contains(strings.Split(alternatives, "|"), word)
}

// holds says whether one of the alternatives stands in a text, whatever its case.
func holds(text, alternatives string) bool {
	text = strings.ToLower(text)
	return slices.ContainsFunc(strings.Split(strings.ToLower(alternatives), "|"),
		func(a string) bool { return strings.Contains(text, a) })
}

// pair is a truth and the row that it is said of, nil if there is none.
type pair struct {
	truth *truth
	row   *output.Row
}

// match gives each truth its rows: those that agree with it before those that do not. What is left over is of no lookup
// that was made.
func match(truths []truth, rows []*output.Row, of string, others bool) (pairs []pair, left []*output.Row) {
	taken := make([]bool, len(rows))
	for _, agreeing := range []bool{true, false} {
		for i := range truths {
			t := &truths[i]
			have := 0
			for _, p := range pairs {
				if p.truth == t {
					have++
				}
			}
			for j, r := range rows {
				if have < t.times() && !taken[j] && t.chooses(r, of) && (!agreeing || t.denies(rowSaid(r), others) == "") {
					taken[j], have = true, have+1
					pairs = append(pairs, pair{t, r})
				}
			}
			for ; !agreeing && have < t.times(); have++ {
				pairs = append(pairs, pair{t, nil})
			}
		}
	}
	for j, r := range rows {
		if !taken[j] {
			left = append(left, r)
		}
	}
	return pairs, left
}
