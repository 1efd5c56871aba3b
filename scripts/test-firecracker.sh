#!/bin/sh
# Runs the tests of virtual machines on a Firecracker: here where KVM works, which
# a machine tells by running, and else in an emulated machine that has KVM.
set -eu
cd "$(dirname "$0")/.."
if [ $# != 1 ] || [ ! -x "$1" ]; then
	echo "which? make test-firecracker FIRECRACKER=/path/to/firecracker" >&2
	echo "releases: https://github.com/firecracker-microvm/firecracker/releases; or built there with cargo build --release -p firecracker" >&2
	exit 2
fi
path=$(realpath "$1")
on_host() {
	AXO_REQUIRE=1 AXO_TEST_VMM=firecracker AXO_FIRECRACKER_PATH="$path" go test -count=1 -vet=off -timeout 14m "$@" ./driver/microvm
}
if out=$(on_host -run '^TestGuest$' 2>&1); then
	echo "KVM works here"
	on_host -v -skip /hammer
else
	echo "KVM does not work here, so the tests run in an emulated machine that has it. Why it does not:"
	printf '%s\n' "$out" | sed -n 's/^ *[a-z_]*_test.go:[0-9]*: //p' | head -n 3
	go run ./test/nested -kernel "$(./scripts/kernel-package.sh)" -log build/firecracker.log -firecracker "$path" -deadline 40m
fi
