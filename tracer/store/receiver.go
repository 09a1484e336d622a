package store

import (
	"compress/gzip"
	"context"
	"crypto/tls"
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
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // an exporter may compress
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/memory"
)

// The receiver stands on the collector's pdata (ptraceotlp): its gRPC service and both decoders. The collector's
// otlpreceiver, on the same pdata, makes its own listeners, so that none made in another network namespace can be given
// to it, and brings 150 packages more.

const (
	// maxBody bounds one export request over HTTP, and maxMessage one over gRPC, in bytes, after decompression: the latter
	// is what every receiver of OTLP takes that nobody has told otherwise.
	maxBody    = 16 << 20
	maxMessage = 4 << 20
	// maxNesting is how deep lists and maps in a request may be nested: the decoders recurse.
	maxNesting = 64

	// Bounds of a connection of gRPC: how many requests it has under way, how long it may be idle and how long it may last
	// at all, after which the requests under way, of which half may have come, are cut.
	maxStreams = 8
	idleFor    = 10 * time.Minute
	lastsFor   = 30 * time.Minute
	graceFor   = 30 * time.Second
)

// shutdownGrace is how long requests under way may take to end when a server stops.
const shutdownGrace = 2 * time.Second

// HTTPPath is where OTLP over HTTP sends traces to (OTLP specification, "OTLP/HTTP Request").
const HTTPPath = "/v1/traces"

// grpcPath is the method of OTLP over gRPC: what a right to send is called there.
const grpcPath = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

// Receiver takes OTLP for a store. Only Store must be set.
type Receiver struct {
	Store *Store
	// Checker knows the credentials of those who may send; nil lets everybody.
	Checker access.Checker
	// TLS, if not nil, is what connections are encrypted by: see [access.TLS].
	TLS *tls.Config
	// Gauge, if not nil, tells when there is no memory for more: then senders are asked to try again.
	Gauge *memory.Gauge

	bodies bodies
}

func (r *Receiver) pressed() bool { return r.Gauge != nil && r.Gauge.Pressed() }

// ServeGRPC receives OTLP over gRPC from l until ctx ends, and closes l. The error is nil if it was ctx that ended it.
func (s *Store) ServeGRPC(ctx context.Context, l net.Listener) error {
	return (&Receiver{Store: s}).ServeGRPC(ctx, l)
}

// ServeHTTP receives OTLP over HTTP (protobuf and JSON) from l until ctx ends, and closes l. The error is nil if it was
// ctx that ended it.
func (s *Store) ServeHTTP(ctx context.Context, l net.Listener) error {
	return (&Receiver{Store: s}).ServeHTTP(ctx, l)
}

// Serve receives OTLP from both listeners, either of which may be nil, until ctx ends or one of them fails; then both
// are stopped.
func (s *Store) Serve(ctx context.Context, grpcListener, httpListener net.Listener) error {
	return (&Receiver{Store: s}).Serve(ctx, grpcListener, httpListener)
}

// ServeGRPC is [Store.ServeGRPC] for those whom the receiver lets in.
func (r *Receiver) ServeGRPC(ctx context.Context, l net.Listener) error {
	return r.serveGRPC(ctx, newPatience(access.Listener(l)))
}

func (r *Receiver) serveGRPC(ctx context.Context, p *patience) error {
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxStreams), grpc.MaxHeaderListSize(16 << 10),
		grpc.ConnectionTimeout(5 * time.Second), grpc.InTapHandle(r.tap(p)), grpc.StatsHandler(p),
		grpc.ForceServerCodecV2(shallow{}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: idleFor, MaxConnectionAge: lastsFor, MaxConnectionAgeGrace: graceFor,
			Time: time.Minute, Timeout: 20 * time.Second,
		}),
	}
	if r.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(r.TLS)))
	}
	srv := grpc.NewServer(options...)
	ptraceotlp.RegisterGRPCServer(srv, &grpcService{receiver: r})
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(shutdownGrace, srv.Stop)
		defer timer.Stop()
		srv.GracefulStop()
	})
	defer stop()
	if err := srv.Serve(p); err != nil && ctx.Err() == nil {
		return fmt.Errorf("OTLP over gRPC at %v: %w", p.Addr(), err)
	}
	return nil
}

// tap looks at a request of gRPC before anything of its body is read.
func (r *Receiver) tap(p *patience) tap.ServerInHandle {
	return func(ctx context.Context, info *tap.Info) (context.Context, error) {
		if r.pressed() {
			return nil, status.Error(codes.Unavailable, "no memory for more at the moment")
		}
		c, err := r.identify(ctx, info)
		switch {
		case errors.Is(err, access.ErrForbidden):
			return nil, status.Error(codes.PermissionDenied, err.Error())
		case errors.Is(err, access.ErrCredential):
			return nil, status.Error(codes.Unauthenticated, err.Error())
		case err != nil:
			return nil, status.Error(codes.Unavailable, err.Error())
		case p.busy(c.Address):
			return nil, status.Error(codes.Unavailable, errBusy.Error())
		}
		return access.With(ctx, c), nil
	}
}

func (r *Receiver) identify(ctx context.Context, info *tap.Info) (access.Caller, error) {
	token := ""
	if values := info.Header.Get("authorization"); len(values) == 1 {
		token = access.Bearer(values[0])
	}
	remote, certificate := "", ""
	if p, ok := peer.FromContext(ctx); ok {
		remote = p.Addr.String()
		if t, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(t.State.VerifiedChains) > 0 {
			certificate = t.State.VerifiedChains[0][0].Subject.CommonName
		}
	}
	return access.Identify(ctx, remote, certificate, token, "create", grpcPath, r.Checker)
}

