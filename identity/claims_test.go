package identity

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// on moves a pod to a node with addresses.
func on(p *corev1.Pod, node string, hostIPs ...string) *corev1.Pod {
	p.Spec.NodeName = node
	p.Status.HostIP, p.Status.HostIPs = hostIPs[0], nil
	for _, ip := range hostIPs {
		p.Status.HostIPs = append(p.Status.HostIPs, corev1.HostIP{IP: ip})
	}
	return p
}

// sandboxAt gives a pod a new sandbox, n seconds after podAt's moment.
func sandboxAt(p *corev1.Pod, n int64) *corev1.Pod {
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
		Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue,
		LastTransitionTime: metav1.NewTime(time.Unix(1_800_000_000+n, 0)),
	})
	return p
}

func TestAddressesThatMove(t *testing.T) {
	now := time.Now()
	ended := func(p *corev1.Pod) *corev1.Pod { p.Status.Phase = corev1.PodFailed; return p }
	for _, family := range []struct{ name, a, b, c string }{
		{"IPv4", "10.0.0.10", "10.0.0.11", "10.0.0.12"},
		{"IPv6", "fd01::10", "fd01::11", "fd01::12"},
	} {
		a, b, c := family.a, family.b, family.c
		before := []any{podAt(100, "A", a), podAt(200, "B", b), podAt(300, "C", c)}
		for _, tt := range []struct {
			name string
			do   func(k *Kubernetes, s *podStore)
			want map[string]string
		}{
			{"swap, the older told first", func(_ *Kubernetes, s *podStore) {
				s.put(podAt(100, "A", b), now)
				s.put(podAt(200, "B", a), now)
			}, map[string]string{a: "pod B", b: "pod A", c: "pod C"}},
			{"swap, the younger told first", func(_ *Kubernetes, s *podStore) {
				s.put(podAt(200, "B", a), now)
				s.put(podAt(100, "A", b), now)
			}, map[string]string{a: "pod B", b: "pod A"}},
			{"swap half told: who moved has it", func(_ *Kubernetes, s *podStore) {
				s.put(podAt(100, "A", b), now)
			}, map[string]string{a: "external", b: "pod A"}},
			{"swap half told, then the other is deleted", func(_ *Kubernetes, s *podStore) {
				s.put(podAt(100, "A", b), now)
				s.delete(podAt(200, "B", b), now)
			}, map[string]string{a: "external", b: "pod A"}},
			{"the other is deleted first", func(_ *Kubernetes, s *podStore) {
				s.delete(podAt(200, "B", b), now)
				s.put(podAt(100, "A", b), now)
			}, map[string]string{a: "external", b: "pod A"}},
			{"the other is deleted, and its grace ends", func(k *Kubernetes, s *podStore) {
				s.put(podAt(100, "A", b), now)
				s.delete(podAt(200, "B", b), now)
				k.later(now.Add(2 * DefaultGrace))
			}, map[string]string{a: "external", b: "pod A"}},
			{"the other has run to its end", func(_ *Kubernetes, s *podStore) {
				s.put(podAt(100, "A", b), now)
				s.put(ended(podAt(200, "B", b)), now)
			}, map[string]string{b: "pod A"}},
			{"moved there and back", func(_ *Kubernetes, s *podStore) {
				s.put(podAt(100, "A", b), now)
				s.put(podAt(100, "A", a), now)
			}, map[string]string{a: "pod A", b: "pod B"}},
			{"ring of three, forwards", func(_ *Kubernetes, s *podStore) {
				s.put(podAt(100, "A", b), now)
				s.put(podAt(200, "B", c), now)
				s.put(podAt(300, "C", a), now)
			}, map[string]string{a: "pod C", b: "pod A", c: "pod B"}},
			{"ring of three, backwards", func(_ *Kubernetes, s *podStore) {
				s.put(podAt(300, "C", a), now)
				s.put(podAt(200, "B", c), now)
				s.put(podAt(100, "A", b), now)
			}, map[string]string{a: "pod C", b: "pod A", c: "pod B"}},
			{"swap told by a list", func(_ *Kubernetes, s *podStore) {
				s.replace([]any{podAt(100, "A", b), podAt(200, "B", a), podAt(300, "C", c)}, now)
			}, map[string]string{a: "pod B", b: "pod A"}},
			{"swap half told by a list", func(_ *Kubernetes, s *podStore) {
				s.replace([]any{podAt(100, "A", b), podAt(200, "B", b), podAt(300, "C", c)}, now)
			}, map[string]string{a: "external", b: "pod A"}},
			{"swap half told, then a list", func(_ *Kubernetes, s *podStore) {
				s.put(podAt(100, "A", b), now)
				s.replace([]any{podAt(100, "A", b), podAt(200, "B", a), podAt(300, "C", c)}, now)
			}, map[string]string{a: "pod B", b: "pod A"}},
			{"swap half told, then a list that tells no more", func(_ *Kubernetes, s *podStore) {
				s.put(podAt(100, "A", b), now)
				s.replace([]any{podAt(100, "A", b), podAt(200, "B", b), podAt(300, "C", c)}, now)
			}, map[string]string{b: "pod A"}},
			{"a stranger half told, where its sandbox is younger", func(_ *Kubernetes, s *podStore) {
				s.put(sandboxAt(podAt(50, "D", b), 900), now)
			}, map[string]string{b: "pod D"}},
			{"a stranger half told, where its container is younger", func(_ *Kubernetes, s *podStore) {
				p := podAt(50, "D", b)
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{
					Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(time.Unix(1_800_000_900, 0))},
				}}}
				s.put(p, now)
			}, map[string]string{b: "pod D"}},
			{"two came by it since the last list: the younger, whatever their names", func(_ *Kubernetes, s *podStore) {
				s.replace([]any{podAt(100, "A", c), podAt(200, "B", c), podAt(300, "C")}, now)
			}, map[string]string{c: "pod B"}},
			{"who takes it from one that is gone has it, who comes back does not", func(_ *Kubernetes, s *podStore) {
				s.replace([]any{podAt(200, "B", b), podAt(300, "C", c)}, now)
				s.put(podAt(200, "B", a), now)
				s.replace([]any{podAt(100, "A", a), podAt(200, "B", a), podAt(300, "C", c)}, now)
			}, map[string]string{a: "pod B"}},
			{"a pod's address becomes a node's", func(_ *Kubernetes, s *podStore) {
				s.delete(podAt(100, "A", a), now)
				s.put(on(podAt(400, "D"), "node-2", a), now)
			}, map[string]string{a: "node node-2"}},
			{"a node's address becomes a pod's", func(k *Kubernetes, s *podStore) {
				s.put(on(podAt(400, "D"), "node-2", "192.168.0.2"), now)
				s.delete(on(podAt(400, "D"), "node-2", "192.168.0.2"), now)
				k.later(now.Add(2 * DefaultGrace))
				s.put(podAt(100, "A", "192.168.0.2"), now)
			}, map[string]string{"192.168.0.2": "pod A"}},
			{"a node comes back at another address", func(_ *Kubernetes, s *podStore) {
				for i, ip := range []string{a, b, c} {
					s.put(on(podAt((i+1)*100, string(rune('A'+i)), ip), "node-1", "192.168.0.9", "fd00::1"), now)
				}
			}, map[string]string{"192.168.0.9": "node node-1", "192.168.0.1": "external", "fd00::1": "node node-1"}},
			{"two nodes swap their addresses", func(_ *Kubernetes, s *podStore) {
				s.put(on(podAt(400, "D"), "node-2", "192.168.0.2"), now)
				s.put(on(podAt(400, "D"), "node-2", "192.168.0.1"), now)
				s.put(on(podAt(100, "A", a), "node-1", "192.168.0.2"), now)
				s.put(on(podAt(200, "B", b), "node-1", "192.168.0.2"), now)
				s.put(on(podAt(300, "C", c), "node-1", "192.168.0.2"), now)
			}, map[string]string{"192.168.0.1": "node node-2", "192.168.0.2": "node node-1"}},
			{"a pod in the host's network moves to a network of its own", func(_ *Kubernetes, s *podStore) {
				s.put(hostNetwork(podAt(400, "D")), now)
				s.put(podAt(401, "E", "10.0.0.99"), now)
			}, map[string]string{"192.168.0.1": "node node-1", "10.0.0.99": "pod E"}},
		} {
			k := newKubernetes(KubernetesOptions{})
			s := &podStore{k}
			s.replace(slices.Clone(before), now)
			tt.do(k, s)
			for addr, want := range tt.want {
				if got := who(k.at(addr)); got != want {
					t.Errorf("%s: %s: %s is %q, want %q", family.name, tt.name, addr, got, want)
				}
			}
		}
	}
}

