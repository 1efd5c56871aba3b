#!/bin/sh
# Makes the image base, as axo setup base does, and prints the directory of an image store
# that has it. It is kept outside of the clone: its packages come from Debian's mirrors.
# Status 3: a tool is missing.
set -eu
for tool in mmdebstrap newuidmap; do
	command -v "$tool" >/dev/null || {
		echo "no $tool (apt-get install mmdebstrap uidmap): the base image is left out" >&2
		exit 3
	}
done
here=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/axo-base
dir=$cache/$(sha256sum "$here/axo/base/base.go" | cut -c 1-16)
if [ ! -d "$dir" ]; then
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/tmp-XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	(cd "$here" && CGO_ENABLED=0 go build -o "$tmp/axo" ./axo)
	"$tmp/axo" setup base --state-dir "$tmp/state" -q >&2
	mv -T "$tmp/state/images" "$dir" 2>/dev/null || [ -d "$dir" ] # another was first
fi
echo "$dir"
