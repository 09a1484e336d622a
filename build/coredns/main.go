// The command coredns is CoreDNS with all of its in-tree plugins and dnstrail.
package main

import (
	"log"

	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/core/plugin" // all of CoreDNS's plugins
	"github.com/coredns/coredns/coremain"

	dnstrail "github.com/dnstrail/dnstrail/plugin"
)

func main() {
	directives, err := dnstrail.WithDirective(dnsserver.Directives)
	if err == nil {
		err = dnsserver.SetDirectives(directives)
	}
	if err != nil {
		log.Fatalf("coredns: %v", err)
	}
	coremain.Run()
}