func TestNodesOfTheAPIMove(t *testing.T) {
	node := func(name string, addrs ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, a := range addrs {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		return n
	}
	now := time.Now()
	k := newKubernetes(KubernetesOptions{})
	(&podStore{k}).replace(nil, now)
	s := &nodeStore{k}
	is := func(addr, want string) {
		t.Helper()
		if got := who(k.at(addr)); got != want {
			t.Errorf("%s is %q, want %q", addr, got, want)
		}
	}
	s.replace([]any{node("a", "192.168.0.1", "fd00::1"), node("b", "192.168.0.2"), node("c", "192.168.0.3")}, now)
	s.put(node("a", "192.168.0.2", "fd00::1"), now)
	is("192.168.0.1", "external")
	is("192.168.0.2", "node a")
	is("fd00::1", "node a")
	s.put(node("b", "192.168.0.1"), now)
	is("192.168.0.1", "node b")
	is("192.168.0.2", "node a")
	s.delete(node("b", "192.168.0.1"), now)
	is("192.168.0.1", "node b") // for a while
	s.replace([]any{node("a", "192.168.0.1"), node("c", "192.168.0.3")}, now)
	is("192.168.0.1", "node a")
	is("192.168.0.2", "external")
	k.later(now.Add(2 * forgetNodes))
	is("192.168.0.1", "node a")
	is("192.168.0.3", "node c")
	if len(k.index.contested) != 0 {
		t.Errorf("%d addresses are contested still", len(k.index.contested))
	}
}

// cluster is what is true of some pods, what the API has been told of it, and what a source has heard of that.
type cluster struct {
	r      *rand.Rand
	k      *Kubernetes
	pods   *podStore
	now    time.Time
	truth  map[int]*corev1.Pod // by number; those that have run to their end among them
	told   map[int]*corev1.Pod // what the API has
	missed bool                // the watch is broken: the source needs a list
	next   int
}

// report tells the API what is true of a pod, and the source, if it is listening.
func (c *cluster) report(n int) {
	really, told := c.truth[n], c.told[n]
	if really == nil {
		delete(c.told, n)
	} else {
		c.told[n] = really.DeepCopy()
	}
	if c.missed {
		return
	}
	switch {
	case really != nil:
		c.pods.put(c.told[n].DeepCopy(), c.now)
	case told != nil:
		c.pods.delete(told, c.now)
	}
}

// list reads all that the API has, in order of names as the API does.
func (c *cluster) list() {
	var objs []any
	names := slices.Sorted(maps.Keys(c.told))
	for _, n := range names {
		if p := c.told[n]; p.Status.Phase == corev1.PodRunning {
			objs = append(objs, p.DeepCopy())
		}
	}
	c.missed = false
	c.pods.replace(objs, c.now)
}

// start makes a pod at addresses. Its start says nothing of its number, as after a reboot.
func (c *cluster) start(addrs ...string) {
	c.next++
	p := podAt(c.next, fmt.Sprintf("pod-%03d", c.next), addrs...)
	start := metav1.NewTime(time.Unix(1_800_000_000+c.r.Int64N(1000), 0))
	p.Status.StartTime = &start
	node := c.r.IntN(3)
	c.truth[c.next] = on(p, fmt.Sprint("node-", node), fmt.Sprint("192.168.0.", node))
}

// holders gives who has each address in truth.
func (c *cluster) holders() map[string]string {
	out := map[string]string{}
	for _, p := range c.truth {
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			out[ip.IP] = "pod " + p.Name
		}
		out[p.Status.HostIP] = "node " + p.Spec.NodeName
	}
	return out
}

