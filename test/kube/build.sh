#!/bin/sh
# build.sh DIRECTORY - builds kube-apiserver and etcd of this directory's go.mod there, unless they are of that go.mod already.
# Cold it takes six minutes on two idle cores; nice, so that a machine stays usable meanwhile.
set -eu

output=${1:?usage: build.sh DIRECTORY}
case $output in /*) ;; *) output=$PWD/$output ;; esac
cd "$(dirname "$0")"

stamp=$output/kube.stamp
now=$( (go version && cat go.mod go.sum) | sha256sum)
if [ -x "$output/kube-apiserver" ] && [ -x "$output/etcd" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$now" ]; then
	exit 0
fi
mkdir -p "$output"
# The versions that the server tells must be a release's: it compares them at start.
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
CGO_ENABLED=0 nice go build -trimpath -ldflags '-s -w' -o "$output/etcd" go.etcd.io/etcd/server/v3
CGO_ENABLED=0 nice go build -trimpath -ldflags "$ldflags" -o "$output/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver
echo "$now" >"$stamp"
echo "    built $output/kube-apiserver and $output/etcd" >&2
