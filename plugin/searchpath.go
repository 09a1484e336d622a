package dnstrail

import "strings"

// searchPathMiss says whether a name that got NXDOMAIN was made by a resolver's search list: a pod that asks for
// api.stripe.com with ndots:5 first asks for api.stripe.com.shop.svc.cluster.local, api.stripe.com.svc.cluster.local
// and api.stripe.com.cluster.local.
//
// It is told by the form of names in the cluster's zone (the Kubernetes DNS specification, github.com/kubernetes/dns,
// docs/specification.md). Below the cluster domain there are only
//
//	service.namespace.svc    hostname.service.namespace.svc
//	_port._protocol.service.namespace.svc    address.namespace.pod
//
// so a name of any other form was not meant by anybody, and one of these forms was not meant if what stands for the
// service or for the namespace is one of the generic top-level domains of old (com, net, org, ...). What remains in
// doubt is not counted: a short name under a country's domain, which looks like a service in a namespace
// (orf.at.svc.cluster.local), is a miss only in its last form (orf.at.cluster.local). name is in presentation form with
// or without the final dot, in any case; domain is the cluster domain, in lower case without the final dot. It does not
// allocate.
func searchPathMiss(name, domain string) bool {
	name = strings.TrimSuffix(name, ".")
	rest, ok := cutSuffixFold(name, domain)
	if !ok || rest == "" {
		return false
	}
	rest, kind := lastLabel(rest)
	switch {
	case strings.EqualFold(kind, "svc"):
	case strings.EqualFold(kind, "pod"):
		return false
	default:
		return !strings.EqualFold(kind, "dns-version") || rest != ""
	}
	if rest == "" {
		return false // svc itself
	}
	rest, namespace := lastLabel(rest)
	if rest == "" {
		return true // one label in front of svc: a short name and the second suffix of the list
	}
	if genericTopLevel(namespace) {
		return true
	}
	rest, service := lastLabel(rest)
	switch {
	case rest == "":
		return false // service.namespace
	case genericTopLevel(service):
		return true
	}
	rest, host := lastLabel(rest)
	if rest == "" {
		return false // hostname.service.namespace
	}
	rest, port := lastLabel(rest)
	return rest != "" || !strings.HasPrefix(host, "_") || !strings.HasPrefix(port, "_")
}

// cutSuffixFold takes suffix and the dot in front of it off name, whatever their case.
func cutSuffixFold(name, suffix string) (rest string, ok bool) {
	i := len(name) - len(suffix)
	switch {
	case i < 0 || !strings.EqualFold(name[i:], suffix):
		return "", false
	case i == 0:
		return "", true
	case name[i-1] != '.':
		return "", false
	}
	return name[:i-1], true
}

// lastLabel splits the last label off a name without a final dot.
func lastLabel(name string) (rest, label string) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

// genericTopLevel says whether a label is one of the generic top-level domains from before 2002, which nobody calls a
// namespace or a service. The newer ones are no evidence: app, dev and cloud are good names for both.
func genericTopLevel(label string) bool {
	for _, tld := range [...]string{"com", "net", "org", "edu", "gov", "mil", "int", "arpa", "biz", "info"} {
		if strings.EqualFold(label, tld) {
			return true
		}
	}
	return false
}