// move gives the addresses of some pods to each other in a ring, or to one that had none.
func (c *cluster) move(ring []int) {
	first := c.truth[ring[0]].Status.PodIPs
	for i, n := range ring {
		p := c.truth[n].DeepCopy()
		if p.Status.PodIPs = first; i+1 < len(ring) {
			p.Status.PodIPs = c.truth[ring[i+1]].Status.PodIPs
		}
		p.Status.PodIP = p.Status.PodIPs[0].IP
		c.truth[n] = p
	}
}

// Whatever happens to pods, in whatever order it is told, with lists in between and with events that are missed: when
// all is told, everybody is who they are.
func TestAllOrdersOfEventsEndInTheTruth(t *testing.T) {
	for seed := range uint64(2000) {
		c := &cluster{
			r: rand.New(rand.NewPCG(seed, 1)), k: newKubernetes(KubernetesOptions{}), now: time.Now(),
			truth: map[int]*corev1.Pod{}, told: map[int]*corev1.Pod{},
		}
		c.pods = &podStore{c.k}
		free := []int{} // numbers of addresses that nobody has
		for i := range 12 {
			free = append(free, i)
		}
		addrs := func(n int) []string { return []string{fmt.Sprint("10.0.0.", n), fmt.Sprintf("fd01::%x", n)} }
		release := func(p *corev1.Pod) {
			var n int
			if _, err := fmt.Sscanf(p.Status.PodIP, "10.0.0.%d", &n); err != nil {
				t.Fatal(err)
			}
			free = append(free, n)
		}
		for range 8 {
			c.start(addrs(free[0])...)
			free = free[1:]
		}
		for _, n := range slices.Sorted(maps.Keys(c.truth)) {
			c.told[n] = c.truth[n].DeepCopy()
		}
		c.list()
		for range 1 + c.r.IntN(12) {
			alive := slices.DeleteFunc(slices.Sorted(maps.Keys(c.truth)), func(n int) bool {
				return c.truth[n].Status.Phase != corev1.PodRunning
			})
			c.r.Shuffle(len(alive), func(i, j int) { alive[i], alive[j] = alive[j], alive[i] })
			switch c.r.IntN(8) {
			case 0, 1:
				c.move(alive[:min(len(alive), 2)])
			case 2:
				c.move(alive[:min(len(alive), 3)])
			case 3: // its address may be another's at once
				release(c.truth[alive[0]])
				delete(c.truth, alive[0])
				c.start(addrs(free[len(free)-1])...)
				free = free[:len(free)-1]
			case 4:
				release(c.truth[alive[0]])
				p := c.truth[alive[0]].DeepCopy()
				p.Status.Phase = corev1.PodSucceeded
				c.truth[alive[0]] = p
				c.start(addrs(free[len(free)-1])...)
				free = free[:len(free)-1]
			case 5:
				c.missed = true
			case 6:
				c.list()
			case 7: // a node comes back at another address
				node := c.truth[alive[0]].Spec.NodeName
				ip := fmt.Sprint("192.168.1.", c.r.IntN(200))
				for _, n := range alive {
					if c.truth[n].Spec.NodeName == node {
						c.truth[n] = on(c.truth[n].DeepCopy(), node, ip)
					}
				}
			}
			// The kubelets tell some of it, in any order.
			all := slices.Collect(maps.Keys(c.truth))
			for n := range c.told {
				if c.truth[n] == nil {
					all = append(all, n)
				}
			}
			slices.Sort(all)
			c.r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			for _, n := range all[:c.r.IntN(len(all)+1)] {
				c.report(n)
			}
		}
		rest := slices.Sorted(maps.Keys(c.truth))
		for n := range c.told {
			if c.truth[n] == nil {
				rest = append(rest, n)
			}
		}
		slices.Sort(rest)
		c.r.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
		for _, n := range rest {
			c.report(n)
		}
		if c.missed || c.r.IntN(2) == 0 {
			c.list()
		}

		want := c.holders()
		for addr, w := range want {
			if got := who(c.k.at(addr)); got != w {
				t.Errorf("seed %d: %s is %q, want %q", seed, addr, got, w)
			}
		}
		c.k.later(c.now.Add(2 * DefaultGrace))
		c.k.later(c.now.Add(2 * forgetNodes))
		for n := range 12 {
			for _, addr := range addrs(n) {
				w, ok := want[addr]
				if !ok {
					w = "external"
				}
				if got := who(c.k.at(addr)); got != w {
					t.Errorf("seed %d: when all grace is over, %s is %q, want %q", seed, addr, got, w)
				}
			}
		}
		alive := 0
		for _, p := range c.truth {
			if p.Status.Phase == corev1.PodRunning {
				alive++
			}
		}
		if as, clients := c.k.index.Size(); as != len(want) || clients != alive || len(c.k.index.contested) != 0 {
			t.Errorf("seed %d: %d addresses, %d clients, %d contested; want %d, %d and 0",
				seed, as, clients, len(c.k.index.contested), len(want), alive)
		}
		if t.Failed() {
			return
		}
	}
}
