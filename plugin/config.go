package dnstrail

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"github.com/dnstrail/dnstrail/link"
	"github.com/dnstrail/dnstrail/link/names"
)

// Defaults of the properties.
const (
	defaultRatio     = 0.01
	defaultSlow      = time.Second
	defaultKeptSpans = 1000 // spans a second that the keep rules may add to those of the ratio
)

// config is a dnstrail block of a Corefile.
type config struct {
	propagation

	tracer  bool // a tracer sends the parent of the SERVER span
	export  exportConfig
	ids     identityConfig
	metrics clientOptions
	noStats bool   // no metrics by client
	domain  string // the cluster's, for search-path misses; in lower case without a dot at the end

	ratio     link.Ratio
	keepRules []keepRule
	limit     int // spans a second; 0: no bound

	names *names.Policy

	hindsight hindsightConfig
}

// keepRule is one keep property.
type keepRule struct {
	errors    bool
	slow      time.Duration
	prefixes  []netip.Prefix
	workloads []workload
	names     []string
}

// property is one property of the block: what its arguments are, for the message about wrong ones, and how they are
// read.
type property struct {
	name string
	args string
	read func(c *config, args []string) error
	once bool
}

// properties are all properties of the block, in the order in which an error lists them.
var properties = []property{
	{"service", "NAME", readService, true},
	{"endpoint", "URL|none", readEndpoint, true},
	{"header", "NAME VALUE", readHeader, false},
	{"sample", "RATIO", readSample, true},
	{"keep", "errors|slow DURATION|client NAMESPACE[/WORKLOAD]|CIDR...|name NAME...|none", readKeep, false},
	{"limit", "SPANS", readLimit, true},
	{"tracer", "", readTracer, true},
	{"identity", "kubernetes [kubeconfig FILE]|file FILE|metadata|none", readIdentity, true},
	{"labels", "LABEL...", readLabels, false},
	{"metrics", "workload|pod|none [LIMIT]", readMetrics, true},
	{"namespaces", "include|exclude NAMESPACE...", readNamespaces, false},
	{"cluster_domain", "DOMAIN", readDomain, true},
	{"names", names.Usage, readNames, false},
	{"traceparent", "accept [CIDR...]|send|code CODE|ignore_http", readTraceparent, false},
	{"hindsight", "listen ADDRESS|key FILE|past DURATION|memory MIB|peer NODE ADDRESS|port PORT|beside ADDRESS",
		readHindsight, false},
}

// parse reads the dnstrail block of a server block.
func parse(c *caddy.Controller) (*config, error) {
	cfg := &config{ratio: link.NewRatio(defaultRatio), domain: "cluster.local"}
	cfg.code = link.OptionTraceparent
	cfg.names = names.New()
	blocks := 0
	for c.Next() {
		if blocks++; blocks > 1 {
			return nil, c.Err(plugin.ErrOnce.Error())
		}
		if args := c.RemainingArgs(); len(args) > 0 {
			return nil, c.Errf("%s takes no arguments, got %q; want a block of properties, or nothing", pluginName, args[0])
		}
		seen := map[string]bool{}
		for c.NextBlock() {
			name := c.Val()
			i := slices.IndexFunc(properties, func(p property) bool { return p.name == name })
			if i < 0 {
				return nil, c.Errf("unknown property '%s'; want one of: %s", name, propertyNames())
			}
			p := &properties[i]
			if p.once && seen[name] {
				return nil, c.Errf("property '%s' is given twice", name)
			}
			seen[name] = true
			if err := p.read(cfg, c.RemainingArgs()); err != nil {
				if errors.Is(err, errArgs) {
					return nil, c.Errf("wrong arguments of '%s'; want: %s", name, strings.TrimSpace(name+" "+p.args))
				}
				return nil, c.Errf("property '%s': %v", name, err)
			}
		}
	}
	if err := errors.Join(cfg.export.complete(), cfg.hindsight.complete()); err != nil {
		return nil, c.Errf("%v", err)
	}
	return cfg, nil
}

