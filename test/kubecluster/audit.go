package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	manifests "github.com/dnstrail/dnstrail/build/kubernetes"
)

// auditPolicy makes the API server note what dnstrail's accounts and CoreDNS's ask of it, and nothing else. The body of
// a TokenReview is a secret and is not noted; that of a SubjectAccessReview tells what right was asked about.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Request
  users: [system:serviceaccount:kube-system:dnstrail-store]
  resources: [{group: authorization.k8s.io, resources: [subjectaccessreviews]}]
- level: Metadata
  users:
  - system:serviceaccount:kube-system:dnstrail-store
  - system:serviceaccount:kube-system:dnstrail-agent
  - system:serviceaccount:kube-system:coredns
- level: None
`

// auditEvent is what is read of one (k8s.io/apiserver/pkg/apis/audit/v1).
type auditEvent struct {
	Verb       string    `json:"verb"`
	RequestURI string    `json:"requestURI"`
	Received   time.Time `json:"requestReceivedTimestamp"`
	User       struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef *struct {
		Resource string `json:"resource"`
		APIGroup string `json:"apiGroup"`
	} `json:"objectRef"`
	Annotations map[string]string `json:"annotations"`
	Request     struct {
		Spec struct {
			User string `json:"user"`
			Path *struct {
				Path string `json:"path"`
				Verb string `json:"verb"`
			} `json:"nonResourceAttributes"`
		} `json:"spec"`
	} `json:"requestObject"`
}

// right is one that a role gives. Group and resource are those of an object; for a path, group is "".
type right struct{ verb, group, resource string }

func (r right) String() string { return strings.TrimSpace(r.verb + " " + r.resource + " " + r.group) }

// audit holds what dnstrail's roles give against what was asked for since the test began: each right is used by each of
// its holders, a path's by one of them at least, and none was refused what it asked for.
func (t *trial) audit(context.Context) error {
	used, refused, err := t.asked()
	if err != nil {
		return err
	}
	for _, r := range slices.Compact(slices.Sorted(slices.Values(refused))) {
		t.check(false, "refused: %s", r)
	}
	t.check(len(refused) == 0, "%d requests were refused for want of a right", len(refused))
	granted, err := grantedRights()
	if err != nil {
		return err
	}
	n := 0
	for user, rights := range granted {
		for _, r := range rights {
			n++
			ok := used[user][r]
			if r.verb == "list" { // one who watches is sent the list, and asks an older API server for it (KEP 3157)
				ok = ok || used[user][right{"watch", r.group, r.resource}]
			}
			if strings.HasPrefix(r.resource, "/") {
				for _, by := range used {
					ok = ok || by[r]
				}
			}
			if !ok {
				t.check(false, "%s may %s, and never did", user, r)
			}
		}
	}
	t.check(n > 0, "%d rights are given, by role and holder", n)
	return nil
}

// asked gives the rights that were used, by user, and what was refused.
func (t *trial) asked() (map[string]map[right]bool, []string, error) {
	f, err := os.Open(t.run("audit.log"))
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	used := map[string]map[right]bool{}
	use := func(user string, r right) {
		if used[user] == nil {
			used[user] = map[right]bool{}
		}
		used[user][r] = true
	}
	var refused []string
	for dec := json.NewDecoder(bufio.NewReader(f)); ; {
		var e auditEvent
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return used, refused, nil
		} else if err != nil {
			return nil, nil, fmt.Errorf("the audit log: %w", err)
		}
		if e.Received.Before(t.began) {
			continue
		}
		if e.Annotations["authorization.k8s.io/decision"] != "allow" {
			refused = append(refused, e.User.Username+" "+e.Verb+" "+strings.Split(e.RequestURI, "?")[0])
			continue
		}
		if e.ObjectRef != nil {
			use(e.User.Username, right{e.Verb, e.ObjectRef.APIGroup, e.ObjectRef.Resource})
		}
		if p := e.Request.Spec.Path; p != nil {
			use(e.Request.Spec.User, right{p.Verb, "", p.Path})
		}
	}
}

// grantedRights gives what the manifests' roles give, by user.
func grantedRights() (map[string][]right, error) {
	roles := map[string]*rbacv1.ClusterRole{}
	var bindings []rbacv1.ClusterRoleBinding
	for doc := range strings.SplitSeq(manifests.RBAC, "\n---\n") {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			return nil, err
		}
		switch kind.Kind {
		case "ClusterRole":
			var r rbacv1.ClusterRole
			if err := yaml.UnmarshalStrict([]byte(doc), &r); err != nil {
				return nil, err
			}
			roles[r.Name] = &r
		case "ClusterRoleBinding":
			var b rbacv1.ClusterRoleBinding
			if err := yaml.UnmarshalStrict([]byte(doc), &b); err != nil {
				return nil, err
			}
			bindings = append(bindings, b)
		default:
			return nil, fmt.Errorf("a %s among the roles", kind.Kind)
		}
	}
	given := map[string][]right{}
	for _, b := range bindings {
		role := roles[b.RoleRef.Name]
		if role == nil {
			return nil, fmt.Errorf("no role %s", b.RoleRef.Name)
		}
		for _, s := range b.Subjects {
			user := "system:serviceaccount:" + s.Namespace + ":" + s.Name
			for _, rule := range role.Rules {
				for _, verb := range rule.Verbs {
					for _, path := range rule.NonResourceURLs {
						given[user] = append(given[user], right{verb, "", path})
					}
					for _, group := range rule.APIGroups {
						for _, resource := range rule.Resources {
							given[user] = append(given[user], right{verb, group, resource})
						}
					}
				}
			}
		}
	}
	return given, nil
}
