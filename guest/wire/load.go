package wire

import "fmt"

// LoadMessage gives a WASM worker its artefact. Where descriptors can be
// passed, the frame carries: the module, the directory of its native code, the
// memory image if HasImage, then one directory for each mount. Elsewhere the
// path fields name them.
type LoadMessage struct {
	Fuel       bool   // the module counts fuel
	HasImage   bool   // a memory image is mapped at ImageBase
	ImageBase  uint64 // bytes
	Memory     uint64 // bytes that an instance may have unless EXEC says less or more
	ByPath     bool
	ModulePath string
	NativePath string
	ImagePath  string
	Mounts     []LoadMount
	Jail       bool // restrict the process before the module is read
	HasStart   bool // the module has a start function: no instance is made ahead
}

// LoadMount is one preopened directory.
type LoadMount struct {
	Destination string // absolute path that the module sees
	Path        string // on the host, if ByPath
	ReadOnly    bool
}

// Append appends the body.
func (m *LoadMessage) Append(b []byte) []byte {
	b = appendUint(b, 1, bit(m.Fuel))
	b = appendUint(b, 2, bit(m.HasImage))
	b = appendUint(b, 3, m.ImageBase)
	b = appendUint(b, 4, m.Memory)
	b = appendUint(b, 5, bit(m.ByPath))
	b = appendText(b, 6, m.ModulePath)
	b = appendText(b, 7, m.NativePath)
	b = appendText(b, 8, m.ImagePath)
	for _, mt := range m.Mounts {
		var sub []byte
		sub = appendText(sub, 1, mt.Destination)
		sub = appendText(sub, 2, mt.Path)
		sub = appendUint(sub, 3, bit(mt.ReadOnly))
		b = appendBytes(b, 9, sub)
	}
	b = appendUint(b, 10, bit(m.Jail))
	return appendUint(b, 11, bit(m.HasStart))
}

// Parse reads the body.
func (m *LoadMessage) Parse(body []byte) error {
	*m = LoadMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.flag(&m.Fuel)
		case 2:
			return v.flag(&m.HasImage)
		case 3:
			return v.uint(&m.ImageBase)
		case 4:
			return v.uint(&m.Memory)
		case 5:
			return v.flag(&m.ByPath)
		case 6:
			return v.text(&m.ModulePath)
		case 7:
			return v.text(&m.NativePath)
		case 8:
			return v.text(&m.ImagePath)
		case 9:
			var mt LoadMount
			if len(m.Mounts) >= maxMounts {
				return fmt.Errorf("%w: more than %d mounts", ErrProtocol, maxMounts)
			}
			err := mt.parse(v)
			m.Mounts = append(m.Mounts, mt)
			return err
		case 10:
			return v.flag(&m.Jail)
		case 11:
			return v.flag(&m.HasStart)
		}
		return unknown("LOAD", tag)
	})
}

// maxMounts keeps a LOAD's descriptors below what one message can carry
// (SCM_MAX_FD, unix(7): 253).
const maxMounts = 200

func (mt *LoadMount) parse(body []byte) error {
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.text(&mt.Destination)
		case 2:
			return v.text(&mt.Path)
		case 3:
			return v.flag(&mt.ReadOnly)
		}
		return unknown("LOAD mount", tag)
	})
}

// LoadedMessage answers LOAD and COMPILE's jail: which walls stand.
type LoadedMessage struct {
	Walls   []string // "name: detail" of those that stand
	Missing []string // "name: reason" of those that do not
}

// Append appends the body.
func (m *LoadedMessage) Append(b []byte) []byte {
	for _, v := range m.Walls {
		b = appendBytes(b, 1, v)
	}
	for _, v := range m.Missing {
		b = appendBytes(b, 2, v)
	}
	return b
}

// Parse reads the body.
func (m *LoadedMessage) Parse(body []byte) error {
	*m = LoadedMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.list(&m.Walls, maxMounts)
		case 2:
			return v.list(&m.Missing, maxMounts)
		}
		return unknown("LOADED", tag)
	})
}