func propertyNames() string {
	all := make([]string, len(properties))
	for i, p := range properties {
		all[i] = p.name
	}
	return strings.Join(all, ", ")
}

// errArgs says that a property has arguments of another kind or number than it takes.
var errArgs = errors.New("wrong arguments")

func readService(c *config, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return errArgs
	}
	c.export.service = args[0]
	return nil
}

func readEndpoint(c *config, args []string) error {
	if len(args) != 1 {
		return errArgs
	}
	return c.export.setEndpoint(args[0])
}

func readHeader(c *config, args []string) error {
	if len(args) != 2 || args[0] == "" {
		return errArgs
	}
	if c.export.headers == nil {
		c.export.headers = map[string]string{}
	}
	c.export.headers[args[0]] = args[1]
	return nil
}

func readSample(c *config, args []string) error {
	if len(args) != 1 {
		return errArgs
	}
	r, err := link.ParseRatio(args[0])
	c.ratio = r
	return err
}

func readKeep(c *config, args []string) error {
	if len(args) == 0 {
		return errArgs
	}
	rule, args := args[0], args[1:]
	switch {
	case rule == "none" && len(args) == 0:
		c.keepRules = append(c.keepRules, keepRule{})
	case rule == "errors" && len(args) == 0:
		c.keepRules = append(c.keepRules, keepRule{errors: true})
	case rule == "slow" && len(args) == 1:
		d, err := time.ParseDuration(args[0])
		if err != nil || d <= 0 {
			return fmt.Errorf("'%s' is not a duration; want one such as 500ms or 2s", args[0])
		}
		c.keepRules = append(c.keepRules, keepRule{slow: d})
	case rule == "client" && len(args) > 0:
		var k keepRule
		for _, a := range args {
			if p, err := parsePrefix(a); err == nil {
				k.prefixes = append(k.prefixes, p)
				continue
			}
			namespace, name, slash := strings.Cut(a, "/")
			if namespace == "" || slash && name == "" || strings.ContainsAny(name, "/") || strings.ContainsAny(namespace, ":.") {
				return fmt.Errorf("'%s' is not a client; want NAMESPACE, NAMESPACE/WORKLOAD, an address or a prefix", a)
			}
			k.workloads = append(k.workloads, workload{namespace, name})
		}
		c.keepRules = append(c.keepRules, k)
	case rule == "name" && len(args) > 0:
		zones, err := readZones(args)
		if err != nil {
			return err
		}
		c.keepRules = append(c.keepRules, keepRule{names: zones})
	default:
		return errArgs
	}
	return nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func readZones(args []string) ([]string, error) {
	zones := make([]string, len(args))
	for i, a := range args {
		if _, ok := dns.IsDomainName(a); !ok || strings.ContainsAny(a, " /:") {
			return nil, fmt.Errorf("'%s' is not a domain name", a)
		}
		zones[i] = strings.ToLower(dns.Fqdn(a))
	}
	return zones, nil
}

func readLimit(c *config, args []string) error {
	if len(args) != 1 {
		return errArgs
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 1 || n > 100_000_000 {
		return fmt.Errorf("'%s' is not a number of spans a second; want one from 1 to 100000000", args[0])
	}
	c.limit = n
	return nil
}

func readTracer(c *config, args []string) error {
	if len(args) != 0 {
		return errArgs
	}
	c.tracer = true
	return nil
}

func readIdentity(c *config, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "none":
		c.ids.source = identityNone
	case len(args) == 2 && args[0] == "file":
		if _, err := os.Stat(args[1]); err != nil {
			return err
		}
		c.ids.source, c.ids.file = identityFile, args[1]
	case len(args) == 1 && args[0] == "metadata":
		c.ids.source = identityMetadata
	case len(args) == 1 && args[0] == "kubernetes":
		c.ids.source = identityKubernetes
	case len(args) == 3 && args[0] == "kubernetes" && args[1] == "kubeconfig":
		if _, err := os.Stat(args[2]); err != nil {
			return err
		}
		c.ids.source, c.ids.kubeconfig = identityKubernetes, args[2]
	default:
		return errArgs
	}
	return nil
}

func readLabels(c *config, args []string) error {
	if len(args) == 0 {
		return errArgs
	}
	c.ids.labels = append(c.ids.labels, args...)
	return nil
}

func readMetrics(c *config, args []string) error {
	if len(args) == 0 || len(args) > 2 {
		return errArgs
	}
	switch args[0] {
	case "workload":
	case "pod":
		c.metrics.pods = true
	case "none":
		c.noStats = true
	default:
		return errArgs
	}
	if len(args) == 2 {
		n, err := strconv.Atoi(args[1])
		if err != nil || n < 1 || n > 1_000_000 || c.noStats {
			return fmt.Errorf("'%s' is not a limit of clients; want a number from 1 to 1000000", args[1])
		}
		c.metrics.max = n
	}
	return nil
}

func readNamespaces(c *config, args []string) error {
	if len(args) < 2 {
		return errArgs
	}
	switch args[0] {
	case "include":
		c.metrics.included = append(c.metrics.included, args[1:]...)
	case "exclude":
		c.metrics.excluded = append(c.metrics.excluded, args[1:]...)
	default:
		return errArgs
	}
	return nil
}

func readDomain(c *config, args []string) error {
	if len(args) != 1 {
		return errArgs
	}
	zones, err := readZones(args)
	if err != nil {
		return err
	}
	c.domain = strings.TrimSuffix(zones[0], ".")
	return nil
}

func readNames(c *config, args []string) error {
	if len(args) > 2 {
		zones, err := readZones(args[2:])
		if err != nil {
			return err
		}
		args = append(slices.Clone(args[:2]), zones...)
	}
	err := c.names.Add(args...)
	if errors.Is(err, names.ErrArgs) && len(args) > 0 && args[0] != "file" {
		return errArgs
	}
	return err
}

func readTraceparent(c *config, args []string) error {
	if len(args) == 0 {
		return errArgs
	}
	switch {
	case args[0] == "accept":
		c.accept = true
		for _, a := range args[1:] {
			p, err := parsePrefix(a)
			if err != nil {
				return fmt.Errorf("'%s' is neither an address nor a prefix", a)
			}
			c.acceptFrom = append(c.acceptFrom, p)
		}
	case args[0] == "send" && len(args) == 1:
		c.send = true
	case args[0] == "code" && len(args) == 2:
		n, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil || n < 65001 || n > 65534 {
			return fmt.Errorf("'%s' is not an EDNS option code for local use; want one from 65001 to 65534", args[1])
		}
		c.code = uint16(n)
	case args[0] == "ignore_http" && len(args) == 1:
		c.ignoreHTTP = true
	default:
		return errArgs
	}
	return nil
}

// keeper gives the rules by which queries are kept: without a keep property, errors and slow queries are.
func (c *config) keeper() keeper {
	k := keeper{ratio: c.ratio}
	rules := c.keepRules
	if len(rules) == 0 {
		rules = []keepRule{{errors: true}, {slow: defaultSlow}}
	}
	for _, r := range rules {
		k.errors = k.errors || r.errors
		if r.slow > 0 {
			k.slow = r.slow
		}
		k.prefixes = append(k.prefixes, r.prefixes...)
		k.workloads = append(k.workloads, r.workloads...)
		k.names = append(k.names, r.names...)
	}
	if c.limit > 0 {
		k.all = rate.NewLimiter(rate.Limit(c.limit), max(c.limit, maxNodes))
	} else {
		k.byRules = rate.NewLimiter(defaultKeptSpans, defaultKeptSpans)
	}
	return k
}
