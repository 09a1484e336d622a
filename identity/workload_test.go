package identity

import (
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func controlledBy(kind, name string, uid types.UID) []metav1.OwnerReference {
	yes := true
	return []metav1.OwnerReference{
		{Kind: "Misleading", Name: "not-the-controller", UID: "other"},
		{Kind: kind, Name: name, UID: uid, Controller: &yes},
	}
}

func TestWorkloadOfAPod(t *testing.T) {
	now := time.Now()
	minute := now.Unix() / 60
	for _, tt := range []struct {
		name   string
		refs   []metav1.OwnerReference
		labels map[string]string
		known  owners // what the API said, where it may be asked
		want   owner
	}{
		{"nothing owns it", nil, nil, nil, owner{"Pod", "p-node-1"}},
		{"static pod", controlledBy("Node", "node-1", "n"), nil, nil, owner{"Pod", "p"}},
		{"StatefulSet", controlledBy("StatefulSet", "db", "s"), nil, nil, owner{"StatefulSet", "db"}},
		{"DaemonSet", controlledBy("DaemonSet", "agent", "s"), nil, nil, owner{"DaemonSet", "agent"}},
		{"custom resource", controlledBy("Kafka", "k", "s"), nil, nil, owner{"Kafka", "k"}},
		{"Deployment, by name", controlledBy("ReplicaSet", "cart-api-7f9c5d4b8", "r"),
			map[string]string{"pod-template-hash": "7f9c5d4b8"}, nil, owner{"Deployment", "cart-api"}},
		{"Rollout, by name", controlledBy("ReplicaSet", "cart-7f9c", "r"),
			map[string]string{"rollouts-pod-template-hash": "7f9c"}, nil, owner{"Rollout", "cart"}},
		{"ReplicaSet alone", controlledBy("ReplicaSet", "cart-7f9c5d4b8", "r"), nil, nil,
			owner{"ReplicaSet", "cart-7f9c5d4b8"}},
		{"ReplicaSet with another hash", controlledBy("ReplicaSet", "cart-7f9c5d4b8", "r"),
			map[string]string{"pod-template-hash": "x"}, nil, owner{"ReplicaSet", "cart-7f9c5d4b8"}},
		{"ReplicaSet that only looks like a Deployment's", controlledBy("ReplicaSet", "cart-x", "r"),
			map[string]string{"pod-template-hash": "x"}, owners{"r": {"ReplicaSet", "cart-x"}}, owner{"ReplicaSet", "cart-x"}},
		{"ReplicaSet of a custom resource", controlledBy("ReplicaSet", "cart-x", "r"), nil, owners{"r": {"Canary", "cart"}},
			owner{"Canary", "cart"}},
		{"CronJob, by name", controlledBy("Job", fmt.Sprint("backup-", minute), "j"), nil, nil, owner{"CronJob", "backup"}},
		{"Job alone", controlledBy("Job", "migrate", "j"), nil, nil, owner{"Job", "migrate"}},
		{"Job with a date", controlledBy("Job", "migrate-20240115", "j"), nil, nil, owner{"Job", "migrate-20240115"}},
		{"Job with a number", controlledBy("Job", "migrate-12345678", "j"), nil, nil, owner{"Job", "migrate-12345678"}},
		{"Job that only looks like a CronJob's", controlledBy("Job", fmt.Sprint("backup-", minute), "j"), nil,
			owners{"j": {"Job", "backup-now"}}, owner{"Job", "backup-now"}},
	} {
		m := &metav1.ObjectMeta{Name: "p-node-1", OwnerReferences: tt.refs, Labels: tt.labels,
			CreationTimestamp: metav1.NewTime(now)}
		if got := tt.known.of(m, "node-1"); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestOnlyExceptionsAreRemembered(t *testing.T) {
	o := owners{}
	hash := map[string]string{"pod-template-hash": "abc"}
	usual := &metav1.ObjectMeta{Name: "cart-abc", UID: "1", Labels: hash,
		OwnerReferences: controlledBy("Deployment", "cart", "d")}
	alone := &metav1.ObjectMeta{Name: "cart", UID: "2"}
	orphan := &metav1.ObjectMeta{Name: "web-abc", UID: "3", Labels: hash}
	for _, m := range []*metav1.ObjectMeta{usual, alone, orphan} {
		o.learn("ReplicaSet", m)
	}
	if want := (owner{"ReplicaSet", "web-abc"}); len(o) != 1 || o["3"] != want {
		t.Errorf("got %v, want only the orphan", o)
	}
	orphan.OwnerReferences = controlledBy("Deployment", "web", "d") // adopted again
	o.learn("ReplicaSet", orphan)
	if len(o) != 0 {
		t.Errorf("got %v, want none", o)
	}
}
