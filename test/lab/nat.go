package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Translate makes the namespace translate UDP to from into UDP to another address and port, as a further service
// address, until undone. Both are of one family.
func (n *Namespace) Translate(from, to netip.AddrPort) (Undo, error) {
	f := ipv6
	if from.Addr().Is4() {
		f = ipv4
	}
	return n.table("translate", f.table, func(c *nftables.Conn, t *nftables.Table) error {
		chain := c.AddChain(&nftables.Chain{Name: "prerouting", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
		rule(c, t, chain, f.is(f.daddr, from.Addr()), l4proto(unix.IPPROTO_UDP), port(dstPort, from.Port()), []expr.Any{
			&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: 1, RegProtoMin: 2, Specified: true},
		})
		return c.Flush()
	})
}

// Masquerade makes the namespace give what leaves it towards an address its own source address and a random port, until
// undone.
func (n *Namespace) Masquerade(to netip.Addr) (Undo, error) {
	f := ipv6
	if to.Is4() {
		f = ipv4
	}
	return n.table("masquerade", f.table, func(c *nftables.Conn, t *nftables.Table) error {
		chain := c.AddChain(&nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		rule(c, t, chain, f.is(f.daddr, to), expr1(&expr.Masq{FullyRandom: true}))
		return c.Flush()
	})
}

// LongPostrouting makes every packet that leaves the namespace pass n times a hundred rules that do not match, after
// its source was translated and before its conntrack entry is put into the table, until undone: some 10 ns a rule.
func (n *Namespace) LongPostrouting(times int) (Undo, error) {
	return n.table("long", nftables.TableFamilyINet, func(c *nftables.Conn, t *nftables.Table) error {
		hundred := c.AddChain(&nftables.Chain{Name: "hundred", Table: t})
		for range 100 {
			rule(c, t, hundred, l4proto(unix.IPPROTO_UDP), port(dstPort, 9)) // discard: nobody sends to it
		}
		if err := c.Flush(); err != nil {
			return err
		}
		after := new(*nftables.ChainPriorityNATSource + 50)
		chain := c.AddChain(&nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPostrouting, Priority: after})
		for range times {
			rule(c, t, chain, jump(hundred))
		}
		return c.Flush()
	})
}

// table adds a table and what fill puts into it; the undo deletes it.
func (n *Namespace) table(what string, family nftables.TableFamily, fill func(*nftables.Conn, *nftables.Table) error) (
	Undo, error) {
	c, err := n.nft()
	if err != nil {
		return nil, err
	}
	t := c.AddTable(&nftables.Table{Family: family, Name: fmt.Sprintf("%s-%d", what, faults.Add(1))})
	undo := func() error {
		c.DelTable(t)
		if err := c.Flush(); err != nil {
			return fmt.Errorf("undo %s in %s: %w", what, n.Name, err)
		}
		return nil
	}
	if err := fill(c, t); err != nil {
		return undo, fmt.Errorf("%s in %s: %w", what, n.Name, err)
	}
	return undo, nil
}

// ConntrackFailures gives how many packets the namespace's connection tracking has dropped so far because their entry
// could not be put into the table: the sum over the CPUs of insert_failed in /proc/net/stat/nf_conntrack.
func (n *Namespace) ConntrackFailures() (uint64, error) {
	var text []byte
	err := n.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("connection tracking of %s: %w", n.Name, err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	column := -1
	for i, name := range strings.Fields(lines[0]) {
		if name == "insert_failed" {
			column = i
		}
	}
	var sum uint64
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if column < 0 || column >= len(f) {
			return 0, errors.New("/proc/net/stat/nf_conntrack has no insert_failed")
		}
		v, err := strconv.ParseUint(f[column], 16, 64)
		if err != nil {
			return 0, fmt.Errorf("connection tracking of %s: %w", n.Name, err)
		}
		sum += v
	}
	return sum, nil
}
