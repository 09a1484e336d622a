package lab

import (
	"testing"
	"time"
)

func TestFillConntrack(t *testing.T) {
	l := up(t)
	server, client := addPod(t, l, "node-2", "kube-system", "coredns"), addPod(t, l, "node-1", "shop", "cart")
	serveDNS(t, server)
	if err := l.Service.SetEndpoints(server); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	undo, err := l.Node("node-1").FillConntrack()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("filled in %v", time.Since(begin))
	if err := ask(client, ServiceV4); err == nil {
		t.Error("answered though the node can track no further connection")
	}
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	if err := ask(client, ServiceV4); err != nil {
		t.Errorf("undone: %v", err)
	}
}
