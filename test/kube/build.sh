#!/bin/sh
# build.sh DIRECTORY PROGRAM... - builds programs of Kubernetes, etcd and containerd of the versions that go.mod here
# and in containerd/ name, unless they are there already: etcd kube-apiserver kube-controller-manager kube-scheduler
# kubelet kube-proxy containerd ctr containerd-shim-runc-v2. Cold, the API server and etcd take six minutes on two
# idle cores, all of them fifteen; nice, so that a machine stays usable.
set -eu

output=${1:?usage: build.sh DIRECTORY PROGRAM...}
shift
case $output in /*) ;; *) output=$PWD/$output ;; esac
cd "$(dirname "$0")"
mkdir -p "$output"

# A stamp a program: the versions that it was built of.
now=$( (go version && cat go.mod go.sum containerd/go.mod containerd/go.sum) | sha256sum)
# The versions that Kubernetes' programs tell must be a release's: they compare them at start.
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
kube="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1"
kube="$kube -X k8s.io/component-base/version.gitMinor=${minor%%.*}"

stamps=$output/.built
mkdir -p "$stamps"
for program; do
	if [ -x "$output/$program" ] && [ "$(cat "$stamps/$program" 2>/dev/null)" = "$now" ]; then
		continue
	fi
	module=.
	ldflags='-s -w'
	tags=
	case $program in
	etcd) package=go.etcd.io/etcd/server/v3 ;;
	containerd | ctr | containerd-shim-runc-v2)
		module=containerd
		package=github.com/containerd/containerd/v2/cmd/$program
		tags=no_btrfs,no_devmapper,no_zfs
		;;
	*)
		package=k8s.io/kubernetes/cmd/$program
		ldflags=$kube
		;;
	esac
	(
		cd $module
		CGO_ENABLED=0 nice go build -trimpath -tags "$tags" -ldflags "$ldflags" -o "$output/$program" "$package"
	)
	echo "$now" >"$stamps/$program"
	echo "    built $output/$program" >&2
done
