#!/usr/bin/env bash
# fuzz.sh TIME - runs every fuzz target of the module for TIME each (a Go duration), one after the other; stops at the first finding.
set -euo pipefail
for file in $(git ls-files '*_test.go'); do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(f \*testing\.F.*/\1/p' "$file"); do
		echo "==> $target ($(dirname "$file")) for $1"
		go test "./$(dirname "$file")" -run '^$' -fuzz "^$target\$" -fuzztime "$1" | { grep -v '^fuzz: elapsed' || true; }
	done
done
