// Package apiserver starts a real Kubernetes API server with an etcd behind it, on loopback, for tests of what reads
// from it. The programs are built by test/kube/build.sh.
package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// startLimit is how long a program may take until it serves.
const startLimit = 2 * time.Minute

// The users that the API server knows, each by the token of the same name.
const (
	Admin   = "admin"   // may do everything
	CoreDNS = "coredns" // may do what RBAC grants to it
)

// Server is a running API server.
type Server struct {
	URL string // https, with a certificate that the server made itself

	bin, dir string
	etcdURL  string
	etcd     *exec.Cmd
	api      *exec.Cmd
}

// Start starts etcd and kube-apiserver from the directory bin, with their data in dir, and waits until they serve. Stop
// them with Stop.
func Start(ctx context.Context, bin, dir string) (*Server, error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	s := &Server{
		bin: bin, dir: dir,
		URL:     "https://127.0.0.1:" + strconv.Itoa(ports[0]),
		etcdURL: "http://127.0.0.1:" + strconv.Itoa(ports[1]),
	}
	if err := s.files(); err != nil {
		return nil, err
	}
	peer := "http://127.0.0.1:" + strconv.Itoa(ports[2])
	s.etcd, err = s.run("etcd", "--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--logger=zap",
		"--log-level=error",
		"--quota-backend-bytes=4294967296",
		"--listen-client-urls="+s.etcdURL, "--advertise-client-urls="+s.etcdURL,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	if err != nil {
		return nil, err
	}
	if err := s.StartAPI(ctx); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// StartAPI starts the API server, at the same address as before if it ran before, and waits until it serves.
func (s *Server) StartAPI(ctx context.Context) error {
	key := filepath.Join(s.dir, "key.pem")
	_, port, err := net.SplitHostPort(s.URL[len("https://"):])
	if err != nil {
		return err
	}
	s.api, err = s.run("kube-apiserver",
		"--etcd-servers="+s.etcdURL, "--bind-address=127.0.0.1", "--secure-port="+port,
		"--cert-dir="+filepath.Join(s.dir, "certs"),
		"--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/24",
		"--token-auth-file="+filepath.Join(s.dir, "tokens.csv"), "--authorization-mode=RBAC",
		"--disable-admission-plugins=ServiceAccount",
		"--service-account-issuer=https://test", "--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		"--max-requests-inflight=2000", "--max-mutating-requests-inflight=2000")
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(s.Config(Admin))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		if _, err = client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kube-apiserver does not serve (its log is %s): %w", filepath.Join(s.dir, "kube-apiserver.log"),
				err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// StopAPI stops the API server and leaves etcd, with all that is stored, alone.
func (s *Server) StopAPI() { stop(s.api); s.api = nil }

// Stop stops both.
func (s *Server) Stop() {
	stop(s.api)
	stop(s.etcd)
	s.api, s.etcd = nil, nil
}

// Config gives what a client needs to talk to the server as a user.
func (s *Server) Config(user string) *rest.Config {
	return &rest.Config{Host: s.URL, BearerToken: user, TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: 1000,
		Burst: 1000}
}

// Kubeconfig writes a kubeconfig for a user and gives its path.
func (s *Server) Kubeconfig(user string) (string, error) {
	path := filepath.Join(s.dir, "kubeconfig-"+user)
	content := fmt.Sprintf(
		`{clusters: [{name: test, cluster: {server: %q, insecure-skip-tls-verify: true}}],
users: [{name: u, user: {token: %q}}],
contexts: [{name: test, context: {cluster: test, user: u}}], current-context: test}
`, s.URL, user)
	return path, os.WriteFile(path, []byte(content), 0o600)
}

// files writes the tokens and the key of the service accounts.
func (s *Server) files() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	tokens := Admin + "," + Admin + ",1,system:masters\n" + CoreDNS + "," + CoreDNS + ",2\n"
	if err := os.WriteFile(filepath.Join(s.dir, "tokens.csv"), []byte(tokens), 0o600); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, "key.pem"),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// run starts a program; its output goes to a log beside its data.
func (s *Server) run(name string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the program has its own copy
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return cmd, nil
}

// stop ends a program: politely at first.
func stop(cmd *exec.Cmd) {
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	t := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	defer t.Stop()
	_ = cmd.Wait()
}

func freePorts(n int) (ports []int, err error) {
	for range n {
		l, e := net.Listen("tcp", "127.0.0.1:0")
		if e != nil {
			return nil, e
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
