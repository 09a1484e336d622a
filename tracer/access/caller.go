package access

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"google.golang.org/grpc/peer"
)

// Caller is who is at the other end of a connection.
type Caller struct {
	// Address is where the connection comes from; invalid if it is not of TCP.
	Address netip.Addr
	// Name is the subject of the credential; "" without one.
	Name string
	// Node and Pod ("namespace/name") are the only ones whose spans it may send; "" where the credential does not say.
	Node, Pod string
}

// ErrCredential says that a credential is missing or not known. It tells nothing more: nobody shall learn how near a
// guess was.
var ErrCredential = errors.New("no valid credential")

// ErrForbidden says that the credential is known, and not enough.
var ErrForbidden = errors.New("the credential does not allow this")

// ParseSubject reads the subject of a credential: see the package's description.
func ParseSubject(text string) (Caller, error) {
	kind, name, _ := strings.Cut(text, "/")
	namespace, pod, two := strings.Cut(name, "/")
	switch {
	case kind == "node" && name != "" && !two:
		return Caller{Name: text, Node: name}, nil
	case kind == "pod" && namespace != "" && pod != "" && !strings.Contains(pod, "/"):
		return Caller{Name: text, Pod: name}, nil
	case kind == "any" && name != "":
		return Caller{Name: text}, nil
	}
	return Caller{}, fmt.Errorf("subject %q: want node/NAME, pod/NAMESPACE/NAME or any/NAME", text)
}

// MaySpeakFor tells whether the caller may send what says of itself that it is from that node and pod, either of which
// may be "".
func (c Caller) MaySpeakFor(node, namespace, pod string) bool {
	switch {
	case c.Node != "":
		return node == c.Node
	case c.Pod != "":
		return namespace+"/"+pod == c.Pod
	}
	return true
}

type callerKey struct{}

// With gives a context that carries c.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// Of gives the caller that [With] put into ctx; else, in a call of gRPC, who is known by the address alone.
func Of(ctx context.Context) Caller {
	if c, ok := ctx.Value(callerKey{}).(Caller); ok {
		return c
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return Caller{Address: address(p.Addr.String())}
	}
	return Caller{}
}

// address gives the IP address of "address:port"; invalid of anything else.
func address(hostPort string) netip.Addr {
	ap, err := netip.ParseAddrPort(hostPort)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// A Checker knows credentials.
type Checker interface {
	// Check gives the caller whose token it is, who wants to use verb ("create", "get") on path. The error wraps
	// [ErrCredential] or [ErrForbidden], or says why it is not known at the moment.
	Check(ctx context.Context, token, verb, path string) (Caller, error)
}

// First gives a checker that asks each of several in turn; it is nil if there are none.
func First(checkers ...Checker) Checker {
	var some first
	for _, c := range checkers {
		if c != nil {
			some = append(some, c)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some
}

type first []Checker

func (f first) Check(ctx context.Context, token, verb, path string) (Caller, error) {
	var errs error
	for _, c := range f {
		caller, err := c.Check(ctx, token, verb, path)
		if err == nil || !errors.Is(err, ErrCredential) {
			return caller, err
		}
		errs = err
	}
	return Caller{}, errs
}

// Bearer gives the token of an Authorization header (RFC 6750, section 2.1); "" if there is none.
func Bearer(header string) string {
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// Identify gives who calls: by the client's certificate, which the handshake has checked, or else by the token that it
// sent, for which checker is asked. Without a checker whoever comes is taken for what its address is.
func Identify(ctx context.Context, remote string, certificate string, token, verb, path string, checker Checker) (
	Caller, error) {
	c := Caller{Address: address(remote)}
	switch {
	case certificate != "":
		subject, err := ParseSubject(certificate)
		if err != nil {
			return c, fmt.Errorf("%w: the client's certificate: %w", ErrForbidden, err)
		}
		subject.Address = c.Address
		return subject, nil
	case checker == nil:
		return c, nil
	case token == "":
		return c, fmt.Errorf("%w: want an Authorization header with a bearer token", ErrCredential)
	}
	known, err := checker.Check(ctx, token, verb, path)
	if err != nil {
		return c, err
	}
	known.Address = c.Address
	return known, nil
}

// Handler lets through to h whom checker knows, with the caller in the request's context ([Of]); nil knows everybody.
func Handler(checker Checker, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		verb := "get"
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			verb = "create"
		}
		certificate := ""
		if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
			certificate = r.TLS.VerifiedChains[0][0].Subject.CommonName
		}
		token := Bearer(r.Header.Get("Authorization"))
		c, err := Identify(r.Context(), r.RemoteAddr, certificate, token, verb, r.URL.Path, checker)
		switch {
		case errors.Is(err, ErrForbidden):
			http.Error(w, err.Error(), http.StatusForbidden)
		case errors.Is(err, ErrCredential):
			w.Header().Set("WWW-Authenticate", `Bearer realm="dnstrail"`)
			http.Error(w, err.Error(), http.StatusUnauthorized)
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			h.ServeHTTP(w, r.WithContext(With(r.Context(), c)))
		}
	})
}

// Loopback tells whether nobody but this machine can reach a listener.
func Loopback(a net.Addr) bool {
	if a.Network() == "unix" {
		return true
	}
	return address(a.String()).IsLoopback()
}
