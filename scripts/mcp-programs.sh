#!/bin/sh
# Gets a program that the tests of MCP use, and prints its path: inspector,
# conformance (the protocol's own suite), everything (a published server), all of npm,
# and uvx, of PyPI. They are pinned by version, what they depend on by date, and kept
# outside of the clone. Status 3: a tool is missing.
set -eu
before=2026-11-01
case ${1:-} in
inspector) package=@modelcontextprotocol/inspector@0.15.0 program=@modelcontextprotocol/inspector/cli/build/cli.js ;;
# The newest one that Node.js 20 runs.
conformance) package=@modelcontextprotocol/conformance@0.1.13 program=@modelcontextprotocol/conformance/dist/index.js ;;
everything) package=@modelcontextprotocol/server-everything@2026.8.31 program=@modelcontextprotocol/server-everything/dist/index.js ;;
uvx) package=uv==0.13.9 program=bin/uvx ;;
*)
	echo "which? inspector, conformance, everything or uvx" >&2
	exit 2
	;;
esac
need="node npm"
if [ "$1" = uvx ]; then need=python3; else program=node_modules/$program; fi
for tool in $need; do
	command -v "$tool" >/dev/null || {
		echo "no $tool: $1 is left out" >&2
		exit 3
	}
done
cache=${XDG_CACHE_HOME:-$HOME/.cache}/axo-mcp
dir=$cache/$1-${package##*[@=]}-$before
if [ ! -f "$dir/$program" ]; then
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/tmp-XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	if [ "$1" = uvx ]; then
		python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$tmp" "$package" >&2
		(cd "$tmp" && python3 -m zipfile -e ./*.whl wheel && mkdir bin && mv wheel/*.data/scripts/uv wheel/*.data/scripts/uvx bin && chmod 755 bin/* && rm -rf wheel ./*.whl)
	else
		(cd "$tmp" && npm install --silent --no-audit --no-fund --ignore-scripts --before="$before" "$package" >/dev/null)
	fi
	chmod 755 "$tmp"
	mv -T "$tmp" "$dir" 2>/dev/null || [ -f "$dir/$program" ]
fi
echo "$dir/$program"
