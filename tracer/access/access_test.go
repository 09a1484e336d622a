package access

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func hello(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := fmt.Fprintf(w, "%+v", Of(r.Context())); err != nil {
			t.Error(err)
		}
	})
}

// TestLocal: what a browser sends for the pages of others, with DNS rebinding and without, and what programs send.
func TestLocal(t *testing.T) {
	h := Local([]string{"dns.example.net"}, hello(t))
	for _, tc := range []struct {
		name, host string
		head       map[string]string
		status     int
	}{
		{"a program by address", "127.0.0.1:16686", nil, 200},
		{"a program by IPv6 address", "[::1]:16686", nil, 200},
		{"a program by name", "localhost:16686", nil, 200},
		{"within the cluster", "dnstrail-store.kube-system.svc:16686", nil, 200},
		{"within the cluster, in full", "dnstrail-store.kube-system.svc.cluster.local.:16686", nil, 200},
		{"a container's name", "store:16686", nil, 200},
		{"a name that was given", "DNS.example.net", nil, 200},
		{"an address typed into a browser", "127.0.0.1:16686", map[string]string{"Sec-Fetch-Site": "none"}, 200},
		{"its own page", "127.0.0.1:16686", map[string]string{"Sec-Fetch-Site": "same-origin",
			"Origin": "http://127.0.0.1:16686"}, 200},
		{"a site that was rebound", "evil.example:16686", map[string]string{"Sec-Fetch-Site": "same-origin"}, 421},
		{"a site that was rebound, posting", "evil.example", map[string]string{"Origin": "http://evil.example"}, 421},
		{"a site named like an address", "127.0.0.1.evil.example", nil, 421},
		{"a site named like the cluster", "svc.evil.example", nil, 421},
		{"no host", "", nil, 421},
		{"another site", "127.0.0.1:16686", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"another port of this machine", "127.0.0.1:16686", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"another site, posting", "127.0.0.1:16686", map[string]string{"Origin": "http://evil.example"}, 403},
		{"a page from a file", "127.0.0.1:16686", map[string]string{"Origin": "null"}, 403},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/api/v3/services", nil)
			r.Host = tc.host
			for k, v := range tc.head {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != tc.status {
				t.Errorf("status %d, want %d", w.Code, tc.status)
			}
			if w.Header().Get("Access-Control-Allow-Origin") != "" {
				t.Error("another origin may read it")
			}
		})
	}
}

func TestSubjects(t *testing.T) {
	node, _ := ParseSubject("node/node-1")
	pod, _ := ParseSubject("pod/kube-system/coredns-1")
	anyone, _ := ParseSubject("any/collector")
	for _, tc := range []struct {
		who                  Caller
		node, namespace, pod string
		may                  bool
	}{
		{node, "node-1", "shop", "cart", true}, {node, "node-2", "", "", false}, {node, "", "", "", false},
		{pod, "node-2", "kube-system", "coredns-1", true}, {pod, "node-2", "shop", "coredns-1", false}, {pod, "", "", "",
			false},
		{anyone, "node-2", "x", "y", true}, {Caller{}, "node-2", "x", "y", true},
	} {
		if may := tc.who.MaySpeakFor(tc.node, tc.namespace, tc.pod); may != tc.may {
			t.Errorf("%+v for node %q, pod %q/%q: %v, want %v", tc.who, tc.node, tc.namespace, tc.pod, may, tc.may)
		}
	}
	for _, bad := range []string{"", "node", "node/", "pod/x", "pod//y", "pod/x/", "any/", "all/x", "node/a/b",
		"pod/a/b/c"} {
		if c, err := ParseSubject(bad); err == nil {
			t.Errorf("%q was taken for %+v", bad, c)
		}
	}
}

