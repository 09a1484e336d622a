package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnstrail/dnstrail/test/lab"
)

// clientEnv makes the test binary a DNS client: its value is a clientSpec in JSON. It runs as a process in a pod.
const clientEnv = "DNSTRAIL_E2E_CLIENT"

// clientSpec is what a client shall ask.
type clientSpec struct {
	Servers   []string   `json:"servers"` // host:port, taken in turns
	Networks  []string   `json:"networks"`
	Questions []question `json:"questions"`
}

type question struct {
	Name string `json:"name"`
	Type uint16 `json:"type"`
}

// asked is one lookup that a client made, and how it ended.
type asked struct {
	question
	Network string `json:"network"`
	Client  string `json:"client"` // address and port it was asked from
	Port    uint16 `json:"port"`
	Server  string `json:"server"`
	ID      uint16 `json:"id"`
	Rcode   int    `json:"rcode"`
	Error   string `json:"error,omitempty"`
}

func runClient(text string) error {
	var spec clientSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	for i, q := range spec.Questions {
		a := asked{question: q, Network: spec.Networks[i%len(spec.Networks)],
			Server: spec.Servers[i/len(spec.Networks)%len(spec.Servers)], ID: uint16(rand.Uint32())}
		a.ask()
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return nil
}

func (a *asked) ask() {
	conn, err := net.Dial(a.Network, a.Server)
	if err != nil {
		a.Error = err.Error()
		return
	}
	defer conn.Close()
	local, _, _ := net.SplitHostPort(conn.LocalAddr().String())
	a.Client = local
	switch l := conn.LocalAddr().(type) {
	case *net.UDPAddr:
		a.Port = uint16(l.Port)
	case *net.TCPAddr:
		a.Port = uint16(l.Port)
	}
	m := new(dns.Msg).SetQuestion(a.Name, a.Type)
	m.Id = a.ID
	c := dns.Client{Timeout: 5 * time.Second}
	r, _, err := c.ExchangeWithConn(m, &dns.Conn{Conn: conn, UDPSize: 1232})
	if err != nil {
		a.Error = err.Error()
		return
	}
	a.Rcode = r.Rcode
}

// ask runs a client in a pod and gives what it asked; every lookup must have been answered.
func ask(t *testing.T, p *lab.Pod, spec clientSpec) []asked {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	proc, err := p.Start(lab.Command{Path: self, Env: []string{clientEnv + "=" + string(text)}, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Err(); err != nil {
		t.Fatalf("client in %s: %v\n%s", p.Name, err, proc.Stderr())
	}
	var all []asked
	for d := json.NewDecoder(&out); d.More(); {
		var a asked
		if err := d.Decode(&a); err != nil {
			t.Fatal(err)
		}
		if a.Error != "" {
			t.Errorf("%s from %s was not answered: %s", a, p.Name, a.Error)
		}
		all = append(all, a)
	}
	if len(all) != len(spec.Questions) {
		t.Fatalf("client in %s made %d lookups of %d", p.Name, len(all), len(spec.Questions))
	}
	return all
}

func (a asked) String() string {
	return fmt.Sprintf("%s %s (%s, %s:%d, ID %d)", a.Name, dns.TypeToString[a.Type], a.Network, a.Client, a.Port, a.ID)
}
