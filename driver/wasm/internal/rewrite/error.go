package rewrite

import "fmt"

// Kind says what is wrong with a module.
type Kind int

// The kinds.
const (
	Empty       Kind = iota + 1
	NotWasm          // it does not begin as a module does
	Component        // a component, not a core module
	Truncated        // it ends too early
	Malformed        // it does not follow the binary format
	TooLarge         // a limit is exceeded
	Unsupported      // a proposal that the engine does not have
)

// Error says what is wrong, and where.
type Error struct {
	Kind   Kind
	Offset int // in the module, in bytes
	Msg    string
}

func (e *Error) Error() string {
	if e.Offset <= 0 {
		return e.Msg
	}
	return fmt.Sprintf("%s (at byte %d)", e.Msg, e.Offset)
}

func newError(kind Kind, offset int, format string, a ...any) *Error {
	return &Error{kind, offset, fmt.Sprintf(format, a...)}
}

const (
	magic   = "\x00asm"
	version = "\x01\x00\x00\x00"
	// componentVersion is version 13, layer 1 (component model, Binary.md).
	componentVersion = "\x0d\x00\x01\x00"
)

// Sniff judges a module by its first bytes and its size, so that what is no
// module is refused before it is read. It needs 8 bytes of prefix, or all.
func Sniff(prefix []byte, size int64) error {
	switch {
	case size == 0:
		return newError(Empty, 0, "file is empty")
	case len(prefix) < 4 || string(prefix[:4]) != magic:
		return newError(NotWasm, 0, "not a WebAssembly module: it begins with % x, want 00 61 73 6d", prefix[:min(4, len(prefix))])
	case len(prefix) < 8:
		return newError(Truncated, len(prefix), "module ends in its header")
	case string(prefix[4:8]) == componentVersion:
		return newError(Component, 0, "this is a WebAssembly component, not a core module")
	case string(prefix[4:8]) != version:
		return newError(Malformed, 0, "WebAssembly version % x is not known, want 01 00 00 00", prefix[4:8])
	}
	return nil
}
