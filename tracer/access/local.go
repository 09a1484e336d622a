package access

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Local keeps web pages of others away from h, which has no other protection than that it listens on loopback: a
// browser on this machine reaches it, too. A request passes that asks for this host by an address, by a name that
// cannot be a web site's (localhost, a single label, a name of the cluster) or by one of names; and that no page of
// another origin made. The first keeps a site away whose name turns into this address when it is asked for again (DNS
// rebinding): the browser takes it for the same origin, and still sends the site's name.
func Local(names []string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Cross-Origin-Resource-Policy", "same-origin")
		head.Set("Cache-Control", "no-store")
		host := hostOf(r.Host)
		if !own(host) && !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, host) }) {
			http.Error(w, "not known by that name: ask by address, or name it with --api-host", http.StatusMisdirectedRequest)
			return
		}
		if foreign(r) {
			http.Error(w, "not for the web pages of others", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// SameOrigin keeps from h what a web page of another origin asks for.
func SameOrigin(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if foreign(r) {
			http.Error(w, "not for the web pages of others", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// hostOf gives the host of a Host header, without port and brackets.
func hostOf(header string) string {
	host, _, err := net.SplitHostPort(header)
	if err != nil {
		host = header
	}
	return strings.TrimSuffix(strings.Trim(host, "[]"), ".")
}

// own tells whether no web site can have that name.
func own(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	host = strings.ToLower(host)
	if host == "" || host == "svc" {
		return false
	}
	if !strings.Contains(host, ".") {
		return true
	}
	for _, suffix := range []string{".localhost", ".svc", ".cluster.local"} {
		if strings.HasSuffix(host, suffix) {
			return true // RFC 6761 and 6762 keep the last labels from being registered; "svc" is no top-level domain
		}
	}
	return false
}

// foreign tells whether a browser says that a page of another origin asks (Fetch Metadata, RFC 6454).
func foreign(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		return true
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	u, err := url.Parse(origin)
	return err != nil || !strings.EqualFold(u.Host, r.Host)
}
