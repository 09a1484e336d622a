package dnswire

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/miekg/dns"
)

// TestQuestionRemembered: what is read by a remembered question is what is read without one, whatever lies between.
func TestQuestionRemembered(t *testing.T) {
	a, b := query("example.org.", dns.TypeA), query("example.org.", dns.TypeAAAA)
	longer := query("example.org.example.org.", dns.TypeA)
	for _, m := range []*dns.Msg{a, b, longer} {
		m.Id = 7 // one slot
	}
	var q Questions
	for _, m := range [][]byte{
		pack(t, a), pack(t, a), pack(t, b), pack(t, longer), pack(t, a),
		pack(t, answerTo(a)), pack(t, answerTo(b)), pack(t, b)[:20], pack(t, b), pack(t, longer)[:HeaderSize],
	} {
		compareParse(t, &q, m)
	}
}

func compareParse(t *testing.T, q *Questions, b []byte) {
	t.Helper()
	got, want := Head{Malformed: true}, Head{Malformed: true}
	gotErr, wantErr := q.Parse(&got, b), want.ParseAny(b)
	if (gotErr == nil) != (wantErr == nil) {
		t.Fatalf("error %v, want %v", gotErr, wantErr)
	}
	if gotErr != nil {
		return
	}
	if got.QuestionHash() != want.QuestionHash() {
		t.Errorf("hash %x, want %x", got.QuestionHash(), want.QuestionHash())
	}
	got.hash, want.hash = 0, 0
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// FuzzQuestions: one message after the other, with one ID, so that each meets what is remembered of the one before.
func FuzzQuestions(f *testing.F) {
	m := pack(f, query("example.org.", dns.TypeA))
	f.Add(m, m)
	f.Add(m, pack(f, query("EXAMPLE.org.", dns.TypeA)))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var q Questions
		if len(a) >= 2 && len(b) >= 2 {
			a = append(bytes.Clone(b[:2]), a[2:]...)
		}
		for _, m := range [][]byte{a, a, b, a} {
			compareParse(t, &q, m)
		}
	})
}
