package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestReadme starts every Corefile of the README, and looks at its sections as CoreDNS's own test does.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, section := range []string{
		"\n## Name\n", "\n## Description\n", "\n## Syntax\n", "\n## Metrics\n", "\n## Metadata\n", "\n## Ready\n",
		"\n## Examples\n", "\n## See Also\n", "\n## Bugs\n",
	} {
		i := strings.Index(string(text), section)
		if i < at {
			t.Errorf("section%q is missing or out of order", section)
		}
		at = i
	}
	blocks := regexp.MustCompile("(?s)~~~ corefile\n(.*?)~~~").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 5 {
		t.Fatalf("%d Corefiles", len(blocks))
	}
	for _, b := range blocks {
		startExample(t, b[1])
	}
}

// TestExamples starts every Corefile of corefile-examples.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "corefile-examples", "*.Corefile"))
	if err != nil || len(files) < 8 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			startExample(t, string(text))
		})
	}
}

// startExample starts a Corefile with all its addresses moved to loopback, and all its files in place.
func startExample(t *testing.T, corefile string) {
	t.Helper()
	dir := t.TempDir()
	certificate(t, dir)
	write := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	zone := write("db.example.org", "$ORIGIN example.org.\n@ 60 IN SOA ns host 1 60 60 60 60\n@ 60 IN NS ns\nns 60 IN "+
		"A 192.0.2.1\n")
	clients := identityFile(t)
	up := newUpstream(t, answering(60))
	ports := map[string]string{}
	key := regexp.MustCompile(`^((?:[a-z0-9]+://)?)([^\s:{(]+)((?::\d+)?)$`)
	var out []string
	for line := range strings.SplitSeq(corefile, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if !strings.HasPrefix(line, " ") && words[len(words)-1] == "{" && !strings.HasPrefix(words[0], "(") {
			for i, w := range words[:len(words)-1] {
				m := key.FindStringSubmatch(w)
				if m == nil {
					t.Fatalf("key %q", w)
				}
				p := m[1] + m[3]
				if ports[p] == "" {
					ports[p] = freePort(t)
				}
				words[i] = m[1] + m[2] + ":" + ports[p]
			}
			out = append(out, strings.Join(words, " "), "bind 127.0.0.1")
			continue
		}
		switch words[0] {
		case "bind":
			continue
		case "prometheus", "ready":
			line = words[0] + " 127.0.0.1:0"
		case "health":
			line = "health 127.0.0.1:0"
			if words[len(words)-1] == "{" {
				line += " {"
			}
		case "lameduck":
			line = "lameduck 10ms"
		case "tls":
			line = "tls " + filepath.Join(dir, "cert.pem") + " " + filepath.Join(dir, "key.pem")
		case "file":
			line = "file " + zone
		case "kubernetes":
			line += "\nendpoint http://127.0.0.1:1\nstartup_timeout 10ms"
		case "identity":
			line = strings.ReplaceAll(line, "clients.yaml", clients)
		case "forward":
			line = regexp.MustCompile(`/etc/resolv.conf|\b9\.9\.9\.9\b`).ReplaceAllString(line, up.addr)
			line = regexp.MustCompile(`(tls|https)://\S+`).ReplaceAllString(line, "$1://127.0.0.1:1")
		}
		out = append(out, line)
	}
	moved := strings.Join(out, "\n")
	// In a process of its own, as CoreDNS runs: plugin kubernetes sets client-go's logger whenever it is set up, which is
	// no safe thing to do beside an informer that lives over reloads.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), exampleEnv+"="+moved)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, out, moved)
	}
}

// exampleEnv makes the test binary start the Corefile that is its value, stop it, and end.
const exampleEnv = "DNSTRAIL_E2E_COREFILE"

func runExample(corefile string) error {
	s, err := tryStart(corefile)
	if err != nil {
		return err
	}
	s.stop()
	return nil
}

// certificate writes cert.pem and key.pem for localhost.
func certificate(t testing.TB, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
