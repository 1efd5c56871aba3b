# make build   bin/axo, with the WASM worker inside
# make wasmtime  bin/axo-wasmtime, the faster engine for WebAssembly (needs cargo)
# make demo    build everything and run the main job on real input
# make test    install what tests need, and run them
# make test-cgroup2  the container tier where control groups are version 2, in an emulated machine
# make test-runs  10,000 containers, one after the other, after which the host is as before
# make fuzz-worker  fuzz what the wasmtime worker reads from its host, for SECONDS
# make test-kvm-nested  virtual machines with KVM, in an emulated machine that has it
# make test-firecracker FIRECRACKER=FILE  virtual machines by that Firecracker, here or, without KVM, as above
# make deb     bin/axo.deb, a package for Debian, with the systemd units in packaging
# make load    8 clients make, use and delete 200 containers at a time of one daemon, for LOAD
# make check   format, vet, lint with the layering rules, cross-builds, clean tree
# make bench   the numbers of docs/CLAIMS.md
# make bench-microvm  those of virtual machines

export CGO_ENABLED = 0
WORKER = driver/wasm/embedded/axo-wasm
GUEST = driver/oci/embedded/axo-guest

.PHONY: load build deb wasmtime fuzz-worker demo test test-cgroup2 test-runs test-kvm-nested test-firecracker check bench bench-microvm setup cross clean

build: bin/axo

.PHONY: bin/axo
bin/axo:
	@mkdir -p bin driver/wasm/embedded driver/oci/embedded
	go build -trimpath -ldflags '-s -w' -o $(GUEST) ./cmd/axo-guest
	go build -trimpath -ldflags '-s -w' -o $(WORKER) ./cmd/axo-wasm
	go build -trimpath -ldflags '-s -w' -tags embed_worker -o bin/axo ./axo

wasmtime:
	@mkdir -p bin
	@worker=$$(./scripts/wasmtime.sh) && cp "$$worker" bin/axo-wasmtime && echo "bin/axo-wasmtime: axo finds it there"

deb: build
	./packaging/deb.sh bin bin/axo.deb
	@dpkg-deb --info bin/axo.deb | sed -n 's/^ *Version: /bin\/axo.deb: /p'

demo: build
	go run ./demo

setup:
	AXO_REQUIRE=$(AXO_REQUIRE) ./scripts/setup-test.sh

# One package at a time: tests of limits and deadlines want the cores.
test: AXO_REQUIRE = 1
test: setup
	@start=$$(date +%s); \
	AXO_REQUIRE=1 go test -vet=off -p 1 -timeout 14m ./... ./axo/... && \
	echo "tests took $$(( $$(date +%s) - start )) s"

# Debian's kernel for clouds, in QEMU.
test-cgroup2: setup
	go run ./test/cgroup2 -kernel "$$(./scripts/kernel-package.sh)"

# 10,000 containers in a loop leave nothing behind.
test-runs: setup
	AXO_REQUIRE=1 AXO_RUNS=10000 go test -count=1 -run 'TestManyRuns/builtin' -timeout 30m ./driver/oci

LOAD = 10m

load: setup
	AXO_REQUIRE=1 AXO_LOAD=$(LOAD) go test -vet=off -count=1 -timeout 60m -run 'TestLoad$$' -v ./axo

SECONDS = 60

fuzz-worker:
	./scripts/wasmtime.sh fuzz $(SECONDS)

# A processor of AMD's with virtualization, emulated.
test-kvm-nested: setup
	go run ./test/nested -kernel "$$(./scripts/kernel-package.sh)"

test-firecracker: setup
	./scripts/test-firecracker.sh "$(FIRECRACKER)"

GOLANGCI = build/golangci-lint-2.15.0

$(GOLANGCI):
	@mkdir -p build
	GOBIN=$(CURDIR)/build go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	@mv build/golangci-lint $@

check: $(GOLANGCI)
	$(GOLANGCI) run ./...
	cd axo && ../$(GOLANGCI) run ./...
	@./scripts/wasmtime.sh lint || test $$? = 3
	$(MAKE) --no-print-directory cross
	@test -z "$$(git status --porcelain)" || { echo "the tree is not clean:"; git status --porcelain; exit 1; }

# What other systems get: the programs build, without cgo.
cross:
	GOOS=darwin GOARCH=arm64 go build ./... ./axo/...
	GOOS=darwin GOARCH=amd64 go build ./... ./axo/...
	GOOS=windows GOARCH=amd64 go build ./... ./axo/...
	GOOS=linux GOARCH=arm64 go build ./... ./axo/...

bench:
	go test -vet=off -run '^$$' -bench . -benchtime 1s -timeout 30m ./bench

# Virtual machines: by KVM where it works, else emulated.
bench-microvm: build
	go run ./bench/microvm -axo bin/axo

clean:
	rm -rf bin build driver/wasm/embedded driver/oci/embedded
