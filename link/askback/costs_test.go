package askback

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// HINDSIGHT.md tells what asking back costs 1,000 nodes. This is the calculation, and holds its table to it.
func TestCostsOfAThousandNodes(t *testing.T) {
	const (
		nodes, servers = 1000, 50
		lookups, share = 1000, 100 // a node and second; one in so many ends badly
		datagram       = Size + 20 + 8
		nonceKept      = int(4 * Window / time.Second) // at most: two maps, each filled for two windows
		nonceRoom      = 40                            // bytes of one, with its place in a map
	)
	bad := lookups / share
	badOfServer := bad * nodes / servers
	// Of a bad lookup the client's agent asks two: the server, and the agent of its node. The server asks one, the agent
	// of the client's node, of those that it knows to be bad: of all at most.
	type column struct{ bad, asked, answered int }
	node := column{bad, 2 * bad, bad}
	server := column{badOfServer, node.asked + badOfServer, node.answered + 2*badOfServer}
	bytes := func(c column) int { return 2 * datagram * (c.asked + c.answered) }
	memory := func(c column) int { return c.answered * nonceKept * nonceRoom }
	thousands := func(n int) string {
		if n < 1000 {
			return fmt.Sprint(n)
		}
		return fmt.Sprintf("%d,%03d", n/1000, n%1000)
	}
	text, err := os.ReadFile("../HINDSIGHT.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		fmt.Sprintf("| bad lookups a second | %d | %d |", node.bad, server.bad),
		fmt.Sprintf("| questions asked a second, at most | %d | %d |", node.asked, server.asked),
		fmt.Sprintf("| questions answered a second, at most | %d | %d |", node.answered, server.answered),
		fmt.Sprintf("| bytes a second, both ways, UDP and IP included (%d each) | %s | %s |", datagram,
			thousands(bytes(node)), thousands(bytes(server))),
		fmt.Sprintf("| memory of nonces, two minutes of them at %d bytes | %d kB | %.0f MB |", nonceRoom, memory(node)/1000,
			float64(memory(server))/1e6),
	} {
		if !strings.Contains(string(text), row+"\n") {
			t.Errorf("HINDSIGHT.md lacks %q", row)
		}
	}
	if node.asked/2 > perPeer || server.answered > overall {
		t.Errorf("%d questions to one, %d answered: beyond the bounds, %d and %d", node.asked/2, server.answered, perPeer,
			overall)
	}
}
