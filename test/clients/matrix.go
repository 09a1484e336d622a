package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dnstrail/dnstrail/test/lab"
)

// client is a program that looks names up as people's programs do, and how it is run.
type client struct {
	name string
	// core marks what make test runs.
	core bool
	// nameservers and options are those of its pod's resolv.conf; the service, and ndots:5, if empty.
	nameservers []netip.Addr
	options     string
	// server is a program that runs in the pod for as long as the client does, and listens on port 53 of local.
	server *lab.Command
	local  netip.Addr
	// runs are run one after the other.
	runs []lab.Command
	// processes are names that its lookups may go by, beside the base names of the programs in runs and server.
	processes []string
}

// silentServer is an address that loses what it gets.
var silentServer = netip.MustParseAddr("192.168.100.1")

// tools is where what the clients need has been put.
type tools struct {
	dir  string // compiled programs, query lists, configuration
	self string // this program
	// extracted is the directory of programs that were taken out of their Debian package without installing it.
	extracted string
}

func (t *tools) file(name string) string { return filepath.Join(t.dir, name) }

func command(path string, args ...string) lab.Command { return lab.Command{Path: path, Args: args} }

// names gives names of the kinds that matter to a resolver, each asked by one client alone: found by the search path,
// found, not there, without an address, truncated, failing.
func names(client string) []string {
	all := []string{"payments.shop"}
	for _, label := range []string{"www", "nxdomain", "nodata", "tc", "servfail"} {
		all = append(all, fmt.Sprintf("%s.%s.example.com", label, strings.ReplaceAll(client, " ", "-")))
	}
	return all
}

func clients(t *tools) []client {
	return slices.Concat(libraries(t), programs(t), servers(t))
}

// libraries are what programs resolve names with.
func libraries(t *tools) []client {
	glibc, musl := t.file("glibc-client"), t.file("musl-client")
	one, two := []netip.Addr{silentServer}, []netip.Addr{silentServer, lab.ServiceV4}
	all := []client{{name: "glibc", core: true, runs: []lab.Command{command(glibc, names("glibc")...)}}}
	for _, option := range []string{"single-request", "single-request-reopen", "use-vc", "edns0 trust-ad"} {
		name := "glibc " + option
		run := command(glibc, names(name)...)
		all = append(all, client{name: name, options: "ndots:5 " + option, runs: []lab.Command{run}})
	}
	add := func(c client, runs ...lab.Command) {
		c.runs = runs
		all = append(all, c)
	}
	const near = "ndots:1"
	add(client{name: "glibc second server", nameservers: two, options: near},
		command(glibc, "www.glibc-second.example.com"))
	add(client{name: "glibc one server silent", nameservers: one, options: near},
		command(glibc, "www.glibc-silent.example.com"))
	add(client{name: "musl", core: true}, command(musl, names("musl")...))
	add(client{name: "musl second server", core: true, nameservers: two, options: near},
		command(musl, names("musl-second")...))
	self := lab.Command{Path: t.self, Env: []string{goClientEnv + "=" + strings.Join(names("go"), " ")}}
	add(client{name: "go", core: true}, self)
	add(client{name: "python", core: true}, script("/usr/bin/python3", t.file("lookup.py"), "python"))
	add(client{name: "node"}, script("node", t.file("lookup.js"), "node"))
	add(client{name: "java"}, command("java", append([]string{"-cp", t.dir, "Lookup"}, names("java")...)...))
	return all
}

// programs are what people ask DNS with by hand, and what loads it.
func programs(t *tools) []client {
	service, silent := lab.ServiceV4.String(), silentServer.String()
	at := "@" + service
	queries := t.file("queries")
	return []client{
		{name: "busybox nslookup", runs: each(names("busybox"), "busybox", "nslookup")},
		{name: "busybox wget", processes: []string{"busybox"}, runs: []lab.Command{
			command("timeout", "2", "busybox", "wget", "-O-", "http://www.busybox-wget.example.com/"),
		}},
		{name: "dig", core: true, runs: append(each(names("dig"), "dig", "+tries=1", "+search"),
			command("dig", "+tcp", "www.dig-tcp.example.com"),
			command("dig", "+tries=2", "+time=1", "@"+silent, "www.dig-silent.example.com"))},
		{name: "delv", runs: []lab.Command{command("delv", "-i", at, "www.delv.example.com")}},
		{name: "drill", runs: []lab.Command{
			command("drill", at, "www.drill.example.com"), command("drill", "-t", at, "www.drill-tcp.example.com"),
		}},
		{name: "kdig", core: true, runs: []lab.Command{
			command("kdig", append([]string{at}, names("kdig")...)...),
			command("kdig", append([]string{"+tcp", "+keepopen", at}, names("kdig-tcp")...)...),
			command("kdig", "+tls", "+retry=0", "+time=1", at, "www.kdig-tls.example.com"), // not to be seen
		}},
		{name: "dnsperf tcp", core: true, runs: []lab.Command{
			command("dnsperf", "-s", service, "-d", queries, "-m", "tcp", "-c", "2", "-q", "100", "-n", "4"),
		}},
		{name: "dnsperf udp", core: true, runs: []lab.Command{
			command("dnsperf", "-s", service, "-d", queries, "-c", "4", "-q", "100", "-n", "4"),
		}},
	}
}

// servers are DNS servers in the pod, which a client in the pod asks.
func servers(t *tools) []client {
	loopback, stub := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.53")
	dnsmasq := command("/usr/sbin/dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null",
		"--user=root", "--pid-file=", "--cache-size=0", "--listen-address=127.0.0.1", "--server="+lab.ServiceV4.String())
	resolved := command("/bin/sh", t.file("resolved.sh"), filepath.Join(t.extracted, "lib/systemd/systemd-resolved"))
	named := command(filepath.Join(t.extracted, "usr/sbin/named"), "-f", "-c", t.file("named.conf"))
	unbound := command("/usr/sbin/unbound", "-d", "-c", t.file("unbound.conf"))
	all := []client{
		{name: "dnsmasq", local: loopback, server: &dnsmasq},
		{name: "systemd-resolved", local: stub, server: &resolved, processes: []string{"systemd-resolve"}},
		{name: "named", local: loopback, server: &named},
		{name: "unbound", local: loopback, server: &unbound},
	}
	for i := range all {
		c := &all[i]
		c.nameservers = []netip.Addr{c.local}
		c.runs = []lab.Command{command(t.file("glibc-client"), names(c.name)...)}
	}
	return all
}

func script(path, file, client string) lab.Command {
	return command(path, append([]string{file}, names(client)...)...)
}

func each(names []string, path string, args ...string) []lab.Command {
	var runs []lab.Command
	for _, n := range names {
		runs = append(runs, command(path, append(slices.Clone(args), n)...))
	}
	return runs
}

// queries writes what dnsperf asks.
func (t *tools) queries() error {
	var list strings.Builder
	for i := range 500 {
		fmt.Fprintf(&list, "host-%d.example.com A\nnxdomain-%d.example.org AAAA\n", i, i)
	}
	return os.WriteFile(t.file("queries"), []byte(list.String()), 0o644)
}
