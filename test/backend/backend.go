// Package backend starts the real servers that dnstrail's output goes to, on loopback: a Jaeger, a Prometheus. Each is
// stopped by its process ID.
package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// server is a process that is asked over HTTP whether it is ready.
type server struct {
	cmd  *exec.Cmd
	done chan struct{}
	mu   sync.Mutex
	log  bytes.Buffer
}

// Write keeps what the process says.
func (s *server) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(b)
}

// Log gives what the process has said so far.
func (s *server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// Stop ends the process: SIGTERM, and SIGKILL after three seconds.
func (s *server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(3 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

// start runs a command and waits, 30 s at most, until a GET of ready gives 200.
func start(ctx context.Context, cmd *exec.Cmd, ready string) (*server, error) {
	s := &server{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = s, s
	// A process group of its own: Ctrl-C reaches the program that started it, which stops it. Should that die, the kernel
	// does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := startLocked(cmd); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		close(s.done)
	}()
	name := filepath.Base(cmd.Path)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if ok(ctx, ready) {
			return s, nil
		}
		select {
		case <-s.done:
			return nil, fmt.Errorf("%s ended at its start:\n%s", name, s.Log())
		case <-ctx.Done():
			s.Stop()
			return nil, ctx.Err()
		default:
		}
		if time.Now().After(end) {
			s.Stop()
			return nil, fmt.Errorf("%s is not ready after 30 s:\n%s", name, s.Log())
		}
	}
}

func ok(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// ports gives n free TCP addresses on loopback.
func ports(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all stay open until all are chosen, so that none is given twice
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// Jaeger is a running Jaeger that holds everything in memory.
type Jaeger struct {
	*server
	// OTLP is its OTLP/gRPC address, Query the URL of its query API and page.
	OTLP, Query string
}

// StartJaeger starts the Jaeger built by test/jaeger (bin is the executable, config test/jaeger/config.yaml) with room
// for that many traces.
func StartJaeger(ctx context.Context, bin, config string, traces int) (*Jaeger, error) {
	if _, err := os.Stat(bin); err != nil {
		return nil, fmt.Errorf("jaeger is not built (make jaeger): %w", err)
	}
	addrs, err := ports(4)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(bin, "--config", config)
	cmd.Env = append(os.Environ(),
		"DNSTRAIL_JAEGER_OTLP_GRPC="+addrs[0], "DNSTRAIL_JAEGER_OTLP_HTTP="+addrs[1],
		"DNSTRAIL_JAEGER_QUERY="+addrs[2], "DNSTRAIL_JAEGER_QUERY_GRPC="+addrs[3],
		fmt.Sprintf("DNSTRAIL_JAEGER_TRACES=%d", traces))
	j := &Jaeger{OTLP: addrs[0], Query: "http://" + addrs[2]}
	if j.server, err = start(ctx, cmd, j.Query+"/api/services"); err != nil {
		return nil, err
	}
	return j, nil
}

// Prometheus is a running Prometheus that keeps exemplars and native histograms.
type Prometheus struct {
	*server
	// URL is that of its API and page.
	URL string
}

// StartPrometheus starts Debian's prometheus with its data below dir; it scrapes the targets (host:port) every second.
func StartPrometheus(ctx context.Context, dir string, targets ...string) (*Prometheus, error) {
	bin, err := exec.LookPath("prometheus")
	if err != nil {
		return nil, errors.New("prometheus is not installed (Debian's package prometheus)")
	}
	addrs, err := ports(1)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: dnstrail\n  static_configs:\n  "+
		"- targets: [%q]\n", strings.Join(targets, `", "`))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(bin, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+addrs[0], "--enable-feature=exemplar-storage,native-histograms", "--log.level=warn")
	p := &Prometheus{URL: "http://" + addrs[0]}
	if p.server, err = start(ctx, cmd, p.URL+"/-/ready"); err != nil {
		return nil, err
	}
	return p, nil
}
