#!/bin/sh
# progress.sh COMMAND ... - runs a command; says every 15 s that it is still at work. Its output and exit status are the command's.
"$@" &
pid=$!
trap 'kill "$pid" 2>/dev/null' INT TERM
(
	n=0
	while sleep 15; do
		n=$((n + 15))
		echo "    ... still at it after ${n}s: $1 $2" >&2
	done
) &
watch=$!
status=0
wait "$pid" || status=$?
kill "$watch" 2>/dev/null
exit "$status"
