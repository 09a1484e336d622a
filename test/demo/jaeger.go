package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/dnstrail/dnstrail/test/lab"
)

// jaeger is the Jaeger of test/jaeger, on the host's loopback.
type jaeger struct {
	process *lab.Process
	// otlp and query are host:port: OTLP over gRPC in, Jaeger's query API out.
	otlp, query         string
	otlpHTTP, queryGRPC string
}

// jaegerConfig is where its configuration is, from the repository's root.
const jaegerConfig = "test/jaeger/config.yaml"

// newJaeger chooses where the Jaeger listens: at the ports that people know it by, where they are free.
func newJaeger() (*jaeger, error) {
	j := &jaeger{}
	for _, a := range []struct {
		to   *string
		port int
	}{{&j.otlp, 4317}, {&j.otlpHTTP, 4318}, {&j.query, 16686}, {&j.queryGRPC, 16685}} {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", a.port))
		if err != nil {
			ln, err = net.Listen("tcp", "127.0.0.1:0")
		}
		if err != nil {
			return nil, err
		}
		*a.to = ln.Addr().String()
		defer ln.Close()
	}
	return j, nil
}

func (j *jaeger) start(ctx context.Context, l *lab.Lab, bin string) (err error) {
	path, err := filepath.Abs(filepath.Join(bin, "jaeger"))
	if err != nil {
		return err
	}
	j.process, err = l.Start(lab.Command{
		Path: path, Args: []string{"--config", jaegerConfig},
		Env: []string{
			"DNSTRAIL_JAEGER_OTLP_GRPC=" + j.otlp, "DNSTRAIL_JAEGER_OTLP_HTTP=" + j.otlpHTTP,
			"DNSTRAIL_JAEGER_QUERY=" + j.query, "DNSTRAIL_JAEGER_QUERY_GRPC=" + j.queryGRPC, "DNSTRAIL_JAEGER_TRACES=10000",
		},
	})
	if err != nil {
		return err
	}
	for {
		resp, err := http.Get("http://" + j.query + "/api/services")
		if err == nil {
			_ = resp.Body.Close()
			return nil
		}
		select {
		case <-j.process.Done():
			return fmt.Errorf("the Jaeger ended at its start: %w", j.process.Err())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