// shallow is gRPC's codec for protobuf that refuses what is nested too deep before it is decoded.
type shallow struct{}

// Name implements encoding.CodecV2.
func (shallow) Name() string { return "proto" }

// Marshal implements encoding.CodecV2.
func (shallow) Marshal(v any) (mem.BufferSlice, error) {
	return encoding.GetCodecV2("proto").Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (shallow) Unmarshal(data mem.BufferSlice, v any) error {
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	if err := checkDepth(buffer.ReadOnlyData()); err != nil {
		return err
	}
	return encoding.GetCodecV2("proto").Unmarshal(mem.BufferSlice{buffer}, v)
}

// ServeHTTP is [Store.ServeHTTP] for those whom the receiver lets in.
func (r *Receiver) ServeHTTP(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("POST "+HTTPPath, access.SameOrigin(access.Handler(r.Checker, r.HTTPHandler())))
	l = access.Listener(l)
	if r.TLS != nil {
		l = tls.NewListener(l, r.TLS)
	}
	return access.Serve(ctx, l, mux)
}

// Serve is [Store.Serve] for those whom the receiver lets in.
func (r *Receiver) Serve(ctx context.Context, grpcListener, httpListener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 2)
	run := func(i int, l net.Listener, serve func(context.Context, net.Listener) error) {
		if l != nil {
			wg.Go(func() { defer cancel(); errs[i] = serve(ctx, l) })
		}
	}
	run(0, grpcListener, r.ServeGRPC)
	run(1, httpListener, r.ServeHTTP)
	wg.Wait()
	return errors.Join(errs...)
}

// ServeHTTP serves h from l until ctx ends: see [access.Serve].
func ServeHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	return access.Serve(ctx, l, h)
}

type grpcService struct {
	ptraceotlp.UnimplementedGRPCServer
	receiver *Receiver
}

func (g *grpcService) Export(ctx context.Context, req ptraceotlp.ExportRequest) (ptraceotlp.ExportResponse, error) {
	return g.receiver.export(ctx, req), nil
}

func (r *Receiver) export(ctx context.Context, req ptraceotlp.ExportRequest) ptraceotlp.ExportResponse {
	resp := ptraceotlp.NewExportResponse()
	c := access.Of(ctx)
	if refused := r.Store.Receive(req.Traces(), c); refused > 0 {
		why := "spans without a valid ID, or of a trace that is full"
		if c.Node+c.Pod != "" {
			why += ", or of others than " + c.Name
		}
		resp.PartialSuccess().SetRejectedSpans(int64(refused))
		resp.PartialSuccess().SetErrorMessage(why)
	}
	return resp
}

const (
	typeProtobuf = "application/x-protobuf"
	typeJSON     = "application/json"
)

// HTTPHandler gives the handler of OTLP over HTTP, to be mounted at [HTTPPath].
func (r *Receiver) HTTPHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		contentType, _, _ := mime.ParseMediaType(request.Header.Get("Content-Type"))
		if contentType != typeProtobuf && contentType != typeJSON {
			refuse(w, typeProtobuf, http.StatusUnsupportedMediaType, codes.InvalidArgument,
				fmt.Sprintf("content type %q: want %s or %s", contentType, typeProtobuf, typeJSON))
			return
		}
		if r.pressed() {
			w.Header().Set("Retry-After", "1")
			refuse(w, contentType, http.StatusServiceUnavailable, codes.Unavailable, "no memory for more at the moment")
			return
		}
		body, done, status, err := r.readBody(w, request)
		defer done()
		if err != nil {
			refuse(w, contentType, status, codes.InvalidArgument, err.Error())
			return
		}
		req := ptraceotlp.NewExportRequest()
		if contentType == typeJSON {
			if err = checkJSONDepth(body); err == nil {
				err = req.UnmarshalJSON(body)
			}
		} else if err = checkDepth(body); err == nil {
			err = req.UnmarshalProto(body)
		}
		if err != nil {
			refuse(w, contentType, http.StatusBadRequest, codes.InvalidArgument, "not an ExportTraceServiceRequest: "+
				err.Error())
			return
		}
		resp := r.export(request.Context(), req)
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

// readBody gives the body decompressed; else the HTTP status for the error. done is to be called when the body is not
// needed any more.
func (r *Receiver) readBody(w http.ResponseWriter, request *http.Request) (body []byte, done func(), code int,
	err error) {
	none := func() {}
	var in io.Reader = http.MaxBytesReader(w, request.Body, maxBody)
	switch encoding := request.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
	case "gzip":
		unzipped, err := gzip.NewReader(in)
		if err != nil {
			return nil, none, http.StatusBadRequest, fmt.Errorf("body: %w", err)
		}
		in = unzipped
	default:
		err := fmt.Errorf("content encoding %q: want gzip or none", encoding)
		return nil, none, http.StatusUnsupportedMediaType, err
	}
	body, done, err = r.bodies.read(io.LimitReader(in, maxBody+1))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, errBusy):
		w.Header().Set("Retry-After", "1")
		return nil, done, http.StatusServiceUnavailable, err
	case errors.As(err, &tooLarge) || len(body) > maxBody:
		return nil, done, http.StatusRequestEntityTooLarge, fmt.Errorf("body of more than %d bytes", maxBody)
	case err != nil:
		return nil, done, http.StatusBadRequest, fmt.Errorf("body: %w", err)
	}
	return body, done, http.StatusOK, nil
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
