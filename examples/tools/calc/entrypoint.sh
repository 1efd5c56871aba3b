#!/bin/sh
# Evaluates $1 with bc, and prints JSON. bc ends with 0 when it has complained, too.
set -eu
if ! out=$(printf '%s\n' "$1" | BC_LINE_LENGTH=0 bc 2>&1) || [ -z "$out" ]; then
	echo "bc: ${out:-no result}" >&2
	exit 1
fi
case $out in
*[!0-9.\ A-F-]*)
	printf '%s\n' "$out" >&2
	exit 1
	;;
esac
printf '{"result":"%s"}\n' "$out"
