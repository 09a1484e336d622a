package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
)

// dearer is how much more than the older build a figure may be.
const dearer = 1.05

// The figures that two builds are compared by. All are costs: less is better.
const (
	queryPlain  = "CoreDNS, plain: us CPU a query"
	queryNone   = "CoreDNS with dnstrail, no span kept: us CPU a query"
	queryAll    = "CoreDNS with dnstrail, all spans: us CPU a query"
	kernelPlain = "eBPF beside iperf3: ns CPU a kB" // the packets are not DNS
	kernelDNS   = "eBPF: ns CPU a lookup"
	agentDNS    = "agent: us CPU a lookup"
)

// costs is one round of one build: a figure by name.
type costs map[string]float64

// benchAgainst measures two builds in turns, so that what the machine does beside meets both, and prints the ratio of
// each cost: the median of the rounds' ratios.
func benchAgainst(ctx context.Context, b *bench) error {
	bins := []string{b.against, b.bin}
	rounds := make([][]costs, len(bins))
	for round := range b.rounds {
		for i, bin := range bins {
			c := costs{}
			var err error
			if b.only != "tracer" {
				err = coreDNSCosts(ctx, b, bin, c)
			}
			if b.only != "coredns" {
				err = errors.Join(err, tracerCosts(ctx, b, bin, c))
			}
			if err != nil {
				return fmt.Errorf("%s: %w", bin, err)
			}
			rounds[i] = append(rounds[i], c)
			fmt.Fprintf(os.Stderr, "  round %d of %d: %s:", round+1, b.rounds, bin)
			for _, name := range []string{queryPlain, queryNone, queryAll, kernelPlain, kernelDNS, agentDNS} {
				fmt.Fprintf(os.Stderr, " %.1f", c[name])
			}
			fmt.Fprintln(os.Stderr)
		}
	}
	fmt.Printf("%-54s %10s %10s %8s\n", "cost, median of the rounds", "older", "this", "ratio")
	for _, name := range slices.Sorted(maps.Keys(rounds[0][0])) {
		var older, newer, ratio []float64
		for n := range b.rounds {
			older, newer = append(older, rounds[0][n][name]), append(newer, rounds[1][n][name])
			ratio = append(ratio, rounds[1][n][name]/rounds[0][n][name])
		}
		r := median(ratio)
		fmt.Printf("%-54s %10.2f %10.2f %8.3f", name, median(older), median(newer), r)
		if !strings.HasSuffix(name, "a run") { // a program may do more in a run; what counts is the sum
			fmt.Printf(" (at most %.2f: %s)", dearer, met(r <= dearer))
		}
		fmt.Println()
	}
	return nil
}

// coreDNSCosts measures cache hits in the CoreDNS of bin.
func coreDNSCosts(ctx context.Context, b *bench, bin string, c costs) error {
	upstream, stopUpstream, err := answerer()
	if err != nil {
		return err
	}
	defer stopUpstream()
	otlp, stopOTLP, err := discardOTLP()
	if err != nil {
		return err
	}
	defer stopOTLP()
	one := *b
	one.bin = bin
	for name, sample := range map[string]string{queryPlain: "", queryNone: "0", queryAll: "1"} {
		block := ""
		if sample != "" {
			block = fmt.Sprintf("dnstrail {\n endpoint grpc://%s\n sample %s\n }", otlp, sample)
		}
		m, err := loadCoreDNS(ctx, &one, block, upstream)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		c[name] = m.cpu
	}
	return nil
}

// The load under which the tracer is measured: far from what this machine can do, so that both builds see all of it.
const againstRate = 2000

// tracerCosts measures the tracer of bin in a lab of its own, confined to it.
func tracerCosts(ctx context.Context, b *bench, bin string, c costs) (err error) {
	collector, stop, err := discardOTLP()
	if err != nil {
		return err
	}
	defer stop()
	k, err := cluster.Up(ctx, cluster.Config{Bin: b.bin, Collector: collector, Sample: "0.01", Agents: cluster.NoAgent})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Down()) }()
	client, err := k.AddPod(lab.PodSpec{
		Node: k.Nodes()[0].Name, Namespace: "bench", Workload: lab.Workload{Kind: "Deployment", Name: "client"},
	})
	if err != nil {
		return err
	}
	iperf, err := k.DNS.Start(lab.Command{Path: "iperf3", Args: []string{"-s", "-p", "5201"}})
	if err != nil {
		return err
	}
	defer iperf.Kill()
	time.Sleep(300 * time.Millisecond) // iperf3 says nothing when it listens

	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return fmt.Errorf("switch BPF statistics on: %w", err)
	}
	defer stats.Close()
	others, err := runs() // of another agent on this machine
	if err != nil {
		return err
	}
	k.UseBin(bin)
	if err := k.StartLabAgent(ctx); err != nil {
		return err
	}
	agent := k.Agents[len(k.Agents)-1]
	ours := func() (programs map[ebpf.ProgramID]tally, sum time.Duration, err error) {
		programs, err = runs()
		for id, t := range programs {
			if _, other := others[id]; other || t.name == "" {
				delete(programs, id)
				continue
			}
			sum += t.time
		}
		return programs, sum, err
	}
	// What is done once, reading the kernel's symbols for instance, is no part of a lookup.
	if _, err := dnsperf(client, b, againstRate, time.Second); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)

	at, before, err := ours()
	if err != nil {
		return err
	}
	gbit, err := iperf3(client, k.DNS.V4.String(), b.length)
	if err != nil {
		return err
	}
	then, middle, err := ours()
	if err != nil {
		return err
	}
	c[kernelPlain] = float64((middle - before).Nanoseconds()) / (gbit * b.length.Seconds() * 1e6 / 8)

	cpu, err := cpuTime(agent.PID())
	if err != nil {
		return err
	}
	n, err := dnsperf(client, b, againstRate, b.length)
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // the last lookups are put together
	cpuAfter, err := cpuTime(agent.PID())
	if err != nil {
		return err
	}
	last, after, err := ours()
	if err != nil {
		return err
	}
	for id, t := range last {
		c[t.name+", not DNS: ns a run"] = then[id].since(at[id])
		c[t.name+", DNS: ns a run"] = t.since(then[id])
	}
	c[kernelDNS] = float64((after - middle).Nanoseconds()) / n
	c[agentDNS] = float64((cpuAfter - cpu).Microseconds()) / n
	_ = agent.Stop(3 * time.Second) // how it ended says nothing here
	return nil
}
