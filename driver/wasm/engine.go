package wasm

import (
	"cmp"

	"github.com/axocoatl/isolation/driver/wasm/worker"
)

// Engine names what runs the modules. Each has a worker program of its own;
// all speak guest/wire, and this package is the host side of each.
type Engine string

// The engines.
const (
	// Wazero is built in: a Go program, cmd/axo-wasm.
	Wazero Engine = "wazero"
	// Wasmtime is a Rust program, native/wasmtime-worker. It computes 2 to 25
	// times faster, and runs components.
	Wasmtime Engine = "wasmtime"
)

// description is what the host side must know of an engine.
type description struct {
	name    Engine
	version string // as the worker says it in HELLO
	program string // the worker's file name
	make    string // the command that makes the worker
	layout  layout
	// format changes when the worker's settings or the layout do.
	format     int
	fuel       string // what counts fuel
	embedded   []byte
	reexec     bool // a program that calls ServeIfWorker can be the worker
	linuxOnly  bool
	components bool
}

// layout is the files of an artefact. They go to a worker in this order,
// before the mounts.
type layout struct {
	module string // a regular file
	native string // a directory with one directory with one file; "": none
	image  string // a regular file, where the artefact has one; "": none
}

var descriptions = map[Engine]description{
	Wazero: {
		name: Wazero, version: worker.Engine, program: "axo-wasm", make: "go build ./cmd/axo-wasm",
		layout: layout{worker.ModuleFile, worker.NativeDir, worker.ImageFile}, format: 1,
		fuel: "counted by the module, rewritten before it is compiled", embedded: embeddedWorker, reexec: true,
	},
	Wasmtime: {
		name: Wasmtime, version: wasmtimeVersion, program: "axo-wasmtime", make: "make wasmtime",
		layout: layout{module: "module.cwasm"}, format: 3,
		fuel: "counted by the engine", linuxOnly: true, components: true,
	},
}

// wasmtimeVersion is what the worker of this build says: native/wasmtime-worker
// is of one build with this package.
const wasmtimeVersion = "wasmtime 48.0.8"

// describe returns the description of e; the empty Engine is Wazero.
func (e Engine) describe() (description, bool) {
	d, ok := descriptions[cmp.Or(e, Wazero)]
	return d, ok
}
