#!/bin/sh
# build.sh OUTPUT - builds the Jaeger of this directory's go.mod, unless OUTPUT is of that go.mod already.
# Cold it takes five minutes on two idle cores; nice, so that a machine stays usable meanwhile.
set -eu

output=${1:?usage: build.sh OUTPUT}
case $output in /*) ;; *) output=$PWD/$output ;; esac
cd "$(dirname "$0")"

stamp=$output.stamp
now=$( (go version && cat go.mod go.sum) | sha256sum)
if [ -x "$output" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$now" ]; then
	exit 0
fi
mkdir -p "$(dirname "$output")"
CGO_ENABLED=0 nice go build -trimpath -ldflags '-s -w' -o "$output" github.com/jaegertracing/jaeger/cmd/jaeger
echo "$now" >"$stamp"
echo "    built $output" >&2
