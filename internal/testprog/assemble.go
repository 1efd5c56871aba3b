package testprog

import "encoding/binary"

// Value types and what else the modules here need of the binary format
// (WebAssembly Core Specification, chapter "Binary Format").
const (
	i32 = 0x7f
	i64 = 0x7e

	opUnreachable = 0x00
	opBlock       = 0x02
	opLoop        = 0x03
	opEnd         = 0x0b
	opBr          = 0x0c
	opBrIf        = 0x0d
	opCall        = 0x10
	opCallInd     = 0x11
	opDrop        = 0x1a
	opLocalGet    = 0x20
	opLoad        = 0x28 // i32.load
	opStore       = 0x36 // i32.store
	opMemoryGrow  = 0x40
	opConst       = 0x41 // i32.const
	opEqz         = 0x45
	opEq          = 0x46
	opLtS         = 0x48
	opAdd         = 0x6a
	opSub         = 0x6b
	opDivS        = 0x6d
	opRefNull     = 0xd0
	opMisc        = 0xfc
	miscFill      = 11
	miscTableGrow = 15
	void          = 0x40 // block type
	funcref       = 0x70
)

type signature struct{ params, results []byte }

type imported struct {
	module, name string
	sig          signature
}

type function struct {
	sig    signature
	export string
	body   []byte // without locals and without the last end
}

type segment struct {
	offset int32
	data   []byte
}

// module is put together by encode. Function indexes count imports first.
type module struct {
	imports []imported
	funcs   []function
	table   []byte // limits, or nil
	memory  []byte // limits, or nil
	start   int    // function index + 1
	data    []segment
}

func uleb(v uint64) []byte { return binary.AppendUvarint(nil, v) }

func sleb(v int64) []byte {
	var out []byte
	for {
		b := byte(v & 0x7f)
		v >>= 7
		if v == 0 && b&0x40 == 0 || v == -1 && b&0x40 != 0 {
			return append(out, b)
		}
		out = append(out, b|0x80)
	}
}

func vector(n int, body []byte) []byte { return append(uleb(uint64(n)), body...) }

func name(s string) []byte { return vector(len(s), []byte(s)) }

func limits(lo uint64, hi ...uint64) []byte {
	if len(hi) == 0 {
		return append([]byte{0}, uleb(lo)...)
	}
	return append(append([]byte{1}, uleb(lo)...), uleb(hi[0])...)
}

// code joins instructions: byte and op constants, and encoded operands.
func code(parts ...any) []byte {
	var out []byte
	for _, p := range parts {
		switch v := p.(type) {
		case int:
			out = append(out, byte(v))
		case []byte:
			out = append(out, v...)
		}
	}
	return out
}

// num is i32.const v.
func num(v int32) []byte { return append([]byte{opConst}, sleb(int64(v))...) }

func (m module) encode() []byte {
	out := []byte("\x00asm\x01\x00\x00\x00")
	section := func(id byte, n int, body []byte) {
		if n > 0 {
			b := vector(n, body)
			out = append(append(append(out, id), uleb(uint64(len(b)))...), b...)
		}
	}
	var types, imports, funcs, exports, bodies, data []byte
	nTypes, nExports := 0, 0
	index := map[string]int{}
	typeOf := func(s signature) []byte {
		key := string(s.params) + "\x00" + string(s.results)
		i, ok := index[key]
		if !ok {
			i = nTypes
			index[key] = i
			nTypes++
			types = append(types, 0x60)
			types = append(types, vector(len(s.params), s.params)...)
			types = append(types, vector(len(s.results), s.results)...)
		}
		return uleb(uint64(i))
	}
	for _, im := range m.imports {
		imports = append(imports, name(im.module)...)
		imports = append(imports, name(im.name)...)
		imports = append(append(imports, 0x00), typeOf(im.sig)...)
	}
	export := func(n string, kind byte, i int) {
		nExports++
		exports = append(append(append(exports, name(n)...), kind), uleb(uint64(i))...)
	}
	for i, f := range m.funcs {
		funcs = append(funcs, typeOf(f.sig)...)
		if f.export != "" {
			export(f.export, 0x00, len(m.imports)+i)
		}
		bodies = append(bodies, uleb(uint64(len(f.body)+2))...)
		bodies = append(append(append(bodies, 0), f.body...), opEnd) // 0: no locals
	}
	if m.memory != nil {
		export("memory", 0x02, 0)
	}
	for _, s := range m.data {
		data = append(append(append(data, 0), num(s.offset)...), opEnd)
		data = append(data, vector(len(s.data), s.data)...)
	}
	section(1, nTypes, types)
	section(2, len(m.imports), imports)
	section(3, len(m.funcs), funcs)
	if m.table != nil {
		section(4, 1, append([]byte{funcref}, m.table...))
	}
	if m.memory != nil {
		section(5, 1, m.memory)
	}
	section(7, nExports, exports)
	if m.start > 0 {
		b := uleb(uint64(m.start - 1))
		out = append(append(append(out, 8), uleb(uint64(len(b)))...), b...)
	}
	section(10, len(m.funcs), bodies)
	section(11, len(m.data), data)
	return out
}
