#!/bin/sh
# Builds the wasmtime worker and prints its path; or, with "componentize", the
# tool that makes the tests' components. "fuzz" fuzzes its decoder for some seconds,
# and needs a C++ compiler besides, for libFuzzer. "checks" measures what fuel and
# epochs cost a module. "audit" holds the lock files against known advisories. The
# build is kept outside of the clone, by lock file and toolchain: the first takes
# minutes.
set -eu
cd "$(dirname "$0")/../native"
scripts=$PWD/../scripts
case "${1:-build}" in
componentize) cd componentize ;;
fuzz) cd wasmtime-worker/fuzz ;;
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
fuzz)
	if ! command -v c++ >/dev/null && ! command -v clang++ >/dev/null; then
		echo "no C++ compiler: the worker's decoder is not fuzzed" >&2
		exit 3
	fi
	# What the fuzzer steers by, which is all that cargo-fuzz would add here. Not
	# static: libFuzzer looks for symbols that may not be there.
	RUSTFLAGS=
	for arg in level=4 inline-8bit-counters pc-table trace-compares; do
		RUSTFLAGS="$RUSTFLAGS -C llvm-args=-sanitizer-coverage-$arg"
	done
	RUSTFLAGS="$RUSTFLAGS -C passes=sancov-module -C codegen-units=1" cargo build --quiet --release --locked --target "$host" >&2
	rustc --edition 2024 -o "$dir/make-seeds" src/seeds.rs
	"$dir/make-seeds" ../../../guest/wire/testdata/vectors.json "$dir/seeds"
	mkdir -p "$dir/corpus"
	cd "$dir" # where it leaves what it finds
	"./$host/release/frames" -max_total_time="${2:-60}" -max_len=65536 -timeout=5 -rss_limit_mb=1024 -print_final_stats=1 corpus seeds >&2
	;;
checks)
	shift
	cargo bench --quiet --locked --target "$host" --bench checks -- "$@"
	;;
audit)
	# With what database there is: cargo audit fetches it, AXO_ADVISORY_DB names a copy.
	if ! cargo audit --version >/dev/null 2>&1; then
		echo "no cargo audit: cargo install cargo-audit" >&2
		exit 3
	fi
	for lock in . fuzz ../componentize; do
		cargo audit ${AXO_ADVISORY_DB:+--db "$AXO_ADVISORY_DB" --no-fetch --stale} -f "$lock/Cargo.lock" >&2
	done
	;;
lint)
	cargo fmt --check >&2
	cargo clippy --quiet --release --locked --all-targets --target "$host" -- -D warnings >&2
	cd ../componentize
	cargo fmt --check >&2
	cargo clippy --quiet --release --locked --target "$host" -- -D warnings >&2
	cd ../wasmtime-worker/fuzz
	cargo fmt --check >&2
	if command -v c++ >/dev/null; then # its build compiles libFuzzer
		cargo clippy --quiet --release --locked --target "$host" -- -D warnings >&2
	fi
	;;
*)
	echo "usage: wasmtime.sh [build|componentize|test|lint|audit|fuzz [SECONDS]|checks MODULE ROUNDS [ARG...]]" >&2
	exit 2
	;;
esac
