package dnstrail

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/otlpenv"
)

func TestMain(m *testing.M) {
	clog.Discard()
	os.Exit(m.Run())
}

// environment clears what would come into a configuration from outside.
func environment(t testing.TB) {
	for _, n := range []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL",
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
		"OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_SCHEDULE_DELAY",
		"OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
		"OTEL_BSP_EXPORT_TIMEOUT", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "KUBERNETES_SERVICE_HOST",
	} {
		t.Setenv(n, "")
	}
}

func TestParse(t *testing.T) {
	environment(t)
	file := filepath.Join(t.TempDir(), "clients.yaml")
	if err := os.WriteFile(file, []byte("clients: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, block string
		check       func(c *config) bool
	}{
		{"alone", "", func(c *config) bool {
			k := c.keeper()
			return c.ratio == link.NewRatio(0.01) && k.errors && k.slow == time.Second && k.all == nil && k.byRules != nil &&
				c.export.target == (otlpenv.Target{}) && !c.tracer &&
				c.ids.source == identityDefault && c.domain == "cluster.local" && c.code == 65500 && !c.accept && !c.send &&
				!c.noStats
		}},
		{"percentage", "sample 12.5%", func(c *config) bool { return c.ratio == link.NewRatio(0.125) }},
		{"nothing", "sample 0\nkeep none", func(c *config) bool {
			k := c.keeper()
			return c.ratio == (link.Ratio{}) &&
				!k.errors && k.slow == 0
		}},
		{"rules", "keep slow 20ms\nkeep client shop pay/api 192.0.2.0/24 2001:db8::1\nkeep name Example.ORG",
			func(c *config) bool {
				k := c.keeper()
				return !k.errors && k.slow == 20*time.Millisecond && len(k.workloads) == 2 &&
					k.workloads[1] == workload{"pay", "api"} && len(k.prefixes) == 2 &&
					k.prefixes[1].Bits() == 128 && k.names[0] == "example.org."
			}},
		{"limit", "limit 50", func(c *config) bool { k := c.keeper(); return k.all.Limit() == 50 && k.byRules == nil }},
		{"grpc", "endpoint grpc://collector", func(c *config) bool {
			return c.export.target.String() == "grpc://collector:4317"
		}},
		{"https", "endpoint https://collector/x/traces", func(c *config) bool {
			return c.export.target.String() == "https://collector:4318/x/traces"
		}},
		{"ipv6", "endpoint http://[::1]:9", func(c *config) bool {
			return c.export.target.String() == "http://[::1]:9/v1/traces"
		}},
		{"no endpoint", "endpoint none", func(c *config) bool { return c.export.target.Off }},
		{"headers", "header a b\nheader c d", func(c *config) bool { return len(c.export.headers) == 2 }},
		{"file", "identity file " + file, func(c *config) bool { return c.ids.source == identityFile && c.ids.file == file }},
		{"kubernetes", "identity kubernetes\nlabels app tier",
			func(c *config) bool { return c.ids.source == identityKubernetes && len(c.ids.labels) == 2 }},
		{"metrics", "metrics pod 10\nnamespaces exclude kube-system a", func(c *config) bool {
			return c.metrics.pods && c.metrics.max == 10 && len(c.metrics.excluded) == 2
		}},
		{"no metrics", "metrics none", func(c *config) bool { return c.noStats }},
		{"domain", "cluster_domain Corp.Local.", func(c *config) bool { return c.domain == "corp.local" }},
		{"traceparent", "traceparent accept 10.0.0.0/8\ntraceparent send\ntraceparent code 65001\ntraceparent ignore_http",
			func(c *config) bool {
				return c.accept && len(c.acceptFrom) == 1 && c.send && c.code == 65001 && c.ignoreHTTP
			}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, err := parse(caddy.NewTestController("dns", "dnstrail {\n"+row.block+"\n}"))
			if err != nil {
				t.Fatal(err)
			}
			if !row.check(c) {
				t.Errorf("parsed as %+v", c)
			}
		})
	}
}

