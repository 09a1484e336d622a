package identity

import (
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// owner is what stands behind a pod, as people call it.
type owner struct{ kind, name string }

// Labels that controllers put on the pods of a ReplicaSet; the set's name ends in the value.
const (
	labelDeploymentHash = "pod-template-hash"
	labelRolloutHash    = "rollouts-pod-template-hash" // Argo Rollouts
)

// controllerOf gives the owner that manages an object, if one does.
func controllerOf(refs []metav1.OwnerReference) (metav1.OwnerReference, bool) {
	for _, r := range refs {
		if r.Controller != nil && *r.Controller {
			return r, true
		}
	}
	return metav1.OwnerReference{}, false
}

// above guesses what stands above a controller of pods from the names that the controllers of Kubernetes give, without
// asking the API for it:
//
//   - a ReplicaSet whose name ends in its pods' pod-template-hash is a Deployment's
//     (pkg/controller/deployment/sync.go);
//   - a Job whose name ends in the minute for which it was scheduled, in minutes since 1970, is a CronJob's
//     (pkg/controller/cronjob/utils.go). A date or a number that people put there is far from the minute in which the
//     pod was made.
func above(ref metav1.OwnerReference, labels map[string]string, created time.Time) owner {
	switch ref.Kind {
	case "ReplicaSet":
		for _, l := range [...]struct{ label, kind string }{{labelDeploymentHash, "Deployment"},
			{labelRolloutHash, "Rollout"}} {
			if hash := labels[l.label]; hash != "" {
				if name, ok := strings.CutSuffix(ref.Name, "-"+hash); ok && name != "" {
					return owner{l.kind, name}
				}
			}
		}
	case "Job":
		i := strings.LastIndexByte(ref.Name, '-')
		if i <= 0 || len(ref.Name)-i-1 != 8 {
			break
		}
		minute, err := strconv.ParseInt(ref.Name[i+1:], 10, 64)
		if err != nil {
			break
		}
		if late := created.Sub(time.Unix(60*minute, 0)); -time.Hour < late && late < 30*24*time.Hour {
			return owner{"CronJob", ref.Name[:i]}
		}
	}
	return owner{ref.Kind, ref.Name}
}

// owners remembers what the API says about ReplicaSets and Jobs where [above] is wrong: next to nothing, whatever the
// size of the cluster.
type owners map[types.UID]owner

// learn takes in a ReplicaSet or Job.
func (o owners) learn(kind string, m *metav1.ObjectMeta) {
	told := owner{kind, m.Name}
	if ref, ok := controllerOf(m.OwnerReferences); ok {
		told = owner{ref.Kind, ref.Name}
	}
	if told == above(metav1.OwnerReference{Kind: kind, Name: m.Name}, m.Labels, m.CreationTimestamp.Time) {
		delete(o, m.UID)
	} else {
		o[m.UID] = told
	}
}

// of gives the workload of a pod: what manages it, one step further up where that is a ReplicaSet or a Job. A pod that
// nothing manages is its own workload; one from a manifest on its node (a static pod) is so too, without the node's
// name at the end of its own.
func (o owners) of(m *metav1.ObjectMeta, node string) owner {
	ref, ok := controllerOf(m.OwnerReferences)
	switch {
	case !ok:
		return owner{"Pod", m.Name}
	case ref.Kind == "Node":
		return owner{"Pod", strings.TrimSuffix(m.Name, "-"+node)}
	}
	if told, ok := o[ref.UID]; ok {
		return told
	}
	return above(ref, m.Labels, m.CreationTimestamp.Time)
}
