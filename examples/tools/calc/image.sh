#!/bin/sh
# Makes the image of the tool calc and imports it: a static busybox, by Debian's package
# busybox-static, and the entrypoint. Takes the program axo, if it is not in PATH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/root/bin" "$dir/root/tmp"
cp "$(command -v busybox)" "$dir/root/bin/busybox"
for name in sh bc; do ln -s busybox "$dir/root/bin/$name"; done
cp "$here/entrypoint.sh" "$dir/root/bin/calc"
chmod 755 "$dir/root/bin/calc"
chmod 1777 "$dir/root/tmp"
tar -cf "$dir/image.tar" -C "$dir/root" bin tmp
"${1:-axo}" image import -q --name axo-example/calc:1 --entrypoint /bin/calc "$dir/image.tar"
