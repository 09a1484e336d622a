package main

import (
	"fmt"
	"strings"
)

// setting is where agents look from, and where the client and CoreDNS are. Settings are bits, so that several can be
// named.
type setting uint8

const (
	// inHost is one agent that sees every namespace of the lab; the client is on node-1, CoreDNS on node-2.
	inHost setting = 1 << iota
	// inApart is an agent a node, which sees the node and its pods; the client is on node-1, CoreDNS on node-2.
	inApart
	// inTogether is an agent a node, too; client and CoreDNS are on node-2.
	inTogether

	everywhere = inHost | inApart | inTogether
)

var settings = []setting{inHost, inApart, inTogether}

func (s setting) String() string {
	switch s {
	case inHost:
		return "host"
	case inApart:
		return "apart"
	case inTogether:
		return "together"
	}
	return fmt.Sprintf("settings %#b", uint8(s))
}

// clientNode gives the name of the node that the client is on.
func (s setting) clientNode() string {
	if s == inTogether {
		return "node-2"
	}
	return "node-1"
}

// parseSettings reads a list of settings with commas between them; "all" is all of them.
func parseSettings(text string) (setting, error) {
	if text == "all" {
		return everywhere, nil
	}
	var all setting
next:
	for word := range strings.SplitSeq(text, ",") {
		for _, s := range settings {
			if s.String() == word {
				all |= s
				continue next
			}
		}
		return 0, fmt.Errorf("%q is none of host, apart, together, all", word)
	}
	return all, nil
}
