package guestconn

import (
	"errors"
	"testing"

	"github.com/axocoatl/isolation/guest/wire"
)

// A caller may close a file just when the guest has answered: that is nobody's fault.
// A guest that answers twice is another matter.
func TestAnswerAfterClose(t *testing.T) {
	e := wire.FileEntry{Name: "x"}
	f := wire.Frame{Type: wire.File, Body: e.Append(nil)}
	o := &fileOp{answer: make(chan struct{}), over: true} // as stop leaves it
	if err := o.frame(f); err != nil {
		t.Errorf("an answer that came when the file was closed: %v", err)
	}
	if err := o.frame(f); !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("a second answer: %v", err)
	}
}
