package access

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// reviewTime bounds one question to the API server.
	reviewTime = 5 * time.Second
	// reviewsAtOnce is how many questions may be under way.
	reviewsAtOnce = 8
	// reviewValid is how long its answer counts, and reviewsKept how many are remembered.
	reviewValid = time.Minute
	reviewsKept = 4096
	// reviewStands is how long a token that was good counts while the API server is away: lookups are to be seen then
	// more than ever.
	reviewStands = time.Hour

	// What the API server tells of a token that is bound to a pod (Kubernetes 1.30).
	extraNode = "authentication.kubernetes.io/node-name"
)

// Reviews asks the API server of a cluster whose a token is (TokenReview) and whether that user may use a verb on a
// path (SubjectAccessReview of a non-resource URL): rights are then the cluster's own, given by
//
//	rules:
//	- nonResourceURLs: ["/v1/traces", "/opentelemetry.proto.collector.trace.v1.TraceService/Export"]
//	  verbs: ["create"]
//	- nonResourceURLs: ["/dnstrail/*"]
//	  verbs: ["get"]
//
// What is read has "/dnstrail" before its path there: the role system:discovery lets everybody who is known to the
// cluster get whatever is below "/api".
//
// The token of a service account that is bound to a pod speaks for the node which that pod is on. It is safe for
// concurrent use.
type Reviews struct {
	Client kubernetes.Interface
	// Audience is whom tokens must be meant for; "" is the API server itself. Of one that is meant for others alone,
	// whoever sees it on its way gets no right in the cluster.
	Audience string

	mu     sync.Mutex
	known  map[reviewKey]review
	asking atomic.Int32
}

type reviewKey struct {
	token      [sha256.Size]byte
	verb, path string
}

type review struct {
	caller Caller
	err    error
	until  time.Time
	stands time.Time // until when it counts if there is no newer one
}

// Check implements [Checker].
func (r *Reviews) Check(ctx context.Context, token, verb, path string) (Caller, error) {
	verb, path = right(verb, path)
	key := reviewKey{sha256.Sum256([]byte(token)), verb, path}
	r.mu.Lock()
	had, ok := r.known[key]
	r.mu.Unlock()
	now := time.Now()
	if ok && now.Before(had.until) {
		return had.caller, had.err
	}
	stands := ok && had.err == nil && now.Before(had.stands)
	if r.asking.Add(1) > reviewsAtOnce {
		r.asking.Add(-1)
		if stands {
			return had.caller, nil
		}
		return Caller{}, errors.New("too many unknown tokens at once: try again")
	}
	c, final, err := r.ask(ctx, token, verb, path)
	r.asking.Add(-1)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case final:
		if r.known == nil || len(r.known) >= reviewsKept {
			r.known = map[reviewKey]review{}
		}
		r.known[key] = review{c, err, now.Add(reviewValid), now.Add(reviewStands)}
	case errors.Is(err, ErrCredential):
		delete(r.known, key) // it has ended, or was taken back
	case stands:
		had.until = now.Add(reviewTime) // not asked for each request meanwhile
		r.known[key] = had
		return had.caller, nil
	}
	return c, err
}

func (r *Reviews) audiences() []string {
	if r.Audience == "" {
		return nil
	}
	return []string{r.Audience}
}

// right gives the verb and the path that a rule names. To ask for rows by a filter in a request's body is to read, too;
// and what a trace ID is part of is one path for all, so that none makes a right of its own.
func right(verb, path string) (string, string) {
	switch {
	case path == "/v1/traces" || strings.HasPrefix(path, "/opentelemetry.proto.collector."):
		return verb, path
	case strings.HasPrefix(path, "/api/v3/traces"):
		path = "/api/v3/traces"
	}
	return "get", "/dnstrail" + path
}

// ask gives what the API server says; final says that it will say the same again.
func (r *Reviews) ask(ctx context.Context, token, verb, path string) (c Caller, final bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTime)
	defer cancel()
	who, err := r.Client.AuthenticationV1().TokenReviews().Create(ctx, &authentication.TokenReview{
		Spec: authentication.TokenReviewSpec{Token: token, Audiences: r.audiences()},
	}, metav1.CreateOptions{})
	if err != nil {
		return c, false, fmt.Errorf("asking the API server for a token: %w", err)
	}
	// A server that knows of no audiences names none, and has looked for none.
	if !who.Status.Authenticated || r.Audience != "" && !slices.Contains(who.Status.Audiences, r.Audience) {
		return c, false, ErrCredential // not remembered: who guesses tokens shall not push out those of others
	}
	user := who.Status.User
	c.Name = user.Username
	if nodes := user.Extra[extraNode]; len(nodes) == 1 {
		c.Node = nodes[0]
	}
	extra := make(map[string]authorization.ExtraValue, len(user.Extra))
	for k, v := range user.Extra {
		extra[k] = authorization.ExtraValue(v)
	}
	may, err := r.Client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorization.SubjectAccessReview{
		Spec: authorization.SubjectAccessReviewSpec{
			User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
			NonResourceAttributes: &authorization.NonResourceAttributes{Path: path, Verb: verb},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return c, false, fmt.Errorf("asking the API server for the rights of %s: %w", user.Username, err)
	}
	if !may.Status.Allowed {
		return c, true, fmt.Errorf("%w: %s may not %s %s", ErrForbidden, user.Username, verb, path)
	}
	return c, true, nil
}
