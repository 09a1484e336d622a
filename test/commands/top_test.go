package commands

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestTop: the table of a store and that of an agent count what the lab asked, by what is wanted and through filters.
func TestTop(t *testing.T) {
	s := up(t)
	ask := func(times, name string) {
		t.Helper()
		if _, err := s.pod.Run(t.Context(), "sh", "-c", "for i in $(seq "+times+"); do dig +short "+name+
			"; done"); err != nil {
			t.Fatal(err)
		}
	}
	ask("30", "kubernetes.default.svc.cluster.local")
	ask("10", "nxdomain.example.com")
	ask("5", "servfail.example.com")
	agent := filepath.Join(filepath.Dir(s.IdentityFile), "node-1.sock")
	end := time.Now().Add(20 * time.Second)
	for {
		var missing []string
		for _, row := range []struct{ args, want string }{
			{"--store http://" + s.api, `(?m)^shop/cart +\S+ +45 +5 +11\.1 %`},
			{"--socket " + agent, `(?m)^shop/cart +\S+ +45 +5 +11\.1 %`},
			{"--by name --store http://" + s.api, `(?m)^kubernetes\.default\.s\S+ +\S+ +30 +- +-`},
			{"--by name --sort failures --lines 1 --store http://" + s.api,
				`FAILED.*\nservfail\.example\.com\. +\S+ +5 +5 +100\.0 %.*\nand 2 more`},
			{"--by instance --rcode NOERROR --store http://" + s.api, `(?m)^kube-system/coredns-\S+ +\S+ +30 +- `},
			{"--by upstream --store http://" + s.api, `(?m)^192\.168\.100\.53 +`},
			{"--by place --store http://" + s.api, `(?m)^answered +\S+ +40 `},
			{"--by place --store http://" + s.api, `(?m)^coredns: server-failure +\S+ +\d +\d +100\.0 %`},
		} {
			out, err := s.run(t, append([]string{"top", "--once", "--window", "1m", "--client", "shop/cart"},
				strings.Fields(row.args)...)...)
			if err != nil {
				t.Fatal(err)
			}
			if !regexp.MustCompile(row.want).MatchString(out) {
				missing = append(missing, row.args+": no "+row.want+" in\n"+out)
			}
		}
		if len(missing) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal(strings.Join(missing, "\n"))
		}
		time.Sleep(time.Second) // agents and CoreDNS send what they have once a second
	}
}
