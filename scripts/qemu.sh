#!/bin/sh
# Prints the path of a QEMU of version 8 or newer, which emulates machines faster: this
# host's, or on Debian 12 that of Debian's backports, which is not installed but kept
# outside of the clone. Status 3: there is none.
set -eu
cache=${XDG_CACHE_HOME:-$HOME/.cache}/axo-qemu

missing() {
	echo "$1" >&2
	exit 3
}

major=$(qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\)\..*/\1/p')
if [ "${major:-0}" -ge 8 ]; then
	command -v qemu-system-x86_64
	exit
fi
keys=/usr/share/keyrings/debian-archive-keyring.gpg
codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
[ "$codename" = bookworm ] && [ -f "$keys" ] && command -v apt-get >/dev/null || missing "QEMU is ${major:-not there}, and only on Debian 12 is it known where a newer one is"
mkdir -p "$cache"
# One at a time; it is complete before it has its name.
exec 9>"$cache/lock"
flock 9
if [ ! -d "$cache/bookworm-backports" ]; then
	temp=$(mktemp -d "$cache/new.XXXXXX")
	trap 'rm -rf "$temp"' EXIT
	mkdir -p "$temp/apt/lists/partial" "$temp/apt/archives/partial" "$temp/out"
	echo "deb [signed-by=$keys] http://deb.debian.org/debian bookworm-backports main" >"$temp/apt/sources"
	apt() {
		apt-get -q -o Dir::Etc::sourcelist="$temp/apt/sources" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$temp/apt/lists" \
			-o Dir::Cache="$temp/apt" -o APT::Sandbox::User=root "$@" >"$temp/log" 2>&1 || {
			tail -n 5 "$temp/log" >&2
			exit 3
		}
	}
	apt update
	cd "$temp/apt/archives"
	apt download qemu-system-x86/bookworm-backports qemu-system-common/bookworm-backports qemu-system-data/bookworm-backports
	for p in ./*.deb; do
		dpkg-deb -x "$p" "$temp/out"
	done
	cd /
	if ldd "$temp/out/usr/bin/qemu-system-x86_64" | grep 'not found' >&2; then
		missing "the newer QEMU needs these libraries"
	fi
	mv "$temp/out" "$cache/bookworm-backports"
fi
echo "$cache/bookworm-backports/usr/bin/qemu-system-x86_64"
