package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/dnstrail/dnstrail/tracer/explain"
	"github.com/dnstrail/dnstrail/tracer/output"
	"github.com/dnstrail/dnstrail/tracer/past"
	"github.com/dnstrail/dnstrail/tracer/replay"
	"github.com/dnstrail/dnstrail/tracer/rowapi"
	"github.com/dnstrail/dnstrail/tracer/trace"
)

// agentSocket gives the socket of the agent that sees the client.
func (s *scene) agentSocket() string {
	name := s.setting.clientNode() + ".sock"
	if s.setting == inHost {
		name = "agent.sock"
	}
	return filepath.Join(filepath.Dir(s.cluster.IdentityFile), name)
}

// bySocket compares what explain makes of the past of the client's agent, which it asks by its socket, with that
// agent's own rows and with what is true; "" where nothing is wrong. The agent that sees all must be right. One that
// sees its node alone may know less, and then says so: what it calls certain must be true, and whether an answer came
// it knows.
func (s *scene) bySocket(r *row) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var told []*output.Row
	mine := &rows{}
	if s.agent == nil {
		s.agent = rowapi.NewSocketClient(s.agentSocket())
	}
	err := s.agent.Lookups(ctx, &output.Filter{Since: r.begin}, 0, false, func(l *output.Row) error {
		told = append(told, l)
		mine.take(l)
		return nil
	})
	if err != nil {
		return err.Error()
	}
	traces, err := replay.Traces(told)
	if err != nil {
		return err.Error()
	}
	explained := map[string]*trace.Trace{}
	for _, t := range trace.AllLookups(traces) {
		explained[t.ID.String()+t.Asked().Address.String()] = t
	}
	truths := onlyObserve.of(r.truths)
	pairs, _ := match(truths, mine.of(s, r), r.name, false)
	var wrong []string
	for _, p := range pairs {
		problem := "nothing"
		if p.row == nil && r.explained && s.forgets(ctx) {
			continue
		}
		if p.row != nil {
			problem = bySocketOf(s.setting, p.truth, p.row, explained[p.row.TraceID+p.row.Server], traces)
		}
		if problem != "" {
			wrong = append(wrong, p.truth.String()+" is "+problem)
		}
	}
	r.explained = r.explained || len(wrong) == 0
	return counted(wrong)
}

// forgets says whether so many lookups have come that the agent may keep the first of them no more.
func (s *scene) forgets(ctx context.Context) bool {
	answered, lost := 0, 0
	err := s.agent.Lookups(ctx, &output.Filter{}, 0, false, func(l *output.Row) error {
		if l.Result == output.Lost {
			lost++
		} else {
			answered++
		}
		return nil
	})
	// Its room in bytes may be used up somewhat earlier.
	return err == nil && (answered >= past.DefaultAll/2 || lost >= past.DefaultLost/2)
}

func bySocketOf(set setting, is *truth, l *output.Row, t *trace.Trace, others []*trace.Trace) string {
	if t == nil {
		return "not explained"
	}
	story := explain.Tell(t, others)
	v := story.Verdict
	own := rowSaid(l)
	// What became of TCP after a truncated answer is what became of the lookup: there are two rows of it, and one trace.
	if again := t.Transport() == "udp" && l.Truncated || l.Connect && len(l.Related) > 0; !again {
		if v.Where != own.where || v.Cause != own.cause || v.Certainty != own.certainty ||
			v.Lost() != (l.Result == output.Lost) {
			return fmt.Sprintf("%s/%s, %s, where the agent's row is %s/%s, %s", v.Where, v.Cause, v.Certainty,
				own.where, own.cause, own.certainty)
		}
	}
	text := strings.Join(append([]string{v.Text}, v.Evidence...), "\n")
	if set == inHost {
		return is.denies(own, false)
	}
	if own.result != is.got() && !oneOf(own.result, is.got()) {
		return "result " + own.result + ", want " + is.got()
	}
	if l.Result != output.Lost || v.Certainty != trace.Certain {
		return ""
	}
	if v.Cause == "answer-too-late" && strings.HasPrefix(is.where, "upstream") {
		return "" // it came too late; what had kept it, CoreDNS's side alone knows
	}
	known := *is
	known.certain, known.text, known.unsaid = may, nil, nil
	return known.denies(said{where: v.Where, cause: v.Cause, certainty: v.Certainty, text: text}, false)
}
