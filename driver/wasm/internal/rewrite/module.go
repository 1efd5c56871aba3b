package rewrite

// The section ids (section 5.5.2).
const (
	secCustom = iota
	secType
	secImport
	secFunction
	secTable
	secMemory
	secGlobal
	secExport
	secStart
	secElement
	secCode
	secData
	secDataCount
	secTag
)

// order is the place of each section id in a module (section 5.5.16): the data
// count stands before the code.
var order = [...]int{
	secType: 1, secImport: 2, secFunction: 3, secTable: 4, secMemory: 5, secTag: 6, secGlobal: 7, secExport: 8, secStart: 9,
	secElement: 10, secDataCount: 11, secCode: 12, secData: 13,
}

// module is a module that is being rewritten. Sections that are not changed
// are kept as they are.
type module struct {
	options  Options
	info     Info
	sections [secTag + 1][]byte // contents, nil: not there
	offsets  [secTag + 1]int

	params        []uint32 // number of parameters of each type
	functions     []uint32 // type of each defined function
	globals       int      // imported and defined
	tables        int
	memories      int
	importsMemory bool
	data          []segment
	dataRefs      bool // memory.init or data.drop name segments by number
}

func (m *module) parse(wasm []byte) {
	r := &reader{b: wasm, pos: 8}
	last := 0
	for r.left() > 0 {
		id := int(r.byte())
		s := r.sub(r.u32())
		if id == secCustom {
			s.name() // must be there; the rest is dropped
			continue
		}
		if id == secTag {
			r.fail(Unsupported, "module uses the exception handling proposal")
		}
		if id >= len(order) {
			r.fail(Malformed, "section %d is not known", id)
		}
		if order[id] <= last {
			r.fail(Malformed, "section %d is out of order or there twice", id)
		}
		last = order[id]
		m.sections[id], m.offsets[id] = s.b, s.base
		if m.sections[id] == nil {
			m.sections[id] = []byte{}
		}
		m.section(id, s)
		if s.left() > 0 && id != secCode && id != secData {
			s.fail(Malformed, "section %d has %d bytes too many", id, s.left())
		}
	}
	if m.info.Functions > 0 && m.sections[secCode] == nil {
		r.fail(Malformed, "functions are declared, but there is no code")
	}
}

// vector calls each for every element of a vector of at most limit elements.
func (m *module) vector(r *reader, what string, limit int, each func()) int {
	n := r.count()
	if n > limit {
		r.fail(TooLarge, "module has %d %s, at most %d are taken", n, what, limit)
	}
	for range n {
		each()
	}
	return n
}

func (m *module) section(id int, r *reader) {
	l := m.options.Limits
	switch id {
	case secType:
		m.vector(r, "types", l.Types, func() { m.params = append(m.params, m.funcType(r)) })
	case secImport:
		m.vector(r, "imports", l.Imports, func() { m.importEntry(r) })
	case secFunction:
		m.info.Functions = m.vector(r, "functions", l.Functions, func() {
			t := r.u32()
			if int(t) >= len(m.params) {
				r.fail(Malformed, "function of type %d, there are %d", t, len(m.params))
			}
			m.functions = append(m.functions, t)
		})
	case secTable:
		m.vector(r, "tables", l.Tables, func() { m.tables++; refType(r); m.limits(r) })
	case secMemory:
		m.vector(r, "memories", 1, func() { m.memory(r) })
	case secGlobal:
		m.vector(r, "globals", l.Globals, func() { m.globals++; valType(r); r.byte(); skipExpr(r) })
	case secExport:
		m.vector(r, "exports", l.Exports, func() {
			e := Export{Name: r.name(), Kind: ExternKind(r.byte())}
			index := r.u32()
			if e.Kind == KindGlobal && uint64(index) >= uint64(m.globals) {
				r.fail(Malformed, "export of global %d, there are %d", index, m.globals)
			}
			if e.Name == FuelGlobal {
				r.fail(Unsupported, "module exports %q, a name that is reserved", FuelGlobal)
			}
			m.info.Exports = append(m.info.Exports, e)
		})
	case secStart:
		r.u32()
		m.info.HasStart = true
	case secElement:
		m.vector(r, "element segments", l.Segments, func() { skipElement(r) })
	case secDataCount:
		r.u32()
	case secCode:
		// Each body is parsed when it is written.
		if n := r.count(); n != m.info.Functions {
			r.fail(Malformed, "%d bodies for %d functions", n, m.info.Functions)
		}
	case secData:
		m.info.DataSegments = m.vector(r, "data segments", l.Segments, func() { m.data = append(m.data, m.segment(r)) })
	}
}