// CompileMessage asks a compile worker for an artefact. Descriptors: the
// module, and the private directory that takes the results.
type CompileMessage struct {
	Fuel       bool
	Image      bool // take the memory image out of the module
	ByPath     bool
	ModulePath string
	OutPath    string
	Jail       bool
}

// Append appends the body.
func (m *CompileMessage) Append(b []byte) []byte {
	b = appendUint(b, 1, bit(m.Fuel))
	b = appendUint(b, 2, bit(m.Image))
	b = appendUint(b, 3, bit(m.ByPath))
	b = appendText(b, 4, m.ModulePath)
	b = appendText(b, 5, m.OutPath)
	return appendUint(b, 6, bit(m.Jail))
}

// Parse reads the body.
func (m *CompileMessage) Parse(body []byte) error {
	*m = CompileMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.flag(&m.Fuel)
		case 2:
			return v.flag(&m.Image)
		case 3:
			return v.flag(&m.ByPath)
		case 4:
			return v.text(&m.ModulePath)
		case 5:
			return v.text(&m.OutPath)
		case 6:
			return v.flag(&m.Jail)
		}
		return unknown("COMPILE", tag)
	})
}

// CompiledMessage says what a compile worker wrote.
type CompiledMessage struct {
	HasImage  bool
	ImageBase uint64 // bytes
	MinMemory uint64 // bytes that the module declares as its least
	MaxMemory uint64 // bytes that it declares as its most; 0: none declared
	HasStart  bool   // it has a start function
}

// Append appends the body.
func (m *CompiledMessage) Append(b []byte) []byte {
	b = appendUint(b, 1, bit(m.HasImage))
	b = appendUint(b, 2, m.ImageBase)
	b = appendUint(b, 3, m.MinMemory)
	b = appendUint(b, 4, m.MaxMemory)
	return appendUint(b, 5, bit(m.HasStart))
}

// Parse reads the body.
func (m *CompiledMessage) Parse(body []byte) error {
	*m = CompiledMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.flag(&m.HasImage)
		case 2:
			return v.uint(&m.ImageBase)
		case 3:
			return v.uint(&m.MinMemory)
		case 4:
			return v.uint(&m.MaxMemory)
		case 5:
			return v.flag(&m.HasStart)
		}
		return unknown("COMPILED", tag)
	})
}

// FailMessage says why a request could not be done.
type FailMessage struct {
	Class   string // an engine error class, "invalid argument"; empty: internal
	Message string
}

// Append appends the body.
func (m *FailMessage) Append(b []byte) []byte {
	return appendText(appendText(b, 1, m.Class), 2, m.Message)
}

// Parse reads the body.
func (m *FailMessage) Parse(body []byte) error {
	*m = FailMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.text(&m.Class)
		case 2:
			return v.text(&m.Message)
		}
		return unknown("FAIL", tag)
	})
}

// WindowMessage grants credit to the sender of one direction of a stream.
type WindowMessage struct {
	Of    Type // Stdin, Stdout or Stderr
	Bytes uint64
}

// Append appends the body.
func (m *WindowMessage) Append(b []byte) []byte {
	return appendUint(appendUint(b, 1, uint64(m.Of)), 2, m.Bytes)
}

// Parse reads the body.
func (m *WindowMessage) Parse(body []byte) error {
	*m = WindowMessage{}
	var of uint64
	err := fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.uint(&of)
		case 2:
			return v.uint(&m.Bytes)
		}
		return unknown("WINDOW", tag)
	})
	if err == nil && (of != uint64(Stdin) && of != uint64(Stdout) && of != uint64(Stderr) || m.Bytes == 0 || m.Bytes > maxGrant) {
		err = fmt.Errorf("%w: WINDOW of %d bytes for type %d", ErrProtocol, m.Bytes, of)
	}
	m.Of = Type(of)
	return err
}

// maxGrant bounds one grant, so that sums of credit cannot overflow.
const maxGrant = 1 << 30
