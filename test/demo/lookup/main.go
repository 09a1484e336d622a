// Command lookup resolves names with Go's own resolver and prints their addresses, one a line: what a Go service in a
// pod does.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	if !resolve(os.Args[1:]) {
		os.Exit(1)
	}
}

func resolve(names []string) (ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ok = true
	for _, name := range names {
		r := net.Resolver{PreferGo: true}
		addrs, err := r.LookupNetIP(ctx, "ip4", name)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			ok = false
		}
		for _, a := range addrs {
			fmt.Println(a)
		}
	}
	return ok
}
