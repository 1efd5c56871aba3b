#!/bin/sh
# Prints the path of an OCI runtime: crun, runc, youki or runsc (gVisor). The first
# two come from the host. The others are built once, which takes minutes, and kept
# outside of the clone, by version. Status 3: a tool for that is missing.
set -eu
youki=0.7.0
runsc=v0.0.0-20260905035102-160fafc42237
cache=${XDG_CACHE_HOME:-$HOME/.cache}/axo-runtimes

missing() {
	echo "$1" >&2
	exit 3
}

# build NAME KEY COMMAND...: runs the command, which leaves NAME in $out.
build() {
	name=$1
	key=$2
	shift 2
	dir=$cache/$name-$key
	if [ ! -x "$dir/$name" ]; then
		mkdir -p "$cache"
		# One builder at a time; it is complete before it has its name.
		exec 9>"$cache/$name.lock"
		flock 9
		if [ ! -x "$dir/$name" ]; then
			out=$(mktemp -d "$cache/$name.XXXXXX")
			trap 'rm -rf "$out"' EXIT
			out=$out "$@" >"$out/log" 2>&1 || {
				tail -n 40 "$out/log" >&2
				exit 1
			}
			rm -rf "$dir"
			mkdir "$dir"
			mv "$out/$name" "$dir/$name"
		fi
	fi
	echo "$dir/$name"
}

build_youki() {
	# Without the features for systemd and for WebAssembly, which take more
	# libraries.
	cargo install --quiet --locked --no-track --version "$youki" --no-default-features --features v1,v2,seccomp --root "$out/root" youki
	mv "$out/root/bin/youki" "$out/youki"
}

build_runsc() {
	# With cgo it builds, and fails when it starts a container.
	GOBIN=$out CGO_ENABLED=0 go install -trimpath -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$runsc" "gvisor.dev/gvisor/runsc@$runsc"
}

case "${1:-}" in
crun | runc)
	command -v "$1" || missing "$1 is not installed"
	;;
youki)
	if command -v youki; then exit; fi
	command -v cargo >/dev/null || missing "no cargo: youki is left out; a Rust toolchain (https://rustup.rs) makes it"
	pkg-config --exists libseccomp 2>/dev/null || missing "youki needs pkg-config and the headers of libseccomp (apt install pkg-config libseccomp-dev)"
	build youki "$youki" build_youki
	;;
runsc)
	if command -v runsc; then exit; fi
	command -v go >/dev/null || missing "no go: runsc is left out"
	build runsc "$runsc" build_runsc
	;;
*)
	echo "usage: runtimes.sh crun|runc|youki|runsc" >&2
	exit 2
	;;
esac
