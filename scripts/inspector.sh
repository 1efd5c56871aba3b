#!/bin/sh
# Gets the MCP inspector (npm, MIT), with which the tests list and call tools, and
# prints the path of its program. It is pinned by version, what it depends on by date,
# and kept outside of the clone. Status 3: a tool is missing.
set -eu
version=0.15.0
before=2026-11-01
for tool in node npm; do
	command -v "$tool" >/dev/null || {
		echo "no $tool: the MCP inspector is left out" >&2
		exit 3
	}
done
cache=${XDG_CACHE_HOME:-$HOME/.cache}/axo-inspector
dir=$cache/$version-$before
program=node_modules/@modelcontextprotocol/inspector/cli/build/cli.js
if [ ! -f "$dir/$program" ]; then
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/tmp-XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	(cd "$tmp" && npm install --silent --no-audit --no-fund --ignore-scripts --before="$before" "@modelcontextprotocol/inspector@$version" >/dev/null)
	mv -T "$tmp" "$dir" 2>/dev/null || [ -f "$dir/$program" ]
fi
echo "$dir/$program"
