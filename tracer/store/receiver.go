package store

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"sync"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // an exporter may compress
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// The receiver stands on the collector's pdata (ptraceotlp): its gRPC service and both decoders. The collector's otlpreceiver, on the same
// pdata, makes its own listeners, so that none made in another network namespace can be given to it, and brings 150 packages more.

// maxMessage bounds one export request, in bytes, after decompression.
const maxMessage = 16 << 20

// shutdownGrace is how long requests under way may take to end when a server stops.
const shutdownGrace = 2 * time.Second

// HTTPPath is where OTLP over HTTP sends traces to (OTLP specification, "OTLP/HTTP Request").
const HTTPPath = "/v1/traces"

// ServeGRPC receives OTLP over gRPC from l until ctx ends, and closes l. The error is nil if it was ctx that ended it.
func (s *Store) ServeGRPC(ctx context.Context, l net.Listener) error {
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	ptraceotlp.RegisterGRPCServer(srv, &grpcService{store: s})
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(shutdownGrace, srv.Stop)
		defer timer.Stop()
		srv.GracefulStop()
	})
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("OTLP over gRPC at %v: %w", l.Addr(), err)
	}
	return nil
}

// ServeHTTP receives OTLP over HTTP (protobuf and JSON) from l until ctx ends, and closes l. The error is nil if it was ctx that ended it.
func (s *Store) ServeHTTP(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("POST "+HTTPPath, s.HTTPHandler())
	return ServeHTTP(ctx, l, mux)
}

// Serve receives OTLP from both listeners, either of which may be nil, until ctx ends or one of them fails; then both are stopped.
func (s *Store) Serve(ctx context.Context, grpcListener, httpListener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 2)
	run := func(i int, l net.Listener, serve func(context.Context, net.Listener) error) {
		if l != nil {
			wg.Go(func() { defer cancel(); errs[i] = serve(ctx, l) })
		}
	}
	run(0, grpcListener, s.ServeGRPC)
	run(1, httpListener, s.ServeHTTP)
	wg.Wait()
	return errors.Join(errs...)
}

// ServeHTTP serves h from l until ctx ends, and closes l. The error is nil if it was ctx that ended it.
func ServeHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // what is still open after the grace is cut
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-stopped
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("HTTP at %v: %w", l.Addr(), err)
	}
	return nil
}

type grpcService struct {
	ptraceotlp.UnimplementedGRPCServer
	store *Store
}

func (g *grpcService) Export(_ context.Context, req ptraceotlp.ExportRequest) (ptraceotlp.ExportResponse, error) {
	return g.store.export(req), nil
}

func (s *Store) export(req ptraceotlp.ExportRequest) ptraceotlp.ExportResponse {
	resp := ptraceotlp.NewExportResponse()
	if refused := s.Receive(req.Traces()); refused > 0 {
		resp.PartialSuccess().SetRejectedSpans(int64(refused))
		resp.PartialSuccess().SetErrorMessage(fmt.Sprintf("spans without a valid ID, or of a trace with more than %d spans", s.limits.SpansPerTrace))
	}
	return resp
}

const (
	typeProtobuf = "application/x-protobuf"
	typeJSON     = "application/json"
)

// HTTPHandler gives the handler of OTLP over HTTP, to be mounted at [HTTPPath].
func (s *Store) HTTPHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if contentType != typeProtobuf && contentType != typeJSON {
			refuse(w, typeProtobuf, http.StatusUnsupportedMediaType, codes.InvalidArgument,
				fmt.Sprintf("content type %q: want %s or %s", contentType, typeProtobuf, typeJSON))
			return
		}
		body, status, err := readBody(w, r)
		if err != nil {
			refuse(w, contentType, status, codes.InvalidArgument, err.Error())
			return
		}
		req := ptraceotlp.NewExportRequest()
		if contentType == typeJSON {
			err = req.UnmarshalJSON(body)
		} else {
			err = req.UnmarshalProto(body)
		}
		if err != nil {
			refuse(w, contentType, http.StatusBadRequest, codes.InvalidArgument, "not an ExportTraceServiceRequest: "+err.Error())
			return
		}
		resp := s.export(req)
		var out []byte
		if contentType == typeJSON {
			out, err = resp.MarshalJSON()
		} else {
			out, err = resp.MarshalProto()
		}
		if err != nil {
			refuse(w, contentType, http.StatusInternalServerError, codes.Internal, err.Error())
			return
		}
		reply(w, contentType, http.StatusOK, out)
	})
}

// readBody gives the body decompressed; else the HTTP status for the error.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, int, error) {
	var in io.Reader = http.MaxBytesReader(w, r.Body, maxMessage)
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
	case "gzip":
		unzipped, err := gzip.NewReader(in)
		if err != nil {
			return nil, http.StatusBadRequest, fmt.Errorf("body: %w", err)
		}
		in = unzipped
	default:
		return nil, http.StatusUnsupportedMediaType, fmt.Errorf("content encoding %q: want gzip or none", encoding)
	}
	body, err := io.ReadAll(io.LimitReader(in, maxMessage+1))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) || len(body) > maxMessage {
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("body of more than %d bytes", maxMessage)
	}
	if err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("body: %w", err)
	}
	return body, http.StatusOK, nil
}

// refuse answers with a google.rpc.Status, as the OTLP specification wants it.
func refuse(w http.ResponseWriter, contentType string, status int, code codes.Code, text string) {
	message := &spb.Status{Code: int32(code), Message: text}
	var body []byte
	if contentType == typeJSON {
		body, _ = protojson.Marshal(message) // a string that is not UTF-8 leaves the body empty; the status is what counts
	} else {
		body, _ = proto.Marshal(message)
	}
	reply(w, contentType, status, body)
}

func reply(w http.ResponseWriter, contentType string, status int, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client has gone: nothing to tell it
}
