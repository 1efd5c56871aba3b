// Package worker is the program that WebAssembly modules run in: one process,
// one module, one run at a time, behind a jail, spoken to over guest/wire. It
// is the only package that runs wazero. The host side is driver/wasm.
package worker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/axocoatl/isolation/guest/wire"
)

// The roles of a worker, its first argument.
const (
	RoleRun     = "run"
	RoleCompile = "compile"
)

// Engine is the name and version of the engine, for HELLO and for the key of
// the artefact cache.
const Engine = "wazero 1.12.0"

// Main runs a worker on the connection that it inherited and returns the exit
// status. It returns when the host closes the connection.
func Main(args []string) int {
	if len(args) != 1 || args[0] != RoleRun && args[0] != RoleCompile {
		fmt.Fprintln(os.Stderr, "axo-wasm: this program is started by the engine; its argument is run or compile")
		return 2
	}
	t, err := newTransport()
	if err != nil {
		fmt.Fprintln(os.Stderr, "axo-wasm:", err)
		return 2
	}
	if err := serve(newConn(t), args[0]); err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, "axo-wasm:", err)
		return 1
	}
	return 0
}

func serve(c *conn, role string) error {
	hello := wire.HelloMessage{Version: wire.Version, Role: "wasm-" + role, Engine: Engine}
	if err := c.send(wire.Hello, 0, hello.Append(nil)); err != nil {
		return err
	}
	if role == RoleCompile {
		return serveCompile(c)
	}
	// One thread computes, the module's. More would only wake each other; and
	// a run that spins would still be ended from outside.
	runtime.GOMAXPROCS(1)
	// Loading allocates once and keeps it; collecting meanwhile only delays the
	// first run. See runner.settleHeap.
	debug.SetGCPercent(-1)
	return serveRun(c)
}
