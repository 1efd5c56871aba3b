#!/bin/sh
# Builds the wasmtime worker and prints its path; or, with "componentize", the
# tool that makes the tests' components. The build is kept outside of the clone,
# by lock file and toolchain: the first takes minutes.
set -eu
cd "$(dirname "$0")/../native"
scripts=$PWD/../scripts
case "${1:-build}" in
componentize) cd componentize ;;
*) cd wasmtime-worker ;;
esac
if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
	echo "no cargo: the wasmtime worker is left out; a Rust toolchain (https://rustup.rs) of version 1.95 or later makes it" >&2
	exit 3
fi
toolchain=$(rustc -vV)
host=$(printf '%s\n' "$toolchain" | sed -n 's/^host: //p')
key=$( (printf '%s\n' "$toolchain"; cat Cargo.lock) | sha256sum | cut -c 1-16)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/axo-wasmtime/$key
mkdir -p "$dir"
# Static: it starts faster, and needs no library of the host. The target is
# named so that the flags are not taken for build scripts too.
export CARGO_TARGET_DIR="$dir" RUSTFLAGS="-C target-feature=+crt-static"
case "${1:-build}" in
build)
	cargo build --quiet --release --locked --target "$host" >&2
	echo "$dir/$host/release/axo-wasmtime"
	;;
componentize)
	cargo build --quiet --release --locked --target "$host" >&2
	echo "$dir/$host/release/componentize"
	;;
test)
	AXO_COMPONENTIZE=$("$scripts/wasmtime.sh" componentize)
	export AXO_COMPONENTIZE
	cargo test --quiet --release --locked --target "$host" >&2
	;;
lint)
	cargo fmt --check >&2
	cargo clippy --quiet --release --locked --all-targets --target "$host" -- -D warnings >&2
	cd ../componentize
	cargo fmt --check >&2
	cargo clippy --quiet --release --locked --target "$host" -- -D warnings >&2
	;;
*)
	echo "usage: wasmtime.sh [build|componentize|test|lint]" >&2
	exit 2
	;;
esac
