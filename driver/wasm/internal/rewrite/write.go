package rewrite

// write returns the rewritten module.
func (m *module) write() Result {
	res := Result{Info: m.info}
	if m.sections[secCode] != nil {
		m.sections[secCode] = m.code()
	}
	if m.sections[secData] != nil {
		m.writeData(&res)
	}
	if m.sections[secTable] != nil {
		m.sections[secTable] = m.tableSection()
	}
	if m.options.Fuel {
		m.addFuel()
	}
	size := 8
	for _, s := range m.sections {
		size += len(s) + 6
	}
	out := append(make([]byte, 0, size), magic+version...)
	for place := 1; place <= order[secData]; place++ {
		for id, p := range order {
			if p == place && m.sections[id] != nil {
				out = appendU32(append(out, byte(id)), uint32(len(m.sections[id])))
				out = append(out, m.sections[id]...)
			}
		}
	}
	res.Module = out
	return res
}

func (m *module) writeData(res *Result) {
	if !m.simple() {
		return
	}
	image, base := m.image()
	var segments []segment
	if image != nil {
		if m.options.Image {
			res.Image, res.ImageBase = image, base
		} else {
			segments = merged(image, base)
		}
	} else {
		for _, s := range m.data {
			if len(s.bytes) > 0 {
				return // too far apart to be one image: kept as they are
			}
		}
	}
	m.sections[secData] = dataSection(segments)
	if m.sections[secDataCount] != nil {
		m.sections[secDataCount] = appendU32(nil, uint32(len(segments)))
	}
}

// tableSection caps the maximum of each table.
func (m *module) tableSection() []byte {
	r := &reader{b: m.sections[secTable], base: m.offsets[secTable]}
	n := r.count()
	out := appendU32(nil, uint32(n))
	for range n {
		out = append(out, r.byte())
		lo, hi, has := m.limits(r)
		if lo > m.options.MaxTable {
			r.fail(TooLarge, "table has at least %d elements, at most %d are taken", lo, m.options.MaxTable)
		}
		if !has || hi > m.options.MaxTable {
			hi = m.options.MaxTable
		}
		out = appendU32(appendU32(append(out, 1), lo), max(lo, hi))
	}
	return out
}

// addFuel appends the global, behind all others so that no index changes, and
// its export.
func (m *module) addFuel() {
	global := append([]byte{typeI64, 1, opI64Const, 0}, opEnd)
	m.sections[secGlobal] = appended(m.sections[secGlobal], global)
	export := append(appendU32(nil, uint32(len(FuelGlobal))), FuelGlobal...)
	export = appendU32(append(export, byte(KindGlobal)), uint32(m.globals))
	m.sections[secExport] = appended(m.sections[secExport], export)
}

// appended returns a vector section with one element more.
func appended(section, element []byte) []byte {
	n, rest := uint32(0), []byte(nil)
	if section != nil {
		r := &reader{b: section}
		n = r.u32()
		rest = section[r.pos:]
	}
	out := append(appendU32(nil, n+1), rest...)
	return append(out, element...)
}
