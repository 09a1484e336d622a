package dnstrail

import (
	"fmt"
	"slices"
)

// anchor is the directive before which ours stands. There it sees what CoreDNS's own metrics see; it is behind trace,
// whose spans it then continues, behind health, whose lameduck time it outlives, and behind shed, so that what is shed
// costs nothing.
const anchor = "prometheus"

// WithDirective gives CoreDNS's list of directives (dnsserver.Directives) with ours in its place, for
// dnsserver.SetDirectives. It fails if the list has ours already, or lacks the directive before which it stands.
func WithDirective(directives []string) ([]string, error) {
	if slices.Contains(directives, pluginName) {
		return nil, fmt.Errorf("the list of directives has %s already", pluginName)
	}
	i := slices.Index(directives, anchor)
	if i < 0 {
		return nil, fmt.Errorf("the list of directives lacks %s, before which %s stands", anchor, pluginName)
	}
	return slices.Insert(slices.Clone(directives), i, pluginName), nil
}
