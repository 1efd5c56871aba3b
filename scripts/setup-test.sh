#!/bin/sh
# Installs what the tests need and a plain machine may lack: Python, a static busybox for
# images, a C compiler for WebAssembly and the WebAssembly tools, from Debian's
# packages, interpreters compiled to it, programs that speak MCP, E2B's clients and the base image.
# Builds the wasmtime worker and runs
# its own tests; with AXO_REQUIRE set it must be there.
set -eu
start=$(date +%s)
packages="gcc g++ libc6-dev python3 busybox-static wabt clang-14 lld-14 wasi-libc libclang-rt-14-dev-wasm32 xz-utils qemu-system-x86 e2fsprogs util-linux mount procps crun runc bubblewrap uidmap libseccomp-dev pkg-config systemd python3-pip mmdebstrap openssh-client"
# A Rust toolchain of the user's own is left alone; Debian's newer one does too.
if ! command -v cargo >/dev/null && apt-cache show cargo-web >/dev/null 2>&1; then
	packages="$packages cargo-web rustc-web rustfmt-web rust-web-clippy"
fi
# Debian's npm brings hundreds of packages; who has one from elsewhere keeps it.
command -v npm >/dev/null || packages="$packages nodejs npm"
missing=""
for p in $packages; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "tests need these packages, install them as root:$missing" >&2
		exit 1
	fi
	apt-get update -q >/dev/null
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >/dev/null
fi
go mod download
./scripts/kernel-package.sh >/dev/null
status=0
./scripts/qemu.sh >/dev/null || status=$?
if [ "$status" = 3 ] && [ -z "${AXO_REQUIRE:-}" ]; then
	echo "SKIPPED: the tests with a newer QEMU" >&2
elif [ "$status" != 0 ]; then
	exit "$status"
fi
status=0
./scripts/wasmtime.sh test || status=$?
if [ "$status" = 3 ] && [ -z "${AXO_REQUIRE:-}" ]; then
	echo "SKIPPED: the tests of the wasmtime worker, and all tests that need it" >&2
elif [ "$status" != 0 ]; then
	exit "$status"
fi
status=0
says=$(./scripts/wasmtime.sh fuzz 10 2>&1) || status=$?
if [ "$status" = 3 ] && [ -z "${AXO_REQUIRE:-}" ]; then
	echo "SKIPPED: the fuzzing of the wasmtime worker" >&2
elif [ "$status" != 0 ]; then
	printf '%s\n' "$says" | tail -40 >&2
	exit "$status"
fi
status=0
./scripts/rust-wasi.sh wasm32-wasip1 >/dev/null || status=$?
if [ "$status" = 3 ] && [ -z "${AXO_REQUIRE:-}" ]; then
	echo "SKIPPED: the tests of Rust programs on both engines" >&2
elif [ "$status" != 0 ]; then
	exit "$status"
fi
for r in crun runc youki runsc; do
	status=0
	./scripts/runtimes.sh "$r" >/dev/null || status=$?
	if [ "$status" = 3 ] && [ -z "${AXO_REQUIRE:-}" ]; then
		echo "SKIPPED: the tests of the runtime $r" >&2
	elif [ "$status" != 0 ]; then
		exit "$status"
	fi
done
for i in python quickjs; do
	status=0
	./scripts/interpreters.sh $i >/dev/null || status=$?
	if [ "$status" = 3 ] && [ -z "${AXO_REQUIRE:-}" ]; then
		echo "SKIPPED: the tests that need the $i interpreter" >&2
	elif [ "$status" != 0 ]; then
		exit "$status"
	fi
done
for m in inspector conformance everything uvx; do
	status=0
	./scripts/mcp-programs.sh $m >/dev/null || status=$?
	if [ "$status" = 3 ] && [ -z "${AXO_REQUIRE:-}" ]; then
		echo "SKIPPED: the tests of MCP with $m" >&2
	elif [ "$status" != 0 ]; then
		exit "$status"
	fi
done
status=0
./scripts/e2b-clients.sh >/dev/null || status=$?
if [ "$status" = 3 ] && [ -z "${AXO_REQUIRE:-}" ]; then
	echo "SKIPPED: the tests with E2B's own clients" >&2
elif [ "$status" != 0 ]; then
	exit "$status"
fi
status=0
./scripts/base-image.sh >/dev/null || status=$?
if [ "$status" = 3 ] && [ -z "${AXO_REQUIRE:-}" ]; then
	echo "SKIPPED: the tests with the base image" >&2
elif [ "$status" != 0 ]; then
	exit "$status"
fi
echo "setup took $(($(date +%s) - start)) s"
