#!/bin/sh
# Fetches Debian's kernel for clouds, which the tests of virtual machines boot,
# and prints the package's path. It is kept outside of the clone.
set -eu
dir=${XDG_CACHE_HOME:-$HOME/.cache}/axo-kernel
mkdir -p "$dir"
have=$(find "$dir" -name 'linux-image-*-cloud-amd64_*.deb' | sort | tail -n 1)
if [ -z "$have" ]; then
	if ! command -v apt-get >/dev/null; then
		echo "no apt-get: put a package linux-image-*-cloud-amd64 of Debian into $dir" >&2
		exit 1
	fi
	name=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	if [ -z "$name" ]; then
		apt-get update -q >/dev/null
		name=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	fi
	temp=$(mktemp -d)
	trap 'rm -rf "$temp"' EXIT
	(cd "$temp" && apt-get download -q "$name" >/dev/null 2>&1) || { apt-get update -q >/dev/null; (cd "$temp" && apt-get download -q "$name" >/dev/null 2>&1); }
	mv "$temp"/*.deb "$dir/"
	have=$(find "$dir" -name 'linux-image-*-cloud-amd64_*.deb' | sort | tail -n 1)
fi
echo "$have"
