#!/bin/sh
# extract.sh DIRECTORY PACKAGE ... - takes Debian packages apart into DIRECTORY without installing them: their servers would
# start, and change how this machine resolves names.
set -eu
into=$1
shift
for package in "$@"; do
	[ -e "$into/.$package" ] && continue
	echo "==> extracting $package"
	work=$(mktemp -d)
	chmod 755 "$work"
	(cd "$work" && { apt-get download -q "$package" || { apt-get update -q && apt-get download -q "$package"; }; }) >"$work/log" 2>&1 ||
		{ cat "$work/log" >&2; rm -rf "$work"; exit 1; }
	mkdir -p "$into"
	dpkg-deb -x "$work"/*.deb "$into"
	rm -rf "$work"
	touch "$into/.$package"
done
