package main

import (
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestObserveRefuses: what does not go together, or cannot be read, before anything is watched.
func TestObserveRefuses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() { _ = http.Serve(l, http.NotFoundHandler()) }()
	for _, tc := range []struct{ want, args string }{
		{"--socket and --store: want one of them", "--socket /x --store http://127.0.0.1:1"},
		{"--store is empty", "--store="},
		{"no URL of a dnstrail store", "--store ftp://x"},
		{"asking the store at 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused",
			"--store http://127.0.0.1:1 --last 1"},
		{"it is no dnstrail store or agent of this version", "--last 1 --store " + l.Addr().String()},
		{"asking the agent at /none.sock: dial unix /none.sock", "--socket /none.sock --last 1"},
		{"--netns is for watching the kernel here, and does not go with --store", "--store http://127.0.0.1:1 --netns 1"},
		{"--identity-file is for watching the kernel here, and does not go with --socket", "--socket /x --identity-file /y"},
		{"--since needs --socket, --store or a cluster", "--since 5m"},
		{"--last needs --socket, --store or a cluster", "--last 5"},
		{"--follow needs --socket, --store or a cluster", "--follow"},
		{`--output "yaml": want text, wide or jsonl`, "-o yaml"},
		{"--slow -1s: want 0 or more", "--slow -1s"},
		{"--last -1: want 0 or more", "--store x --last -1"},
		{"--name: pattern \"[\": syntax error in pattern", "--name ["},
		{"--type: an empty pattern", "--type !"},
		{"--where nod: want one of answered, client, pod-link, service, node,", "--where nod"},
		{"--cause nothing: want one of answered,", "--cause !nothing"},
		{"unknown flag: --lots", "--lots"},
		{`unexpected argument "all": dnstrail observe takes flags only`, "all"},
	} {
		t.Run(tc.want, func(t *testing.T) {
			t.Setenv("KUBECONFIG", "/none")
			out, err := run(append([]string{"observe"}, strings.Fields(tc.args)...)...)
			want := strings.Replace(tc.want, "--cause nothing", "--cause !nothing", 1)
			if err == nil || !strings.Contains(err.Error(), want) || out != "" {
				t.Errorf("error %v, output %q", err, out)
			}
		})
	}
}

func TestCompletion(t *testing.T) {
	for flag, want := range map[string]string{
		"--output": "jsonl", "--rcode": "NXDOMAIN", "--type": "AAAA", "--where": "between-nodes", "--cause": "policy-drop",
	} {
		out, err := run("__complete", "observe", flag, "")
		if err != nil || !strings.Contains(out, want+"\n") || !strings.Contains(out, ":4") {
			t.Errorf("%s: %v\n%s", flag, err, out)
		}
	}
}
