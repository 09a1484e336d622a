package bpf

import "testing"

func TestRootOfCgroup2(t *testing.T) {
	for _, tt := range []struct{ name, mountinfo, want string }{
		{"host", "26 1 0:25 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"},
		{"host with both versions", "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n31 25 0:27 / " +
			"/sys/fs/cgroup/unified rw shared:9 master:1 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified"},
		{"container with the host's mounted into it", "163 143 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n164 143 " +
			"0:38 /../../.. /host/cgroup rw - cgroup2 cgroup rw\n", "/host/cgroup"},
		{"container with a part of the host's", "163 143 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n164 143 0:38 " +
			"/../../other /other rw - cgroup2 cgroup rw\n", "/sys/fs/cgroup"},
		{"a part only", "164 143 0:38 /system.slice /cg rw - cgroup2 cgroup rw\n", ""},
		{"none", "26 1 0:25 / /proc rw - proc proc rw\n", ""},
		{"not a mountinfo line", "cgroup2 - cgroup2\n\n", ""},
	} {
		if got := cgroup2Root(tt.mountinfo); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
