package otlpenv

import (
	"os"
	"strings"
	"testing"
	"time"
)

// clean takes OpenTelemetry's variables out of the environment, and sets others.
func clean(t *testing.T, set ...string) {
	t.Helper()
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "")
		}
	}
	for i := 0; i < len(set); i += 2 {
		t.Setenv(set[i], set[i+1])
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, want, warning, err string }{
		{in: "none", want: "none"},
		{in: "grpc://collector", want: "grpc://collector:4317"},
		{in: "grpcs://collector:443", want: "grpcs://collector:443"},
		{in: "http://collector", want: "http://collector:4318/v1/traces"},
		{in: "https://collector/", want: "https://collector:4318/v1/traces"},
		{in: "https://collector:443/x/traces", want: "https://collector:443/x/traces"},
		{in: "http://[fd00::1]", want: "http://[fd00::1]:4318/v1/traces"},
		{in: "grpc://[fd00::1]", want: "grpc://[fd00::1]:4317"},
		{in: "http://collector:4317", want: "grpc://collector:4317", warning: "taken for grpc://collector:4317"},
		{in: "https://collector:4317", want: "grpcs://collector:4317", warning: "taken for grpcs://collector:4317"},
		{in: "http://collector:4317/v1/traces", want: "http://collector:4317/v1/traces",
			warning: "is OTLP over HTTP at port 4317, where OTLP over gRPC is usual"},
		{in: "grpc://collector:4318", want: "grpc://collector:4318",
			warning: "is OTLP over gRPC at port 4318, where OTLP over HTTP is usual"},
		{in: "grpc://collector/path", err: "has a path, which gRPC has not"},
		{in: "collector:4317", err: "is not an endpoint"},
		{in: "collector", err: "is not an endpoint"},
		{in: "http://:4318", err: "has no host"},
		{in: "ftp://collector", err: "unknown scheme"},
		{in: "http://u:p@collector", err: "is not an endpoint"},
	} {
		check(t, c.in, c.want, c.warning, c.err, func() (Target, error) { return Parse(c.in) })
	}
}

func check(t *testing.T, name, want, warning, wantErr string, read func() (Target, error)) {
	t.Helper()
	got, err := read()
	switch {
	case wantErr != "":
		if err == nil || !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%s: %v, want an error with %q", name, err, wantErr)
		}
		return
	case err != nil:
		t.Errorf("%s: %v", name, err)
		return
	}
	if got.String() != want || (warning == "") != (got.Warning == "") || !strings.Contains(got.Warning, warning) {
		t.Errorf("%s: %q with warning %q, want %q with %q", name, got, got.Warning, want, warning)
	}
	if !got.Sends() || got.Warning != "" {
		return
	}
	if again, err := Parse(got.String()); err != nil || again != got {
		t.Errorf("%s: written as %q it is read as %+v (%v), and was %+v", name, got, again, err, got)
	}
}

func TestResolve(t *testing.T) {
	const (
		general, traces   = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
		protocol, ofTrace = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
	)
	for _, c := range []struct {
		name               string
		env                []string
		given              string
		want, warning, err string
	}{
		{name: "nobody says", want: ""},
		{name: "a URL goes first", env: []string{general, "http://c:4318"}, given: "grpc://d:1", want: "grpc://d:1"},
		{name: "HTTP is the default", env: []string{general, "http://c:4318"}, want: "http://c:4318/v1/traces"},
		{name: "a base has a path", env: []string{general, "http://c:4318/base/"}, want: "http://c:4318/base/v1/traces"},
		{name: "of traces alone, the path is whole", env: []string{traces, "http://c/otlp", general, "http://d"},
			want: "http://c:4318/otlp"},
		{name: "gRPC by its port", env: []string{general, "http://c:4317"}, want: "grpc://c:4317", warning: "taken for grpc"},
		{name: "gRPC by name", env: []string{general, "http://c:1", protocol, "grpc"}, want: "grpc://c:1"},
		{name: "gRPC with TLS", env: []string{traces, "https://c", ofTrace, "grpc", protocol, "http/protobuf"},
			want: "grpcs://c:4317"},
		{name: "the scheme of gRPC", env: []string{general, "grpc://c"}, want: "grpc://c:4317"},
		{name: "HTTP by name at gRPC's port", env: []string{general, "http://c:4317", protocol, "http/protobuf"},
			want: "http://c:4317/v1/traces", warning: "spans may not arrive"},
		{name: "gRPC by name at HTTP's port", env: []string{general, "http://c:4318", protocol, "grpc"},
			want: "grpc://c:4318", warning: "spans may not arrive"},
		{name: "two words that differ", env: []string{general, "grpc://c", protocol, "http/protobuf"},
			err: "OTEL_EXPORTER_OTLP_ENDPOINT: 'grpc://c' is of gRPC"},
		{name: "a service that was not there", env: []string{general, "grpc://$(STORE_SERVICE_HOST):4317"},
			want: "", warning: "nobody has set the variable"},
		{name: "no URL", env: []string{general, "collector:4317"}, err: "OTEL_EXPORTER_OTLP_ENDPOINT: 'collector:4317'"},
		{name: "an unknown protocol", env: []string{general, "http://c", protocol, "http/json"},
			err: "OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' is not known"},
		{name: "disabled", env: []string{general, "http://c", "OTEL_SDK_DISABLED", "TRUE"}, want: "none"},
		{name: "disabled, whatever is given", env: []string{"OTEL_SDK_DISABLED", "true"}, given: "grpc://d", want: "none"},
		{name: "no exporter", env: []string{general, "http://c", "OTEL_TRACES_EXPORTER", "none"}, want: "none"},
		{name: "another exporter", env: []string{"OTEL_TRACES_EXPORTER", "zipkin"}, err: "'zipkin' is not known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			clean(t, c.env...)
			check(t, c.name, c.want, c.warning, c.err, func() (Target, error) { return Resolve(c.given) })
		})
	}
}

func TestReadBatching(t *testing.T) {
	clean(t)
	b, err := ReadBatching(77)
	if want := (Batching{77, 2048, time.Second, 30 * time.Second}); err != nil || b != want {
		t.Errorf("%+v, %v, want %+v", b, err, want)
	}
	clean(t, "OTEL_BSP_MAX_QUEUE_SIZE", "5", "OTEL_BSP_SCHEDULE_DELAY", "20")
	b, err = ReadBatching(77)
	if want := (Batching{5, 2048, 20 * time.Millisecond, 30 * time.Second}); err != nil || b != want {
		t.Errorf("%+v, %v, want %+v", b, err, want)
	}
	clean(t, "OTEL_BSP_EXPORT_TIMEOUT", "never")
	if _, err = ReadBatching(77); err == nil || !strings.Contains(err.Error(), "OTEL_BSP_EXPORT_TIMEOUT: 'never'") {
		t.Errorf("%v", err)
	}
}
