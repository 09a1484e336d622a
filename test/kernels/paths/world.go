package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// space is a network namespace, held by a file descriptor.
type space struct {
	name string
	file *os.File
	n    int // of its world
}

// own gives an address of the world that the text means. Texts are those of world 7, 10.7.0.0/16: one agent watches
// many worlds, and takes what has one address for one machine.
func (s *space) own(text string) string {
	if text == neutral {
		return fmt.Sprintf("10.0.3.%d", 2+s.n)
	}
	if rest, ok := strings.CutPrefix(text, "10.7."); ok {
		return fmt.Sprintf("10.%d.%s", s.n, rest)
	}
	return text
}

// inside runs f on a thread of its own that is in the namespace, and ends with it.
func (s *space) inside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func newSpace(name string, n int) (*space, error) {
	s := &space{name: name, n: n}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.file, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	return s, s.up("lo")
}

// up brings a device up, with addresses.
func (s *space) up(device string, addresses ...string) error {
	return s.inside(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", device, s.name, err)
		}
		for _, text := range addresses {
			a, err := netlink.ParseAddr(s.own(text))
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("%s of %s in %s: %w", text, device, s.name, err)
			}
		}
		return netlink.LinkSetUp(l)
	})
}

// add makes a device. Where it has a parent, make is given that device's index.
func (s *space) add(parent string, make func(int) netlink.Link) error {
	return s.inside(func() error {
		index := 0
		if parent != "" {
			l, err := netlink.LinkByName(parent)
			if err != nil {
				return fmt.Errorf("%s in %s: %w", parent, s.name, err)
			}
			index = l.Attrs().Index
		}
		l := make(index)
		if err := netlink.LinkAdd(l); err != nil {
			return fmt.Errorf("making %s, a %s, in %s: %w", l.Attrs().Name, l.Type(), s.name, err)
		}
		return nil
	})
}

// move puts a device into another namespace.
func (s *space) move(device string, to *space) error {
	return s.inside(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", device, s.name, err)
		}
		return netlink.LinkSetNsFd(l, int(to.file.Fd()))
	})
}

// route sends a network by a gateway.
func (s *space) route(network, gateway string) error {
	return s.inside(func() error {
		_, dst, err := net.ParseCIDR(s.own(network))
		if err != nil {
			return err
		}
		r := &netlink.Route{Dst: dst, Gw: net.ParseIP(s.own(gateway))}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("the route of %s in %s: %w", network, s.name, err)
		}
		return nil
	})
}

func (s *space) sysctl(key, value string) error {
	return s.inside(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) })
}

// world is a client and a server with two nodes between them: client, west, east, server, each linked to the next.
type world struct {
	client, west, east, server *space

	more    []*space       // namespaces of a path's own
	closers []func() error // what a path has to end, besides
}

// The addresses. Those of the links' ends are .1 towards the client and .2 towards the server.
const (
	clientAddr = "10.7.1.1"
	serverAddr = "10.7.3.2"
	vip        = "10.96.0.10"
)

func newWorld(n int) (*world, error) {
	w := &world{}
	var errs []error
	for _, s := range []struct {
		to   **space
		name string
	}{{&w.client, "client"}, {&w.west, "west"}, {&w.east, "east"}, {&w.server, "server"}} {
		made, err := newSpace(s.name, n)
		*s.to = made
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return w, err
	}
	for _, f := range []func() error{
		func() error { return link(w.client, "eth0", "10.7.1.1/24", w.west, "pod0", "10.7.1.2/24") },
		func() error { return link(w.west, "eth0", "10.7.2.1/24", w.east, "eth0", "10.7.2.2/24") },
		func() error { return link(w.east, "pod0", "10.7.3.1/24", w.server, "eth0", "10.7.3.2/24") },
		func() error { return w.client.route("0.0.0.0/0", "10.7.1.2") },
		func() error { return w.west.route("10.7.3.0/24", "10.7.2.2") },
		func() error { return w.east.route("10.7.1.0/24", "10.7.2.1") },
		func() error { return w.server.route("0.0.0.0/0", "10.7.3.1") },
		func() error { return w.west.sysctl("net/ipv4/ip_forward", "1") },
		func() error { return w.east.sysctl("net/ipv4/ip_forward", "1") },
	} {
		if err := f(); err != nil {
			return w, err
		}
	}
	return w, nil
}

// link makes a veth between two namespaces.
func link(a *space, aName, aAddr string, b *space, bName, bAddr string) error {
	err := a.add("", func(int) netlink.Link {
		return &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName, PeerNamespace: netlink.NsFd(int(b.file.Fd())),
		}
	})
	return errors.Join(err, a.up(aName, aAddr), b.up(bName, bAddr))
}

func (w *world) close() {
	for _, end := range w.closers {
		_ = end() // nobody uses it any more
	}
	for _, s := range append([]*space{w.client, w.west, w.east, w.server}, w.more...) {
		if s != nil && s.file != nil {
			_ = s.file.Close() // the kernel takes the namespace down with its last holder
		}
	}
}
