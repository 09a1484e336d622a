package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/dnstrail/dnstrail/test/kernels/job"
)

// TestArchive reads an archive back by the format's own rules: everything begins at a multiple of four.
func TestArchive(t *testing.T) {
	var c cpio
	c.directory("d")
	c.file("d/odd", 0o644, []byte("12345"))
	c.link("d/link", "odd")
	b := c.bytes()
	if len(b)%4 != 0 {
		t.Fatalf("%d bytes: no archive may follow", len(b))
	}
	var got []string
	for at := 0; at+110 <= len(b); {
		h := string(b[at : at+110])
		var field [13]int
		for i := range field {
			if _, err := fmt.Sscanf(h[6+8*i:14+8*i], "%08X", &field[i]); err != nil || h[:6] != "070701" {
				t.Fatalf("at %d: header %q: %v", at, h, err)
			}
		}
		round := func(n int) int { return (n + 3) &^ 3 }
		name := string(b[at+110 : at+110+field[11]-1])
		data := round(at + 110 + field[11])
		got = append(got, fmt.Sprintf("%o %s %s", field[1], name, b[data:data+field[6]]))
		if name == "TRAILER!!!" {
			break
		}
		at = round(data + field[6])
	}
	want := []string{"40755 d ", "100644 d/odd 12345", "120777 d/link odd", "0 TRAILER!!! "}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestModulesDependencies(t *testing.T) {
	if got := dependencies([]byte("x\x00license=GPL\x00depends=nf-conntrack,x_tables\x00name=y\x00")); !slices.Equal(
		got, []string{"nf_conntrack", "x_tables"}) {
		t.Errorf("%q", got)
	}
	if got := dependencies([]byte("x\x00depends=\x00name=y\x00")); got != nil {
		t.Errorf("a module that needs none needs %q", got)
	}
}

func TestPackagesOfAKernel(t *testing.T) {
	out := "linux-image-7.2.13+deb14-cloud-amd64\n  PreDepends: linux-base\n |Depends: dracut\n  Depends: " +
		"linux-base-7.2.13+deb14-cloud-amd64\n" +
		"  Depends: linux-binary-7.2.13+deb14-cloud-amd64\n  Depends: linux-modules-7.2.13+deb14-cloud-amd64\n" +
		"  Suggests: linux-doc-7.2\n"
	var got []string
	for _, m := range dependsOn.FindAllStringSubmatch(out, -1) {
		got = append(got, m[1])
	}
	if want := []string{"linux-binary-7.2.13+deb14-cloud-amd64", "linux-modules-7.2.13+deb14-cloud-amd64"}; !slices.Equal(
		got, want) {
		t.Errorf("%q", got)
	}
}

// TestWhatMakesARunFail: a kernel that did not do all of its job must not pass.
func TestWhatMakesARunFail(t *testing.T) {
	load := job.Record{Load: &job.Load{Milliseconds: 1}}
	for _, tt := range []struct {
		name    string
		records []job.Record
		want    string
	}{
		{"all right", []job.Record{load, {Row: &job.Row{Right: true}}, {Demo: &job.Demo{OK: true}}, {End: true}}, ""},
		{"not loaded", []job.Record{{End: true}}, "the program was not loaded"},
		{"refused", []job.Record{{Load: &job.Load{Error: "no"}}}, "loading: no"},
		{"a wrong row", []job.Record{load, {Row: &job.Row{Fault: "f", Family: "IPv4"}}}, "f, IPv4: expected"},
		{"the demo", []job.Record{load, {Demo: &job.Demo{Last: "x"}}}, "demo: x"},
		{"the kernel", []job.Record{load, {Kernel: &job.Kernel{Lines: []string{"BUG: x"}}}}, "the kernel complains: BUG: x"},
		{"the machine", []job.Record{load, {Problem: "x"}}, "x"},
	} {
		r := result{kernel: kernels[0], records: tt.records}
		errs := r.wrong()
		if said := fmt.Sprint(errs); tt.want == "" && len(errs) > 0 || !strings.Contains(said, tt.want) {
			t.Errorf("%s: %s", tt.name, said)
		}
	}
}