// TestParseMistakes holds what a mistake says: the file and line, what is wrong, and what is right.
func TestParseMistakes(t *testing.T) {
	environment(t)
	for _, row := range []struct{ block, want string }{
		{"dnstrail x", "Testfile:1 - Error during parsing: dnstrail takes no arguments, got \"x\""},
		{"dnstrail\ndnstrail", "once per Server Block"},
		{"dnstrail {\nsampel 1\n}", "Testfile:2 - Error during parsing: unknown property 'sampel'; want one of: service, " +
			"endpoint, header, sample, keep"},
		{"dnstrail {\nsample\n}", "wrong arguments of 'sample'; want: sample RATIO"},
		{"dnstrail {\ntracer\n\nsample 2\n}", "Testfile:4 - Error during parsing: property 'sample': '2' is not a ratio; " +
			"want a number from 0 to 1"},
		{"dnstrail {\nsample NaN\n}", "'NaN' is not a ratio"},
		{"dnstrail {\nsample 1\nsample 1\n}", "property 'sample' is given twice"},
		{"dnstrail {\ntracer yes\n}", "wrong arguments of 'tracer'; want: tracer"},
		{"dnstrail {\nendpoint collector:4317\n}", "want none, or a URL such as grpc://collector:4317"},
		{"dnstrail {\nendpoint ftp://collector\n}", "unknown scheme"},
		{"dnstrail {\nendpoint grpc://collector/path\n}", "has a path"},
		{"dnstrail {\nkeep\n}", "wrong arguments of 'keep'; want: keep errors|slow DURATION"},
		{"dnstrail {\nkeep everything\n}", "wrong arguments of 'keep'"},
		{"dnstrail {\nkeep slow fast\n}", "'fast' is not a duration"},
		{"dnstrail {\nkeep client a/b/c\n}", "'a/b/c' is not a client"},
		{"dnstrail {\nkeep name exa..mple\n}", "not a domain name"},
		{"dnstrail {\nlimit 0\n}", "'0' is not a number of spans a second"},
		{"dnstrail {\nidentity ldap\n}", "want: identity kubernetes [kubeconfig FILE]|file FILE|metadata|none"},
		{"dnstrail {\nidentity file /nonexistent/clients.yaml\n}", "property 'identity': stat /nonexistent/clients.yaml"},
		{"dnstrail {\nmetrics everybody\n}", "want: metrics workload|pod|none [LIMIT]"},
		{"dnstrail {\nmetrics pod many\n}", "'many' is not a limit of clients"},
		{"dnstrail {\nnamespaces include\n}", "want: namespaces include|exclude NAMESPACE..."},
		{"dnstrail {\nnames hide 1\n}", "want: names redact|hash LABELS [ZONE...]|key FILE|file FILE"},
		{"dnstrail {\nnames redact -1\n}", "'-1' is not a number of labels"},
		{"dnstrail {\ntraceparent code 10\n}", "'10' is not an EDNS option code for local use"},
		{"dnstrail {\ntraceparent accept everybody\n}", "'everybody' is neither an address nor a prefix"},
	} {
		_, err := parse(caddy.NewTestController("dns", row.block))
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: %v, want an error with %q", row.block, err, row.want)
		}
	}
}

func TestParseEnvironment(t *testing.T) {
	for _, row := range []struct {
		name  string
		env   []string
		check func(x *exportConfig) bool
		want  string
	}{
		{"an endpoint", []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"},
			func(x *exportConfig) bool { return x.target.String() == "http://c:4318/v1/traces" }, ""},
		{"gRPC", []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"},
			func(x *exportConfig) bool { return x.target.String() == "grpc://c:4317" }, ""},
		{"disabled", []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318", "OTEL_SDK_DISABLED", "true"},
			func(x *exportConfig) bool { return x.target.Off }, ""},
		{"no exporter", []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318", "OTEL_TRACES_EXPORTER", "none"},
			func(x *exportConfig) bool { return x.target.Off }, ""},
		{"sizes", []string{"OTEL_BSP_MAX_QUEUE_SIZE", "7", "OTEL_BSP_EXPORT_TIMEOUT", "9"},
			func(x *exportConfig) bool { return x.Queue == 7 && x.Timeout == 9*time.Millisecond }, ""},
		{"an unknown protocol", []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL",
			"http/json"}, nil,
			"OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' is not known; want grpc or http/protobuf"},
		{"a wrong size", []string{"OTEL_BSP_MAX_QUEUE_SIZE", "many"}, nil, "OTEL_BSP_MAX_QUEUE_SIZE: 'many' is not a number"},
		{"an unknown exporter", []string{"OTEL_TRACES_EXPORTER", "zipkin"}, nil,
			"OTEL_TRACES_EXPORTER: 'zipkin' is not known; want otlp or none"},
	} {
		t.Run(row.name, func(t *testing.T) {
			environment(t)
			for i := 0; i < len(row.env); i += 2 {
				t.Setenv(row.env[i], row.env[i+1])
			}
			c, err := parse(caddy.NewTestController("dns", "dnstrail"))
			switch {
			case row.want != "":
				if err == nil || !strings.Contains(err.Error(), row.want) {
					t.Errorf("%v, want an error with %q", err, row.want)
				}
			case err != nil:
				t.Error(err)
			case !row.check(&c.export):
				t.Errorf("read as %+v", c.export)
			}
		})
	}
}

// FuzzParse reads any block: it fails with an error or gives a configuration that can be used.
func FuzzParse(f *testing.F) {
	environment(f)
	for _, p := range properties {
		for form := range strings.SplitSeq(p.args, "|") {
			f.Add(p.name + " " + form)
		}
	}
	f.Add("sample 1\nkeep client shop/cart 10.0.0.0/8\nnames hash 2 example.org\ntraceparent accept ::/0")
	f.Add("sample \"1\nkeep {\n}\n")
	f.Fuzz(func(t *testing.T, block string) {
		if strings.Contains(block, "import") || strings.Contains(block, "file") || strings.Contains(block, "kubeconfig") {
			return // these read files
		}
		c, err := parse(caddy.NewTestController("dns", "dnstrail {\n"+block+"\n}"))
		if err != nil {
			if !strings.Contains(err.Error(), "Testfile:") && !strings.Contains(err.Error(), "EOF") {
				t.Errorf("the error names no line: %v", err)
			}
			return
		}
		c.keeper()
		c.names.Show("www.example.org.")
		_ = c.export.key()
	})
}
