// Package rewrite prepares a WebAssembly module before it is compiled: it
// bounds what compiling may cost, caps tables, merges data segments, takes the
// memory image out, and makes the module count fuel.
//
// # Fuel
//
// A global of type i64 holds what is left. Each function entry and each loop
// header subtracts the number of instructions that it dominates up to the next
// loop: all of the body outside inner loops, both arms of an if included. So
// what is charged is at least what is executed, is the same on every run, and
// costs one check for each call and each iteration. Bulk operations on memory
// and tables charge for their length in addition, one unit for bulkShift
// bytes or elements. When the global falls below zero it is set to
// FuelExhausted and the module traps: the host tells this trap from others by
// the global.
package rewrite

import (
	"errors"
	"math"
)

const (
	// FuelGlobal is the name under which the fuel is exported. A module that
	// has an export of this name is refused.
	FuelGlobal = "axo:fuel"
	// FuelExhausted is the value of the fuel after it ran out.
	FuelExhausted = math.MinInt64
)

// Options say what is done with a module.
type Options struct {
	Fuel  bool // count fuel
	Image bool // take the data out as a memory image, where that is possible
	// MaxTable caps each table's elements; 0: DefaultMaxTable.
	MaxTable uint32
	Limits   Limits // zero fields: those of DefaultLimits
}

// DefaultMaxTable is the cap of a table in elements, 8 bytes each in the
// engine. CPython's has 12,000.
const DefaultMaxTable = 1 << 20

// Limits bound what a module may hold, so that compiling it is bounded.
type Limits struct {
	Functions     int // defined functions
	FunctionBytes int // of one body
	Nesting       int // blocks in each other in one body
	Locals        int // of one function
	Types         int
	Imports       int
	Exports       int
	Globals       int
	Tables        int
	Segments      int // data and element segments, each
}

// DefaultLimits let through what compilers make: CPython has 9,000 functions,
// and its largest body 0.4 MB; a Go program has 37,000 data segments.
func DefaultLimits() Limits {
	return Limits{
		Functions: 200_000, FunctionBytes: 2 << 20, Nesting: 5_000, Locals: 50_000, Types: 100_000,
		Imports: 10_000, Exports: 100_000, Globals: 100_000, Tables: 16, Segments: 200_000,
	}
}

// ExternKind is the kind of an import or export (section 5.5.5).
type ExternKind byte

// The kinds.
const (
	KindFunc   ExternKind = 0
	KindTable  ExternKind = 1
	KindMemory ExternKind = 2
	KindGlobal ExternKind = 3
)

// Import is an import.
type Import struct {
	Module, Name string
	Kind         ExternKind
}

// Export is an export.
type Export struct {
	Name string
	Kind ExternKind
}

// Info is what a module holds.
type Info struct {
	Imports            []Import
	Exports            []Export
	HasMemory          bool
	MinPages, MaxPages uint32 // of 64 KiB
	HasMax             bool
	HasStart           bool // a start function
	Functions          int  // defined
	DataSegments       int
}

// Result is a rewritten module.
type Result struct {
	Module    []byte
	Image     []byte // bytes of memory from ImageBase on; nil: none was taken
	ImageBase uint32
	Info      Info // of the module as it was
}

// Rewrite checks the form of a module and rewrites it. It does not validate
// types: the engine does that with what comes out.
func Rewrite(wasm []byte, o Options) (res Result, err error) {
	if err := Sniff(wasm[:min(8, len(wasm))], int64(len(wasm))); err != nil {
		return Result{}, err
	}
	defer func() {
		if v := recover(); v != nil {
			e, ok := v.(*Error)
			if !ok {
				panic(v)
			}
			res, err = Result{}, e
		}
	}()
	if o.MaxTable == 0 {
		o.MaxTable = DefaultMaxTable
	}
	o.Limits = o.Limits.withDefaults()
	m := &module{options: o}
	m.parse(wasm)
	return m.write(), nil
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	set := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	set(&l.Functions, d.Functions)
	set(&l.FunctionBytes, d.FunctionBytes)
	set(&l.Nesting, d.Nesting)
	set(&l.Locals, d.Locals)
	set(&l.Types, d.Types)
	set(&l.Imports, d.Imports)
	set(&l.Exports, d.Exports)
	set(&l.Globals, d.Globals)
	set(&l.Tables, d.Tables)
	set(&l.Segments, d.Segments)
	return l
}

// IsKind reports whether err is an Error of one of the kinds.
func IsKind(err error, kinds ...Kind) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, k := range kinds {
		if e.Kind == k {
			return true
		}
	}
	return false
}
