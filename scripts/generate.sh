#!/bin/sh
# Writes the Go code of the .proto files in axo/server/e2b/proto, with the plugins of
# the versions that axo/go.mod has and Debian's protoc (package protobuf-compiler).
set -eu
cd "$(dirname "$0")/../axo"
command -v protoc >/dev/null || {
	echo "no protoc: install protobuf-compiler" >&2
	exit 3
}
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
module=github.com/axocoatl/isolation/axo
for name in process filesystem; do
	package="$module/server/e2b/internal/${name}pb;${name}pb"
	PATH=$bin:$PATH protoc -I server/e2b/proto \
		--go_out=. --go_opt=module=$module --go_opt=M$name/$name.proto="$package" \
		--connect-go_out=. --connect-go_opt=module=$module --connect-go_opt=M$name/$name.proto="$package" --connect-go_opt=package_suffix= \
		$name/$name.proto
done
