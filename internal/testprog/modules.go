package testprog

import (
	"bytes"
	"fmt"
	"slices"
)

const wasi = "wasi_snapshot_preview1"

var (
	sigNone  = signature{}
	sigExit  = signature{params: []byte{i32}}
	sigRW    = signature{[]byte{i32, i32, i32, i32}, []byte{i32}} // fd_read, fd_write, poll_oneoff
	fdWrite  = imported{wasi, "fd_write", sigRW}
	fdRead   = imported{wasi, "fd_read", sigRW}
	poll     = imported{wasi, "poll_oneoff", sigRW}
	procExit = imported{wasi, "proc_exit", sigExit}
)

func start(body []byte) function { return function{export: "_start", body: body} }

// Modules maps names to the assembled modules.
//
// Good ones, by what they do:
//
//	nothing     returns at once
//	tiny        prints "tiny\n"
//	exit7       ends with status 7
//	cat         copies stdin to stdout, 64 KiB at a time
//	flood       writes 64 KiB blocks to stdout for ever
//	loop        loops for ever
//	startloop   loops for ever in its start function, before _start
//	fib         recurses for ever without a loop and without depth
//	deep        recurses without end, until the stack is full
//	bulkfill    fills 64 MiB of memory in a loop for ever
//	bulkline    fills 128 MiB of memory 1,000 times, without a loop
//	memgrow     grows its memory by 1 MiB until refused, then exits with status 3
//	memtouch    the same, and writes to each new page
//	tablegrow   grows its table by 65,536 until refused, then exits with status 3
//	sleep60     sleeps 60 s in poll_oneoff
//	readstdin   waits for one byte of stdin, then returns
//	unreachable, divzero, outofbounds, indirect   trap, each in its own way
//	bigmemory   declares 2 GiB of memory, and returns
//
// Bad ones: empty, garbage, truncated, version (a version that does not exist),
// component, nostart, badimport (unknown function), badsig (a known function
// with a wrong type), invalid (a type error in a body).
//
// Compile bombs: bigfunction (one function of 4 MB), manyfunctions (300,000
// empty ones), nested (20,000 blocks in each other).
func Modules() []string {
	var names []string
	for n := range modules {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Module returns a module's bytes.
func Module(name string) ([]byte, error) {
	f, ok := modules[name]
	if !ok {
		return nil, fmt.Errorf("module %q: want one of %q", name, Modules())
	}
	return f(), nil
}

var modules = map[string]func() []byte{
	"nothing": func() []byte { return plain(nil) },
	"tiny":    tiny,
	"exit7": func() []byte {
		return module{
			imports: []imported{procExit},
			memory:  limits(1),
			funcs:   []function{start(code(num(7), opCall, 0))},
		}.encode()
	},
	"cat": func() []byte {
		// iovec for reading at 0 (64 KiB at 65536), for writing at 16, count at 32.
		return module{
			imports: []imported{fdRead, fdWrite},
			memory:  limits(2),
			funcs: []function{start(code(
				opBlock, void, opLoop, void,
				num(0), num(0), num(1), num(32), opCall, 0, opBrIf, 1, // read; leave on an errno
				num(20), num(32), load(), store(), // writing iovec's length = count
				num(32), load(), opEqz, opBrIf, 1, // leave at the end
				num(1), num(16), num(1), num(36), opCall, 1, opEqz, opBrIf, 0, // write; again unless an errno
				opEnd, opEnd))},
			data: []segment{{0, []byte{0, 0, 1, 0, 0, 0, 1, 0}}, {16, []byte{0, 0, 1, 0}}},
		}.encode()
	},
	"flood": func() []byte {
		return module{
			imports: []imported{fdWrite},
			memory:  limits(2),
			funcs: []function{start(code(
				opLoop, void, num(1), num(0), num(1), num(8), opCall, 0, opEqz, opBrIf, 0, opEnd))},
			data: []segment{{0, []byte{0, 0, 1, 0, 0, 0, 1, 0}}},
		}.encode()
	},
	"loop": func() []byte { return plain(code(opLoop, void, opBr, 0, opEnd)) },
	"startloop": func() []byte {
		return module{
			memory: limits(1),
			funcs:  []function{{body: code(opLoop, void, opBr, 0, opEnd)}, start(nil)},
			start:  1,
		}.encode()
	},
	"fib": func() []byte {
		return module{
			memory: limits(1),
			funcs: []function{
				start(code(num(60), opCall, 1, opDrop)),
				{
					sig: signature{[]byte{i32}, []byte{i32}},
					body: code(opLocalGet, 0, num(2), opLtS, 0x04, i32, num(1), 0x05, // if (result i32) ... else
						opLocalGet, 0, num(1), opSub, opCall, 1,
						opLocalGet, 0, num(2), opSub, opCall, 1, opAdd, opEnd),
				},
			},
		}.encode()
	},
	"deep": func() []byte {
		return module{
			memory: limits(1),
			funcs: []function{
				start(code(num(0), opCall, 1, opDrop)),
				{
					sig:  signature{[]byte{i32}, []byte{i32}},
					body: code(opLocalGet, 0, num(1), opAdd, opCall, 1, num(1), opAdd),
				},
			},
		}.encode()
	},
	"bulkfill": func() []byte {
		return module{
			memory: limits(1024),
			funcs:  []function{start(code(opLoop, void, fill(64<<20), opBr, 0, opEnd))},
		}.encode()
	},
	"bulkline": func() []byte {
		return module{memory: limits(2048), funcs: []function{start(bytes.Repeat(fill(128<<20), 1000))}}.encode()
	},
	"memgrow": func() []byte { return grow(code(num(16), opMemoryGrow, 0)) },
	"memtouch": func() []byte {
		// $page: store to the first byte of the page that memory.grow returned.
		return module{
			imports: []imported{procExit},
			memory:  limits(1),
			funcs: []function{
				start(code(opLoop, void, num(1), opMemoryGrow, 0, opCall, 2, opBrIf, 0, opEnd, num(3), opCall, 0)),
				{
					sig: signature{[]byte{i32}, []byte{i32}},
					body: code(opLocalGet, 0, num(-1), opEq, 0x04, i32, num(0), 0x05,
						opLocalGet, 0, num(16), 0x74 /* shl */, num(1), store(), num(1), opEnd),
				},
			},
		}.encode()
	},
	"tablegrow": func() []byte {
		return grow(code(opRefNull, funcref, num(65536), opMisc, miscTableGrow, 0))
	},
	"sleep60": func() []byte {
		// One subscription at 0: userdata 8, tag clock (0) at 8, clock id
		// monotonic (1) at 16, timeout in ns at 24. Events at 64, count at 128.
		sub := make([]byte, 48)
		sub[16] = 1
		for i, ns := 0, uint64(60e9); i < 8; i++ {
			sub[24+i] = byte(ns >> (8 * i))
		}
		return module{
			imports: []imported{poll},
			memory:  limits(1),
			funcs:   []function{start(code(num(0), num(64), num(1), num(128), opCall, 0, opDrop))},
			data:    []segment{{0, sub}},
		}.encode()
	},
	"readstdin": func() []byte {
		return module{
			imports: []imported{fdRead},
			memory:  limits(1),
			funcs:   []function{start(code(num(0), num(0), num(1), num(8), opCall, 0, opDrop))},
			data:    []segment{{0, []byte{16, 0, 0, 0, 1, 0, 0, 0}}},
		}.encode()
	},
	"unreachable": func() []byte { return plain(code(opUnreachable)) },
	"divzero":     func() []byte { return plain(code(num(1), num(0), opDivS, opDrop)) },
	"outofbounds": func() []byte { return plain(code(num(-8), load(), opDrop)) },
	"indirect": func() []byte {
		return module{
			memory: limits(1), table: limits(1, 1),
			funcs: []function{start(code(num(0), opCallInd, 0, 0))},
		}.encode()
	},
	"bigmemory": func() []byte {
		return module{memory: limits(32768), funcs: []function{start(nil)}}.encode()
	},

	"empty":   func() []byte { return []byte{} },
	"garbage": func() []byte { return []byte("#!/bin/sh\necho this is no module\n") },
	"truncated": func() []byte {
		b := tiny()
		return b[:len(b)*2/3]
	},
	"version":   func() []byte { return []byte("\x00asm\x63\x00\x00\x00") },
	"component": func() []byte { return []byte("\x00asm\x0d\x00\x01\x00") },
	"nostart": func() []byte {
		return module{memory: limits(1), funcs: []function{{export: "run"}}}.encode()
	},
	"badimport": func() []byte {
		return module{
			imports: []imported{{"env", "launch_missiles", sigNone}},
			memory:  limits(1),
			funcs:   []function{start(code(opCall, 0))},
		}.encode()
	},
	"badsig": func() []byte {
		return module{
			imports: []imported{{wasi, "proc_exit", signature{params: []byte{i64}}}},
			memory:  limits(1),
			funcs:   []function{start(code(0x42, 7, opCall, 0))},
		}.encode()
	},
	"invalid": func() []byte { return plain(code(opAdd, opDrop)) },

	"bigfunction": func() []byte {
		return plain(bytes.Repeat(code(num(0), num(1), store()), 4<<20/7))
	},
	"manyfunctions": func() []byte {
		return module{memory: limits(1), funcs: append([]function{start(nil)}, make([]function, 300_000)...)}.encode()
	},
	"nested": func() []byte {
		const n = 20_000
		return plain(code(bytes.Repeat([]byte{opBlock, void}, n), bytes.Repeat([]byte{opEnd}, n)))
	},
}

func tiny() []byte {
	return module{
		imports: []imported{fdWrite},
		memory:  limits(1),
		funcs:   []function{start(code(num(1), num(0), num(1), num(8), opCall, 0, opDrop))},
		// An iovec at 0, its bytes at 16.
		data: []segment{{0, []byte{16, 0, 0, 0, 5, 0, 0, 0}}, {16, []byte("tiny\n")}},
	}.encode()
}

// plain is a module without imports whose _start is body.
func plain(body []byte) []byte {
	return module{memory: limits(1), funcs: []function{start(body)}}.encode()
}

// grow repeats what leaves -1 once it is refused, then exits with status 3.
func grow(body []byte) []byte {
	return module{
		imports: []imported{procExit},
		memory:  limits(1),
		table:   limits(0),
		funcs: []function{start(code(
			opLoop, void, body, num(-1), opEq, opEqz, opBrIf, 0, opEnd, num(3), opCall, 0))},
	}.encode()
}

func load() []byte  { return []byte{opLoad, 2, 0} }
func store() []byte { return []byte{opStore, 2, 0} }

// fill is memory.fill of n bytes from 0.
func fill(n int32) []byte {
	return code(num(0), num(1), num(n), opMisc, miscFill, 0)
}
