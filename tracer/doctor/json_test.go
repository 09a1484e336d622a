package doctor

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestFindingsComeBackAsTheyWere(t *testing.T) {
	want := []Finding{
		{What: "kernel", Is: "6.18, with BTF"},
		{What: "clock", State: Warn, Is: "nothing keeps it", Do: "run <chrony>"},
		{What: "hooks", State: Fail, Is: "refused", Log: []string{"one", "two"}},
		{What: "conntrack", State: Skip, Is: "not tracked"},
	}
	var text bytes.Buffer
	for _, f := range want {
		if err := f.WriteJSON(&text); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(text.String(), "\n"); n != len(want) {
		t.Errorf("%d lines, want one a finding", n)
	}
	var got []Finding
	if err := ReadJSON(&text, func(f Finding) { got = append(got, f) }); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestWhatIsNoFindingIsSaid(t *testing.T) {
	for _, text := range []string{"nothing of it", `{"what":"kernel","state":"fine"}`, `{"what":"kernel"`} {
		if err := ReadJSON(strings.NewReader(text), func(Finding) {}); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}