func TestTokens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{
		"", "# nothing\n", "short node/a\n", "0123456789abcdef\n", "0123456789abcdef x/y\n", "0123456789abcdef node/a b\n",
	} {
		write(bad)
		if _, err := OpenTokens(path); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	write("# tokens\n0123456789abcdef node/node-1\n\nfedcba9876543210  any/collector\n")
	tokens, err := OpenTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(Handler(tokens, hello(t)))
	defer s.Close()
	for header, want := range map[string]string{
		"Bearer 0123456789abcdef": "200 {Address:127.0.0.1 Name:node/node-1 Node:node-1 Pod:}",
		"bearer fedcba9876543210": "200 {Address:127.0.0.1 Name:any/collector Node: Pod:}",
		"Bearer 0123456789abcdeX": "401 no valid credential",
		"Basic 0123456789abcdef":  "401 no valid credential",
		"":                        "401 no valid credential",
	} {
		if got := get(t, http.DefaultClient, s.URL, header); !strings.HasPrefix(got, want) {
			t.Errorf("%q: %q, want %q", header, got, want)
		}
	}
	// A token that was taken out of the file is known no more once it is read again.
	write("fedcba9876543210 any/collector\n")
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	tokens.read = time.Now().Add(-rereadAfter)
	if got := get(t, http.DefaultClient, s.URL, "Bearer 0123456789abcdef"); !strings.HasPrefix(got, "401") {
		t.Errorf("%q of a token that was taken away", got)
	}
}

func get(t *testing.T, c *http.Client, url, authorization string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	resp, err := c.Do(r)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(resp.StatusCode, " ", string(body))
}

// TestReviews: the API server says whose a token is and what its user may do; it is asked once a minute.
func TestReviews(t *testing.T) {
	client := fake.NewClientset()
	asked := 0
	client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked++
		review := a.(clienttesting.CreateAction).GetObject().(*authentication.TokenReview)
		switch review.Spec.Token {
		case "agent", "other":
			review.Status.Authenticated = true
			review.Status.User = authentication.UserInfo{
				Username: "system:serviceaccount:kube-system:" + review.Spec.Token,
				Extra:    map[string]authentication.ExtraValue{extraNode: {"node-1"}},
			}
		case "broken":
			return true, nil, errors.New("away")
		}
		return true, review, nil
	})
	client.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authorization.SubjectAccessReview)
		path := *review.Spec.NonResourceAttributes
		// As the role system:discovery has it, and one of ours.
		discovery := path.Verb == "get" && strings.HasPrefix(path.Path, "/api/")
		review.Status.Allowed = discovery || review.Spec.User == "system:serviceaccount:kube-system:agent" &&
			path == authorization.NonResourceAttributes{Path: "/v1/traces", Verb: "create"}
		return true, review, nil
	})
	r := &Reviews{Client: client}
	for range 2 {
		c, err := r.Check(t.Context(), "agent", "create", "/v1/traces")
		if err != nil || c.Node != "node-1" || c.Name != "system:serviceaccount:kube-system:agent" {
			t.Errorf("%+v, %v", c, err)
		}
	}
	if asked != 1 {
		t.Errorf("the API server was asked %d times for one token", asked)
	}
	for token, want := range map[string]error{"other": ErrForbidden, "stranger": ErrCredential} {
		if _, err := r.Check(t.Context(), token, "create", "/v1/traces"); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", token, err, want)
		}
	}
	if _, err := r.Check(t.Context(), "agent", "get", "/api/v3/traces/0123"); !errors.Is(err, ErrForbidden) {
		t.Errorf("%v of a path that is not allowed", err)
	}
	if _, err := r.Check(t.Context(), "broken", "create", "/v1/traces"); err == nil || errors.Is(err, ErrCredential) {
		t.Errorf("%v where the API server is away", err)
	}
}

