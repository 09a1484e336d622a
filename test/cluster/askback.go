package cluster

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/dnstrail/dnstrail/link/askback"
)

// askBack is how agents and CoreDNS know one another: all by addresses on a loopback, so that what is done to the lab's
// network does not keep them from asking.
type askBack struct {
	agents []string // where each node's agent listens on the host
	shared []string // arguments of every agent
	plugin string   // lines of the dnstrail block
}

// args gives the arguments of the agent on the node with that number; none where nobody asks.
func (a *askBack) args(node int) []string {
	if len(a.agents) == 0 {
		return nil
	}
	return append([]string{"--ask-back", a.agents[node]}, a.shared...)
}

// introduce gives agents and CoreDNS a key and one another's addresses.
func (k *Cluster) introduce() error {
	key := filepath.Join(k.dir, "key")
	if err := os.WriteFile(key, []byte("a key that this lab alone has, long enough\n"), 0o600); err != nil {
		return err
	}
	a := &k.askBack
	a.shared = []string{"--ask-back-key", key, "--ask-back-server-port", "0"}
	inPod := fmt.Sprintf("127.0.0.1:%d", askback.DefaultPort)
	lines := []string{"hindsight listen " + inPod, "hindsight key " + key}
	for _, n := range k.Nodes() {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		at := c.LocalAddr().String()
		_ = c.Close() // the agent's from now on
		a.agents = append(a.agents, at)
		a.shared = append(a.shared, "--ask-back-peer", n.Name+"="+at)
		seen, err := k.RelayUDP(k.DNS.Namespace, "127.0.0.1:0", nil, at)
		if err != nil {
			return err
		}
		lines = append(lines, "hindsight peer "+n.Name+" "+seen)
	}
	server, err := k.RelayUDP(nil, "127.0.0.1:0", k.DNS.Namespace, inPod)
	if err != nil {
		return err
	}
	a.shared = append(a.shared, "--ask-back-peer", k.DNS.V4.String()+"="+server, "--ask-back-peer", k.DNS.V6.String()+"="+
		server)
	a.plugin = "\n        " + strings.Join(lines, "\n        ")
	return nil
}
