# make build   bin/axo, with the WASM worker inside
# make demo    build everything and run the main job on real input
# make test    install what tests need, and run them
# make check   format, vet, layering, cross-builds, clean tree
# make bench   the numbers of docs/CLAIMS.md

export CGO_ENABLED = 0

# wazero's file interface has a method Seek that is not io.Seeker's.
VET = go vet -stdmethods=false
WORKER = driver/wasm/embedded/axo-wasm

.PHONY: build demo test check bench setup cross clean

build: bin/axo

.PHONY: bin/axo
bin/axo:
	@mkdir -p bin driver/wasm/embedded
	go build -trimpath -ldflags '-s -w' -o $(WORKER) ./cmd/axo-wasm
	go build -trimpath -ldflags '-s -w' -tags embed_worker -o bin/axo ./cmd/axo

demo: build
	go run ./demo

setup:
	./scripts/setup-test.sh

# One package at a time: tests of limits and deadlines want the cores.
test: setup
	@start=$$(date +%s); \
	AXO_REQUIRE=1 go test -vet=off -p 1 -timeout 14m ./... && \
	echo "tests took $$(( $$(date +%s) - start )) s"

check:
	@test -z "$$(gofmt -l .)" || { echo "not formatted:"; gofmt -l .; exit 1; }
	$(VET) ./...
	$(MAKE) --no-print-directory cross
	@test -z "$$(git status --porcelain)" || { echo "the tree is not clean:"; git status --porcelain; exit 1; }

# What other systems get: the programs build, without cgo.
cross:
	GOOS=darwin GOARCH=arm64 go build ./...
	GOOS=darwin GOARCH=amd64 go build ./...
	GOOS=windows GOARCH=amd64 go build ./...
	GOOS=linux GOARCH=arm64 go build ./...

bench:
	go test -vet=off -run '^$$' -bench . -benchtime 1s -timeout 30m ./bench

clean:
	rm -rf bin build driver/wasm/embedded