// TestRights: what the API server is asked of a request. Nothing that is read is below /api, which all may get.
func TestRights(t *testing.T) {
	const grpcPath = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
	for _, tc := range [][4]string{
		{"create", "/v1/traces", "create", "/v1/traces"},
		{"create", grpcPath, "create", grpcPath},
		{"get", "/api/v3/traces", "get", "/dnstrail/api/v3/traces"},
		{"get", "/api/v3/traces/0123", "get", "/dnstrail/api/v3/traces"},
		{"get", "/api/v3/services", "get", "/dnstrail/api/v3/services"},
		{"create", "/v1/lookups", "get", "/dnstrail/v1/lookups"},
		{"get", "/v1/stats", "get", "/dnstrail/v1/stats"},
	} {
		if verb, path := right(tc[0], tc[1]); verb != tc[2] || path != tc[3] {
			t.Errorf("%s %s: %s %s", tc[0], tc[1], verb, path)
		}
	}
}

// TestReviewsStand: a token that was good counts while the API server is away, for a time; one that it takes back does
// not. One that is meant for another audience never does.
func TestReviewsStand(t *testing.T) {
	client := fake.NewClientset()
	away, taken, audiences := false, false, []string{"dnstrail"}
	client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if away {
			return true, nil, errors.New("away")
		}
		review := a.(clienttesting.CreateAction).GetObject().(*authentication.TokenReview)
		if !slices.Equal(review.Spec.Audiences, []string{"dnstrail"}) {
			t.Errorf("asked for audiences %q", review.Spec.Audiences)
		}
		review.Status.Authenticated, review.Status.Audiences = !taken, audiences
		review.Status.User.Username = "agent"
		return true, review, nil
	})
	client.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authorization.SubjectAccessReview)
		review.Status.Allowed = true
		return true, review, nil
	})
	r := &Reviews{Client: client, Audience: "dnstrail"}
	check := func(later time.Duration) error {
		for k, v := range r.known { // time goes by
			v.until, v.stands = v.until.Add(-later), v.stands.Add(-later)
			r.known[k] = v
		}
		_, err := r.Check(t.Context(), "agent", "create", "/v1/traces")
		return err
	}
	if err := check(0); err != nil {
		t.Fatal(err)
	}
	away = true
	for range 5 {
		if err := check(10 * time.Minute); err != nil {
			t.Errorf("while the API server is away: %v", err)
		}
	}
	if err := check(20 * time.Minute); err == nil {
		t.Error("a token counts that was good more than an hour ago")
	}
	away = false
	if err := check(0); err != nil {
		t.Error(err)
	}
	taken = true
	if err := check(2 * time.Minute); !errors.Is(err, ErrCredential) {
		t.Errorf("taken back: %v", err)
	}
	away = true
	if err := check(0); err == nil {
		t.Error("a token that was taken back counts while the API server is away")
	}
	away, taken, audiences = false, false, nil
	if err := check(0); !errors.Is(err, ErrCredential) {
		t.Errorf("a token for another audience: %v", err)
	}
}

// TestTLS: with a certificate of a node, of nobody, and of a stranger.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	serverCert, serverKey := ca.issue(t, dir, "server", "127.0.0.1")
	config, err := TLS(serverCert, serverKey, filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	s := Server(Handler(nil, hello(t)))
	s.ErrorLog = log.New(io.Discard, "", 0)
	go func() { _ = s.Serve(l) }()
	defer func() { _ = s.Close() }()
	url := "https://" + l.Addr().String()
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	client := func(certs ...tls.Certificate) *http.Client {
		c := &tls.Config{RootCAs: pool, Certificates: certs, MinVersion: tls.VersionTLS12}
		return &http.Client{Transport: &http.Transport{TLSClientConfig: c}}
	}
	load := func(cert, key string) tls.Certificate {
		c, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if got := get(t, client(load(ca.issue(t, dir, "agent", "node/node-1"))), url, ""); !strings.Contains(
		got, "Node:node-1") {
		t.Errorf("a node's certificate: %q", got)
	}
	if got := get(t, client(load(ca.issue(t, dir, "odd", "somebody"))), url, ""); !strings.HasPrefix(got, "403") {
		t.Errorf("a certificate of no subject: %q", got)
	}
	if got := get(t, client(), url, ""); strings.HasPrefix(got, "200") || !strings.Contains(got, "Get ") {
		t.Errorf("no certificate: %q", got)
	}
	stranger := newAuthority(t, dir, "other")
	bad := client(load(stranger.issue(t, dir, "bad", "node/node-1")))
	if got := get(t, bad, url, ""); strings.HasPrefix(got, "200") || !strings.Contains(got, "Get ") {
		t.Errorf("a stranger's certificate: %q", got)
	}
	for _, bad := range [][3]string{{"x", "", ""}, {"", "", "x"}, {"nowhere", "nowhere", ""},
		{serverCert, serverKey, serverKey}} {
		if _, err := TLS(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".pem"), "CERTIFICATE", der)
	return &authority{cert, key}
}

// issue writes a certificate of subject, and its key, and gives the names of both files.
func (a *authority) issue(t *testing.T, dir, name, subject string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: subject}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "PRIVATE KEY", keyDER)
	return certFile, keyFile
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// remote is a listener whose connections seem to come from elsewhere.
type remote struct {
	net.Listener
	from func() netip.Addr
}

