package rewrite

// Opcodes that matter here (section 5.4).
const (
	opUnreachable = 0x00
	opBlock       = 0x02
	opLoop        = 0x03
	opIf          = 0x04
	opElse        = 0x05
	opEnd         = 0x0b
	opLocalGet    = 0x20
	opLocalTee    = 0x22
	opGlobalGet   = 0x23
	opGlobalSet   = 0x24
	opI32Const    = 0x41
	opI64Const    = 0x42
	opI64LtS      = 0x53
	opI64Sub      = 0x7d
	opI64ShrU     = 0x88
	opI64ExtendU  = 0xad
	opMisc        = 0xfc
	opVector      = 0xfd

	typeEmpty = 0x40
	typeI32   = 0x7f
	typeI64   = 0x7e
)

// The second opcodes behind opMisc.
const (
	miscMemoryInit = 8
	miscDataDrop   = 9
	miscMemoryCopy = 10
	miscMemoryFill = 11
	miscTableInit  = 12
	miscElemDrop   = 13
	miscTableCopy  = 14
	miscTableGrow  = 15
	miscTableSize  = 16
	miscTableFill  = 17
)

// instruction is what the rewriter needs to know of one.
type instruction struct {
	op    byte
	misc  uint32 // second opcode of opMisc
	index uint32 // of opGlobalGet and opGlobalSet
}

// skipImmediates skips what follows op, and refuses what the engine does not
// have.
func skipImmediates(r *reader, op byte) instruction {
	in := instruction{op: op}
	switch {
	case op == 0x00, op == 0x01, op == opElse, op == opEnd, op == 0x0f, op == 0x1a, op == 0x1b:
	case op == opBlock, op == opLoop, op == opIf:
		r.skipLEB(5) // block type, s33
	case op == 0x0c, op == 0x0d, op == 0x10, op == 0x12: // br, br_if, call, return_call
		r.skipLEB(5)
	case op == 0x0e: // br_table
		for range r.count() {
			r.skipLEB(5)
		}
		r.skipLEB(5)
	case op == 0x11, op == 0x13: // call_indirect, return_call_indirect
		r.skipLEB(5)
		r.skipLEB(5)
	case op == 0x1c: // select with types
		for range r.count() {
			valType(r)
		}
	case op == opGlobalGet, op == opGlobalSet:
		in.index = r.u32()
	case op >= 0x20 && op <= 0x26: // locals, tables
		r.skipLEB(5)
	case op >= 0x28 && op <= 0x3e: // loads and stores
		memArg(r)
	case op == 0x3f, op == 0x40: // memory.size, memory.grow
		memIndex(r)
	case op == opI32Const:
		r.skipLEB(5)
	case op == opI64Const:
		r.skipLEB(10)
	case op == 0x43:
		r.bytes(4)
	case op == 0x44:
		r.bytes(8)
	case op >= 0x45 && op <= 0xc4: // numeric
	case op == 0xd0: // ref.null
		refType(r)
	case op == 0xd1: // ref.is_null
	case op == 0xd2: // ref.func
		r.skipLEB(5)
	case op == opMisc:
		in.misc = miscImmediates(r)
	case op == opVector:
		vectorImmediates(r)
	case op == 0xfe:
		r.fail(Unsupported, "module uses atomic instructions (the threads proposal)")
	case op == 0xfb:
		r.fail(Unsupported, "module uses the garbage collection proposal")
	case op >= 0x06 && op <= 0x0a, op == 0x18, op == 0x19, op == 0x1f:
		r.fail(Unsupported, "module uses exception handling instructions")
	default:
		r.fail(Unsupported, "instruction 0x%02x is not supported", op)
	}
	return in
}

func memArg(r *reader) {
	if r.u32() >= 64 {
		r.fail(Unsupported, "module uses more than one memory")
	}
	r.skipLEB(5)
}

func memIndex(r *reader) {
	if r.byte() != 0 {
		r.fail(Unsupported, "module uses more than one memory")
	}
}

func miscImmediates(r *reader) uint32 {
	sub := r.u32()
	switch sub {
	case 0, 1, 2, 3, 4, 5, 6, 7: // saturating truncation
	case miscMemoryInit:
		r.skipLEB(5)
		memIndex(r)
	case miscDataDrop, miscElemDrop, miscTableGrow, miscTableSize, miscTableFill:
		r.skipLEB(5)
	case miscMemoryCopy:
		memIndex(r)
		memIndex(r)
	case miscMemoryFill:
		memIndex(r)
	case miscTableInit, miscTableCopy:
		r.skipLEB(5)
		r.skipLEB(5)
	default:
		r.fail(Unsupported, "instruction 0xfc %d is not supported", sub)
	}
	return sub
}

func vectorImmediates(r *reader) {
	switch sub := r.u32(); {
	case sub <= 11, sub == 92, sub == 93: // loads and stores
		memArg(r)
	case sub == 12, sub == 13: // v128.const, i8x16.shuffle
		r.bytes(16)
	case sub >= 21 && sub <= 34: // lane access
		r.byte()
	case sub >= 84 && sub <= 91: // load and store of a lane
		memArg(r)
		r.byte()
	case sub <= 255:
	default:
		r.fail(Unsupported, "vector instruction %d is not supported", sub)
	}
}
