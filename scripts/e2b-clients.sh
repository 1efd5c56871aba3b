#!/bin/sh
# Installs E2B's SDKs, as the lock files in axo/server/e2b/testdata/clients name them, and
# prints the directory: js has npm's, py PyPI's. They are kept outside of the clone.
# Status 3: a tool is missing.
set -eu
for tool in npm node python3; do
	command -v "$tool" >/dev/null || {
		echo "no $tool: E2B's clients are left out" >&2
		exit 3
	}
done
python3 -m pip --version >/dev/null 2>&1 || {
	echo "no pip (python3-pip): E2B's clients are left out" >&2
	exit 3
}
here=$(cd "$(dirname "$0")/../axo/server/e2b/testdata/clients" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/axo-e2b-clients
dir=$cache/$( (cat "$here/package-lock.json" "$here/requirements.txt"; python3 --version; node --version) | sha256sum | cut -c 1-16)
if [ ! -d "$dir" ]; then
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/tmp-XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	mkdir "$tmp/js"
	cp "$here/package.json" "$here/package-lock.json" "$tmp/js/"
	(cd "$tmp/js" && npm ci --no-audit --no-fund --ignore-scripts --silent >&2)
	python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$tmp/py" -r "$here/requirements.txt" >&2
	mv -T "$tmp" "$dir" 2>/dev/null || [ -d "$dir" ] # another was first
fi
echo "$dir"