type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

func (r remote) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return from{c, net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.from(), 40000))}, nil
}

// TestConnectionsOfOne: who opens thousands of connections and leaves them half used keeps nobody else out.
func TestConnectionsOfOne(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	attacker, victim := netip.MustParseAddr("fd00::66"), netip.MustParseAddr("fd00:0:0:1::1")
	who := make(chan netip.Addr, 1)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	bounded := Listener(remote{l, func() netip.Addr { return <-who }}).(*listener)
	bounded.most, bounded.mostOfOne = 40, 10
	go func() { done <- Serve(ctx, bounded, hello(t)) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for i := range 2 * bounded.most {
		other := attacker.As16() // all of one /64
		other[15] = byte(i)
		who <- netip.AddrFrom16(other)
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf") // closed already, or open
	}
	who <- victim
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, "200") {
		t.Errorf("the victim's answer: %q, %v", line, err)
	}
}

// TestServerHasTimeouts: half a header, half a body and an idle connection do not stay.
func TestServerHasTimeouts(t *testing.T) {
	s := Server(hello(t))
	for name, d := range map[string]time.Duration{
		"header": s.ReadHeaderTimeout, "request": s.ReadTimeout, "answer": s.WriteTimeout, "idle": s.IdleTimeout,
	} {
		if d <= 0 || d > time.Minute {
			t.Errorf("the time for the %s is %v", name, d)
		}
	}
	if s.MaxHeaderBytes <= 0 || s.MaxHeaderBytes > 1<<20 {
		t.Errorf("a header may have %d bytes", s.MaxHeaderBytes)
	}
	s.ReadTimeout, s.ReadHeaderTimeout = 300*time.Millisecond, 200*time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(Listener(l)) }()
	defer func() { _ = s.Close() }()
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusRequestTimeout)
		}
	})
	for name, text := range map[string]string{
		"half a header": "GET / HTTP/1.1\r\nHo", "half a body": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n" +
			"\r\nhalf",
	} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("%s: the connection stays: %v", name, err)
		}
		_ = c.Close()
	}
}

// TestClientShowsItsToken, and to nobody to whom it is sent on.
func TestClientShowsItsToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	shown := make(chan string, 2)
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		shown <- "other: " + r.Header.Get("Authorization")
	}))
	defer other.Close()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown <- r.Header.Get("Authorization")
		http.Redirect(w, r, other.URL, http.StatusFound)
	}))
	defer s.Close()
	c, err := Client(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, c, s.URL, ""); !strings.HasPrefix(got, "302") {
		t.Errorf("%q", got)
	}
	if got := <-shown; got != "Bearer 0123456789abcdef" || len(shown) > 0 {
		t.Errorf("shown %q, and %d more", got, len(shown))
	}
	if _, err := Client(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there was taken")
	}
}
