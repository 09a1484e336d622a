package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, held by a file descriptor and by nothing else.
type Namespace struct {
	// Name is for messages; the kernel does not know it.
	Name string

	fd    int
	inode uint64
	nl    *netlink.Handle
}

// Inode gives the inode number of the namespace, the number in the link /proc/PID/ns/net and in the kernel's ns.inum.
func (n *Namespace) Inode() uint64 { return n.inode }

// newNamespace makes an empty network namespace with its loopback up.
func newNamespace(name string) (*Namespace, error) {
	var n *Namespace
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace %s: %w", name, err)
		}
		n, err = currentNamespace(name)
		return err
	})
	if err != nil {
		return nil, err
	}
	if n.nl, err = netlink.NewHandleAt(netns.NsHandle(n.fd), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return nil, fmt.Errorf("netlink in %s: %w", name, err)
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return n, fmt.Errorf("loopback of %s: %w", name, err)
	}
	// Duplicate address detection would keep IPv6 addresses unusable for a second.
	for _, key := range []string{"net/ipv6/conf/all/accept_dad", "net/ipv6/conf/default/accept_dad",
		"net/ipv6/conf/all/accept_ra", "net/ipv6/conf/default/accept_ra"} {
		if err := n.SetSysctl(key, "0"); err != nil {
			return n, err
		}
	}
	return n, n.nl.LinkSetUp(lo)
}

func hostNamespace() (*Namespace, error) {
	var n *Namespace
	err := onThread(func() (err error) {
		n, err = currentNamespace("host")
		return err
	})
	return n, err
}

func currentNamespace(name string) (*Namespace, error) {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat network namespace %s: %w", name, err)
	}
	return &Namespace{Name: name, fd: fd, inode: st.Ino}, nil
}

func (n *Namespace) close() error {
	if n == nil || n.fd < 0 {
		return nil
	}
	if n.nl != nil {
		n.nl.Close()
	}
	err := unix.Close(n.fd)
	n.fd = -1
	return err
}

// onThread runs f on a thread of its own, which ends with it: whatever f does to the thread stays with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		done <- f()
	}()
	return <-done
}

// Do runs f on a thread that is in the namespace. Sockets that f makes belong to the namespace for good;
// goroutines that f starts do not run in it.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
		}
		return f()
	})
}

// Listen is net.Listen in the namespace. The address is a literal one.
func (n *Namespace) Listen(network, address string) (net.Listener, error) {
	var ln net.Listener
	err := n.Do(func() (err error) {
		ln, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", n.Name, err)
	}
	return ln, nil
}

// ListenPacket is net.ListenPacket in the namespace. The address is a literal one.
func (n *Namespace) ListenPacket(network, address string) (net.PacketConn, error) {
	var pc net.PacketConn
	err := n.Do(func() (err error) {
		pc, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", n.Name, err)
	}
	return pc, nil
}

// Dial is net.Dial in the namespace. The address is a literal one.
func (n *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, address) // a literal address is dialed on the calling thread
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", n.Name, err)
	}
	return c, nil
}

// SetSysctl sets a sysctl of the namespace; the key is with slashes, as under /proc/sys.
func (n *Namespace) SetSysctl(key, value string) error {
	return n.Do(func() error {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set sysctl in %s: %w", n.Name, err)
		}
		return nil
	})
}

// Sysctl reads a sysctl of the namespace.
func (n *Namespace) Sysctl(key string) (string, error) {
	var value string
	err := n.Do(func() error {
		b, err := os.ReadFile(filepath.Join("/proc/sys", key))
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}
