// Command pod is the program of the test cluster's pods: as its process 1 it waits and reaps, and it looks names up
// when it is told to.
//
//	pod                                    waits until it is told to end
//	pod look [-n N] [-every D] NAME...     looks each name up N times by Go's resolver, and says what became of it; %d
//	                                       in a name is the number of the round
//
// Of "look" the last line is "N answered, N failed"; each failure stands in a line of its own before it. Exit status
// 1: some failed.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "look" {
		os.Exit(look(os.Args[2:]))
	}
	wait()
}

func wait() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

func look(args []string) int {
	fs := flag.NewFlagSet("look", flag.ExitOnError)
	n := fs.Int("n", 1, "how often each name is looked up; 0: without end")
	every := fs.Duration("every", 0, "how long to wait between two rounds")
	limit := fs.Duration("limit", 12*time.Second, "how long to wait for one lookup")
	_ = fs.Parse(args) // it exits by itself
	answered, failed := 0, 0
	// #nosec G704 -- the names are the test's own
	for i := 0; i < *n || *n == 0; i++ {
		for _, name := range fs.Args() {
			ctx, cancel := context.WithTimeout(context.Background(), *limit)
			began := time.Now()
			name = strings.ReplaceAll(name, "%d", strconv.Itoa(i))
			_, err := net.DefaultResolver.LookupHost(ctx, name)
			cancel()
			if err != nil {
				failed++
				fmt.Println(began.UTC().Format(time.TimeOnly), name, time.Since(began).Round(time.Millisecond), err)
				continue
			}
			answered++
		}
		time.Sleep(*every)
	}
	fmt.Printf("%d answered, %d failed\n", answered, failed)
	return min(failed, 1)
}
