package rewrite

import "slices"

// bulkShift turns the length of a bulk operation into fuel: one unit for 16
// bytes or elements.
const bulkShift = 4

// code writes the code section: checked, and with fuel counted if asked.
func (m *module) code() []byte {
	r := &reader{b: m.sections[secCode], base: m.offsets[secCode]}
	n := r.count()
	out := appendU32(make([]byte, 0, len(r.b)+len(r.b)/8), uint32(n))
	f := function{m: m}
	for i := range n {
		size := r.u32()
		if int64(size) > int64(m.options.Limits.FunctionBytes) {
			r.fail(TooLarge, "function %d has %d bytes, at most %d are taken", i, size, m.options.Limits.FunctionBytes)
		}
		body := f.rewrite(r.sub(size), m.params[m.functions[i]])
		out = append(appendU32(out, uint32(len(body))), body...)
	}
	if r.left() > 0 {
		r.fail(Malformed, "code section has %d bytes too many", r.left())
	}
	return out
}

// function rewrites one body after another; its buffers are used again.
type function struct {
	m      *module
	blocks []int    // what stands open: index of its region, or noRegion
	cost   []uint64 // instructions of each region
	at     []int    // where each region begins in the body
	bulk   []bulk
	out    []byte
}

// A region is what is charged at once: a body or the body of a loop, without
// the loops in it.
const noRegion = -1

// bulk is an operation whose length is charged.
type bulk struct{ at int } // where it stands in the body

// rewrite checks a body, and returns it with fuel counted if that is asked.
func (f *function) rewrite(r *reader, params uint32) []byte {
	locals, extra := f.locals(r, params)
	start := r.pos
	f.blocks = append(f.blocks[:0], 0)
	f.cost = append(f.cost[:0], 0)
	f.at = append(f.at[:0], start)
	f.bulk = f.bulk[:0]
	f.scan(r)
	if !f.m.options.Fuel {
		return r.b
	}
	return f.instrument(r.b, locals, extra, start)
}

// locals reads the declarations, and returns the number of all locals with the
// parameters, and where in the body the declarations begin after their count.
func (f *function) locals(r *reader, params uint32) (total uint32, groups int) {
	limit := uint64(f.m.options.Limits.Locals)
	sum := uint64(params)
	groups = r.count()
	for range groups {
		sum += uint64(r.u32())
		valType(r)
		if sum > limit {
			r.fail(TooLarge, "function has more than %d locals", limit)
		}
	}
	return uint32(sum), groups
}

// scan reads the instructions, finds the regions and their cost.
func (f *function) scan(r *reader) {
	region := 0
	for len(f.blocks) > 0 {
		pos := r.pos
		in := skipImmediates(r, r.byte())
		f.cost[region]++
		switch in.op {
		case opBlock, opIf, opLoop:
			if len(f.blocks) > f.m.options.Limits.Nesting {
				r.fail(TooLarge, "blocks are nested more than %d deep", f.m.options.Limits.Nesting)
			}
			open := noRegion
			if in.op == opLoop {
				open = region
				region = len(f.cost)
				f.cost = append(f.cost, 0)
				f.at = append(f.at, r.pos)
			}
			f.blocks = append(f.blocks, open)
		case opEnd:
			if outer := f.blocks[len(f.blocks)-1]; outer != noRegion {
				region = outer
			}
			f.blocks = f.blocks[:len(f.blocks)-1]
		case opGlobalGet, opGlobalSet:
			// The engine would take the index of the fuel for valid.
			if uint64(in.index) >= uint64(f.m.globals) {
				r.fail(Malformed, "global %d, there are %d", in.index, f.m.globals)
			}
		case opMisc:
			switch in.misc {
			case miscMemoryInit, miscDataDrop:
				f.m.dataRefs = true
			}
			switch in.misc {
			case miscMemoryInit, miscMemoryCopy, miscMemoryFill, miscTableInit, miscTableCopy, miscTableGrow, miscTableFill:
				f.bulk = append(f.bulk, bulk{pos})
			}
		}
	}
	if r.left() > 0 {
		r.fail(Malformed, "function has %d bytes behind its end", r.left())
	}
}

// instrument writes the body with a charge at the start of each region and
// before each bulk operation.
func (f *function) instrument(body []byte, locals uint32, groups, start int) []byte {
	out := f.out[:0]
	if len(f.bulk) > 0 {
		// One more local, for the length of bulk operations.
		rest := &reader{b: body}
		rest.u32()
		out = appendU32(out, uint32(groups+1))
		out = append(out, body[rest.pos:start]...)
		out = append(out, 1, typeI32)
	} else {
		out = append(out, body[:start]...)
	}
	from, region, b := start, 0, 0
	for region < len(f.at) || b < len(f.bulk) {
		if b == len(f.bulk) || region < len(f.at) && f.at[region] <= f.bulk[b].at {
			out = append(out, body[from:f.at[region]]...)
			from = f.at[region]
			out = f.m.charge(out, func(out []byte) []byte {
				return appendS64(append(out, opI64Const), int64(f.cost[region]))
			})
			region++
			continue
		}
		out = append(out, body[from:f.bulk[b].at]...)
		from = f.bulk[b].at
		out = appendU32(append(out, opLocalTee), locals)
		// The length lies on the stack again below the charge.
		out = f.m.charge(out, func(out []byte) []byte {
			out = appendU32(append(out, opLocalGet), locals)
			return append(out, opI64ExtendU, opI64Const, bulkShift, opI64ShrU)
		})
		b++
	}
	out = append(out, body[from:]...)
	f.out = out
	return slices.Clone(out)
}

// charge appends the subtraction of an amount, which push puts on the stack,
// and the trap.
func (m *module) charge(out []byte, push func([]byte) []byte) []byte {
	fuel := uint32(m.globals)
	get := func() { out = appendU32(append(out, opGlobalGet), fuel) }
	set := func() { out = appendU32(append(out, opGlobalSet), fuel) }
	get()
	out = push(out)
	out = append(out, opI64Sub)
	set()
	get()
	out = append(out, opI64Const, 0, opI64LtS, opIf, typeEmpty, opI64Const)
	out = appendS64(out, FuelExhausted)
	set()
	return append(out, opUnreachable, opEnd)
}
