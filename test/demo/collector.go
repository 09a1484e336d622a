package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/store"
)

// collector receives OTLP over gRPC on the loopback, keeps it in a store, and sends it on if there is somewhere to.
type collector struct {
	ptraceotlp.UnimplementedGRPCServer
	store   *store.Store
	addr    string
	server  *grpc.Server
	onward  ptraceotlp.GRPCClient // nil: nowhere
	conn    *grpc.ClientConn
	unsent  atomic.Uint64 // spans that could not be sent on
	refused atomic.Uint64
}

func newCollector(onward string) (*collector, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &collector{store: store.New(store.Limits{}), addr: ln.Addr().String(),
		server: grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))}
	if onward != "" {
		if c.conn, err = grpc.NewClient(onward, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
			_ = ln.Close()
			return nil, fmt.Errorf("send on to %s: %w", onward, err)
		}
		c.onward = ptraceotlp.NewGRPCClient(c.conn)
	}
	ptraceotlp.RegisterGRPCServer(c.server, c)
	go func() {
		if err := c.server.Serve(ln); err != nil {
			fmt.Fprintln(os.Stderr, "demo: OTLP receiver:", err)
		}
	}()
	return c, nil
}

// Export implements the OTLP trace service.
func (c *collector) Export(ctx context.Context, req ptraceotlp.ExportRequest) (ptraceotlp.ExportResponse, error) {
	c.refused.Add(uint64(c.store.Receive(req.Traces(), access.Caller{})))
	if c.onward != nil {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if _, err := c.onward.Export(ctx, req, grpc.WaitForReady(true)); err != nil {
			c.unsent.Add(uint64(req.Traces().SpanCount()))
		}
	}
	return ptraceotlp.NewExportResponse(), nil
}

func (c *collector) close() {
	c.server.Stop()
	if c.conn != nil {
		_ = c.conn.Close()
	}
}
