#!/bin/sh
# Prints a command that compiles a Rust program for a WebAssembly target:
#   rust-wasi.sh wasm32-wasip1|wasm32-wasip2
# The standard library for it is the toolchain's, or is added to it by rustup, or
# else, for preview 1, is of Debian's package of an older compiler, which is unpacked
# beside. Status 3: it cannot be had.
set -eu
target=${1:-}
case "$target" in
wasm32-wasip1 | wasm32-wasip2) ;;
*)
	echo "usage: rust-wasi.sh wasm32-wasip1|wasm32-wasip2" >&2
	exit 2
	;;
esac
has() { command -v rustc >/dev/null && test -d "$(rustc --print target-libdir --target "$target" 2>/dev/null)"; }
has || { command -v rustup >/dev/null && rustup target add "$target" >&2; } || true
if has; then
	echo "rustc --target $target"
	exit 0
fi
dir=${XDG_CACHE_HOME:-$HOME/.cache}/axo-rust-wasi
if [ "$target" = wasm32-wasip1 ] && command -v apt-get >/dev/null && command -v wasm-ld-14 >/dev/null; then
	if [ ! -d "$dir/usr" ]; then
		tmp=$dir.$$
		trap 'rm -rf "$tmp"' EXIT
		mkdir -p "$tmp"
		# Of the same release: they fit together.
		(cd "$tmp" && apt-get download -q rustc libstd-rust-1.63 libstd-rust-dev libstd-rust-dev-wasm32) >&2 || exit 3
		for p in "$tmp"/*.deb; do
			dpkg -x "$p" "$tmp"
			rm "$p"
		done
		mv -T "$tmp" "$dir" 2>/dev/null || test -d "$dir/usr"
	fi
	echo "env LD_LIBRARY_PATH=$(echo "$dir"/usr/lib/*-linux-gnu) $dir/usr/bin/rustc --target wasm32-wasi -C linker=wasm-ld-14"
	exit 0
fi
echo "no Rust for $target: rustup (https://rustup.rs) has it" >&2
exit 3
