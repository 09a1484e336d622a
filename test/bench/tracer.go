package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/dnstrail/dnstrail/test/cluster"
	"github.com/dnstrail/dnstrail/test/lab"
)

// benchTracer raises the lab and measures what the tracer costs in it.
func benchTracer(ctx context.Context, b *bench) (err error) {
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
	client, err := k.AddPod(lab.PodSpec{Node: k.Nodes()[0].Name, Namespace: "bench",
		Workload: lab.Workload{Kind: "Deployment", Name: "client"}})
	if err != nil {
		return err
	}
	iperf, err := k.DNS.Start(lab.Command{Path: "iperf3", Args: []string{"-s", "-p", "5201"}})
	if err != nil {
		return err
	}
	defer iperf.Kill()
	time.Sleep(300 * time.Millisecond) // iperf3 says nothing when it listens

	var plain, traced []float64
	for round := range b.rounds {
		gbit, err := iperf3(client, k.DNS.V4.String(), b.length)
		if err != nil {
			return err
		}
		plain = append(plain, gbit)
		var with float64
		if err := whileTraced(ctx, k, func(*lab.Process) error {
			with, err = iperf3(client, k.DNS.V4.String(), b.length)
			return err
		}); err != nil {
			return err
		}
		traced = append(traced, with)
		fmt.Fprintf(os.Stderr, "  round %d of %d: iperf3 %.2f Gbit/s, with the tracer %.2f Gbit/s\n", round+1, b.rounds, gbit,
			with)
	}
	ratios := make([]float64, b.rounds)
	for i := range ratios {
		ratios[i] = traced[i] / plain[i]
	}
	r := median(ratios)
	fmt.Printf("iperf3, pod to pod over two nodes: %.2f Gbit/s untraced, %.2f traced; ratio %.3f (budget 0.98: %s)\n\n",
		median(plain), median(traced), r, met(r >= 0.98))

	others, err := runs() // of another agent on this machine
	if err != nil {
		return err
	}
	return whileTraced(ctx, k, func(agent *lab.Process) error {
		if err := nanosecondsARun(client, k, b, others); err != nil {
			return err
		}
		return cpuALookup(ctx, client, k, agent, b)
	})
}

// whileTraced runs f with an agent, and ends the agent after it.
func whileTraced(ctx context.Context, k *cluster.Cluster, f func(*lab.Process) error) error {
	if err := k.StartAgents(ctx); err != nil {
		return err
	}
	agent := k.Agents[len(k.Agents)-1]
	err := f(agent)
	_ = agent.Stop(3 * time.Second) // how it ended says nothing here
	return err
}

// iperf3 gives the throughput of one TCP stream in Gbit/s.
func iperf3(from *lab.Pod, to string, length time.Duration) (float64, error) {
	var out strings.Builder
	p, err := from.Start(lab.Command{Path: "iperf3", Args: []string{"-c", to, "-p", "5201", "-J", "-t",
		strconv.Itoa(int(length.Seconds()))}, Stdout: &out})
	if err != nil {
		return 0, err
	}
	if err := p.Err(); err != nil {
		return 0, fmt.Errorf("iperf3: %w\n%s%s", err, out.String(), p.Stderr())
	}
	var result struct {
		End struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out.String()), &result); err != nil {
		return 0, fmt.Errorf("iperf3: %w", err)
	}
	return result.End.Received.BitsPerSecond / 1e9, nil
}

// The tracer's programs by name, and the hook of each where an empty program can stand beside it. The two at cgroup
// hooks cost the socket layer more than themselves when a second program is attached, so what measuring costs is not
// taken off them.
var hooks = map[string]string{
	"on_net_dev_queue":     "net_dev_queue",
	"on_netif_receive_skb": "netif_receive_skb",
	"on_kfree_skb":         "kfree_skb",
	"on_copy_datagram":     "skb_copy_datagram_iovec",
	"on_sock_recv":         "sock_recv_length",
	"on_sock_send":         "sock_send_length",
	"on_recvmsg4":          "",
	"on_recvmsg6":          "",
}

// nanosecondsARun prints what each program of the tracer costs a run, for packets that are not DNS and for DNS, less
// what the measuring itself costs: that is what an empty program at the same hook shows in the same seconds.
func nanosecondsARun(client *lab.Pod, k *cluster.Cluster, b *bench, others map[ebpf.ProgramID]tally) error {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return fmt.Errorf("switch BPF statistics on: %w", err)
	}
	defer stats.Close()
	empty, detach, err := emptyPrograms()
	if err != nil {
		return err
	}
	defer detach()
	fmt.Printf("%-28s %14s %14s   (net of an empty program's)\n", "eBPF program", "not DNS, ns", "DNS, ns")
	costs := map[string][2]float64{}
	for i, load := range []func() error{
		func() error { _, err := iperf3(client, k.DNS.V4.String(), b.length); return err },
		func() error { _, err := dnsperf(client, b, 4000, b.length); return err },
	} {
		before, err := runs()
		if err != nil {
			return err
		}
		if err := load(); err != nil {
			return err
		}
		after, err := runs()
		if err != nil {
			return err
		}
		base := map[string]float64{}
		for name, id := range empty {
			base[name] = after[id].since(before[id])
		}
		for id, a := range after {
			if _, other := others[id]; other || a.name == "" || a.count == before[id].count {
				continue
			}
			c := costs[a.name]
			c[i] = a.since(before[id]) - base[a.name]
			costs[a.name] = c
		}
	}
	budgets := [2]float64{25, 500}
	for _, name := range slices.Sorted(maps.Keys(costs)) {
		c := costs[name]
		verdict := met(c[0] <= budgets[0] && c[1] <= budgets[1])
		fmt.Printf("%-28s %14.0f %14.0f   %s\n", name, c[0], c[1], verdict)
	}
	fmt.Printf("budget: %.0f ns for a packet that is not DNS, %.0f ns for a DNS packet. In the DNS column every "+
		"packet is DNS, but for what the machine does beside.\n\n", budgets[0], budgets[1])
	return nil
}

