#!/usr/bin/env bash
# Makes a release into a directory: build/release.sh files VERSION DIR, or build/release.sh images VERSION DIR REGISTRY.
#
# files   the programs for each architecture, a list of the modules in each (CycloneDX), the chart,
#         the man pages, SHA256SUMS.
# images  from these programs: REGISTRY/coredns and REGISTRY/dnstrail, each for all architectures, pushed, with their
#         digests in DIR/images.txt.
#
# ARCHES chooses the architectures. HELM and SBOM are the helm and cyclonedx-gomod to be used.
set -euo pipefail
cd "$(dirname "$0")/.."
what=$1 version=$2 dir=$3
arches=${ARCHES:-amd64 arm64}
[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?$ ]] || { echo "a version is vX.Y.Z, not $version" >&2; exit 1; }

program() { # program NAME ARCH: the file that it is built into
	echo "$dir/$1-$version-linux-$2"
}

files() {
	rm -rf "$dir"
	mkdir -p "$dir"
	for arch in $arches; do
		CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -ldflags "-s -w -X main.built=$version" \
			-o "$(program dnstrail "$arch")" ./tracer/cmd/dnstrail
		CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -tags grpcnotrace \
			-ldflags "-s -w -X github.com/coredns/coredns/coremain.GitCommit=$version" \
			-o "$(program coredns "$arch")" ./build/coredns
		for name in dnstrail coredns; do
			"$SBOM" bin -json -version "$version" -output "$(program $name "$arch").cdx.json" "$(program $name "$arch")"
		done
	done
	"$HELM" package build/chart/dnstrail --version "${version#v}" --app-version "$version" --destination "$dir" >/dev/null
	tar --create --gzip --sort=name --owner=0 --group=0 --mtime=@0 --file "$dir/man-$version.tar.gz" -C docs man
	cp LICENSE NOTICE "$dir"
	cp tracer/bpf/src/LICENSES/GPL-2.0-only.txt tracer/bpf/src/LICENSES/BSD-2-Clause.txt "$dir"
	(cd "$dir" && sha256sum -- * >SHA256SUMS)
}

images() {
	registry=$1
	[ "$(id -u)" = 0 ] || { echo "images are made as root: nobody else may give a file a capability" >&2; exit 1; }
	: >"$dir/images.txt"
	context=$(mktemp -d)
	trap 'rm -rf "$context"' EXIT
	cp /etc/ssl/certs/ca-certificates.crt "$context"
	for name in coredns dnstrail; do
		list=$registry/$name:$version
		buildah manifest create "$list" >/dev/null
		for arch in $arches; do
			cp "$(program $name "$arch")" "$context/$name"
			[ $name != coredns ] || setcap cap_net_bind_service=+ep "$context/$name" # to bind port 53 without being root
			buildah build --quiet --isolation chroot --timestamp 0 --platform "linux/$arch" --target $name \
				--manifest "$list" -f build/image/Containerfile "$context" >/dev/null
		done
		buildah manifest push --all --digestfile "$context/digest" "$list" "${TRANSPORT:-docker}://$list"
		echo "$registry/$name@$(cat "$context/digest")" >>"$dir/images.txt"
	done
	cat "$dir/images.txt"
}

case $what in
files) files ;;
images) images "$4" ;;
*) echo "files or images, not $what" >&2; exit 1 ;;
esac