func (m *module) funcType(r *reader) uint32 {
	if c := r.byte(); c != 0x60 {
		r.fail(Unsupported, "type form 0x%x: only function types are supported", c)
	}
	n := r.count()
	for range n {
		valType(r)
	}
	for range r.count() {
		valType(r)
	}
	return uint32(n)
}

func valType(r *reader) {
	switch c := r.byte(); c {
	case 0x7f, 0x7e, 0x7d, 0x7c, 0x7b, 0x70, 0x6f:
	default:
		r.fail(Unsupported, "value type 0x%x is not supported", c)
	}
}

func refType(r *reader) {
	if c := r.byte(); c != 0x70 && c != 0x6f {
		r.fail(Unsupported, "reference type 0x%x is not supported", c)
	}
}

// limits reads the limits of a table or a memory (section 5.3.8).
func (m *module) limits(r *reader) (lo, hi uint32, hasMax bool) {
	switch c := r.byte(); c {
	case 0:
		return r.u32(), 0, false
	case 1:
		lo = r.u32()
		return lo, r.u32(), true
	case 2, 3:
		r.fail(Unsupported, "module uses shared memory (the threads proposal)")
	case 4, 5, 6, 7:
		r.fail(Unsupported, "module uses 64-bit memory")
	default:
		r.fail(Malformed, "limits of form 0x%x", c)
	}
	return
}

func (m *module) memory(r *reader) {
	m.memories++
	i := &m.info
	i.HasMemory = true
	i.MinPages, i.MaxPages, i.HasMax = m.limits(r)
	if i.MinPages > 1<<16 || i.HasMax && (i.MaxPages > 1<<16 || i.MaxPages < i.MinPages) {
		r.fail(Malformed, "memory of %d to %d pages", i.MinPages, i.MaxPages)
	}
}

func (m *module) importEntry(r *reader) {
	im := Import{Module: r.name(), Name: r.name(), Kind: ExternKind(r.byte())}
	switch im.Kind {
	case KindFunc:
		r.u32()
	case KindTable:
		m.tables++
		refType(r)
		m.limits(r)
	case KindMemory:
		m.importsMemory = true
		m.memory(r)
	case KindGlobal:
		m.globals++
		valType(r)
		r.byte()
	default:
		r.fail(Unsupported, "import of kind %d is not supported", im.Kind)
	}
	m.info.Imports = append(m.info.Imports, im)
}

func skipElement(r *reader) {
	form := r.u32()
	if form > 7 {
		r.fail(Malformed, "element segment of form %d", form)
	}
	passive := form&1 != 0
	if !passive {
		if form&2 != 0 {
			r.u32()
		}
		skipExpr(r)
	}
	if form&3 != 0 {
		if form&4 != 0 {
			refType(r)
		} else {
			r.byte()
		}
	}
	for range r.count() {
		if form&4 != 0 {
			skipExpr(r)
		} else {
			r.u32()
		}
	}
}

// skipExpr skips a constant expression.
func skipExpr(r *reader) {
	for {
		op := r.byte()
		if op == opEnd {
			return
		}
		skipImmediates(r, op)
	}
}