// tally is how often a program ran, and for how long in all.
type tally struct {
	name  string // that of a program of the tracer, else empty
	count uint64
	time  time.Duration
}

func (t tally) since(before tally) float64 {
	if t.count == before.count {
		return 0
	}
	return float64(t.time-before.time) / float64(t.count-before.count)
}

// runs gives the statistics of every program on the machine; those of the tracer with their names.
func runs() (map[ebpf.ProgramID]tally, error) {
	all := map[ebpf.ProgramID]tally{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		info, err := p.Info()
		if err == nil {
			s, serr := p.Stats()
			t := tally{}
			if serr == nil {
				t.count, t.time = s.RunCount, s.Runtime
			}
			// The kernel cuts names at 15 bytes.
			for name := range hooks {
				if info.Name == name || len(info.Name) == 15 && strings.HasPrefix(name, info.Name) {
					t.name = name
				}
			}
			all[id] = t
		}
		p.Close()
	}
}

// emptyPrograms attaches a program that does nothing to each hook.
func emptyPrograms() (ids map[string]ebpf.ProgramID, detach func(), err error) {
	var closers []func() error
	detach = func() {
		for _, c := range closers {
			_ = c()
		}
	}
	ids = map[string]ebpf.ProgramID{}
	for name, hook := range hooks {
		if hook == "" {
			continue
		}
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "empty", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: hook, License: "Dual BSD/GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		})
		if err != nil {
			detach()
			return nil, nil, fmt.Errorf("load an empty program for %s: %w", hook, err)
		}
		closers = append(closers, p.Close)
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			detach()
			return nil, nil, fmt.Errorf("attach an empty program to %s: %w", hook, err)
		}
		closers = append(closers, l.Close)
		info, err := p.Info()
		if err != nil {
			detach()
			return nil, nil, err
		}
		ids[name], _ = info.ID()
	}
	return ids, detach, nil
}

// cpuALookup prints what the agent's user space costs a lookup, and whether it lost events, at rates up to the
// budget's.
func cpuALookup(ctx context.Context, client *lab.Pod, k *cluster.Cluster, agent *lab.Process, b *bench) error {
	fmt.Printf("%10s %12s %16s %12s\n", "asked/s", "answered/s", "us CPU a lookup", "events lost")
	// What is done once, reading the kernel's symbols for instance, is no part of a lookup.
	if _, err := dnsperf(client, b, 2000, time.Second); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	for _, rate := range []int{2000, 5000, 10000, 20000} {
		lost, err := eventsLost(ctx, k)
		if err != nil {
			return err
		}
		before, err := cpuTime(agent.PID())
		if err != nil {
			return err
		}
		n, err := dnsperf(client, b, rate, b.length)
		if err != nil {
			return err
		}
		time.Sleep(time.Second) // the last lookups are put together
		after, err := cpuTime(agent.PID())
		if err != nil {
			return err
		}
		now, err := eventsLost(ctx, k)
		if err != nil {
			return err
		}
		micros := float64((after - before).Microseconds()) / n
		fmt.Printf("%10d %12.0f %16.2f %12.0f   budget 10 us, none lost: %s\n", rate, n/b.length.Seconds(), micros, now-lost,
			met(micros <= 10 && now == lost))
	}
	return nil
}

// dnsperf asks at a rate and gives the number of answers.
func dnsperf(from *lab.Pod, b *bench, rate int, length time.Duration) (float64, error) {
	file := filepath.Join(b.dir, "lab-queries")
	var list strings.Builder
	for i := range 200 {
		fmt.Fprintf(&list, "host-%d.example.com A\n", i)
	}
	if err := os.WriteFile(file, []byte(list.String()), 0o644); err != nil {
		return 0, err
	}
	p, err := from.Start(lab.Command{Path: "dnsperf", Args: []string{
		"-s", lab.ServiceV4.String(), "-d", file, "-c", "10", "-q", "2000", "-Q", strconv.Itoa(rate), "-l",
		strconv.Itoa(int(length.Seconds())),
	}})
	if err != nil {
		return 0, err
	}
	if err := p.Err(); err != nil {
		return 0, fmt.Errorf("dnsperf: %w\n%s%s", err, p.Stdout(), p.Stderr())
	}
	done := completedLine.FindStringSubmatch(p.Stdout())
	if done == nil {
		return 0, fmt.Errorf("dnsperf printed no figures:\n%s", p.Stdout())
	}
	return strconv.ParseFloat(done[1], 64)
}

// eventsLost gives the number of kernel events that the newest agent says it lost.
func eventsLost(ctx context.Context, k *cluster.Cluster) (float64, error) {
	f, err := cluster.Scrape(ctx, k.AgentMetrics[len(k.AgentMetrics)-1])
	if err != nil {
		return 0, err
	}
	lost := 0.0
	for _, kind := range []string{"ring_full", "flood", "reentered", "undecodable"} {
		lost += f.Sum("dnstrail_losses_total", "kind", kind)
	}
	return lost, nil
}
