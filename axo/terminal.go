package main

import (
	"os"

	"golang.org/x/term"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// terminal connects the caller's terminal, if there is one, to the terminal that
// r asks for: its size now and as it changes, and every key, also those that
// would end axo. The returned function puts it back as it was.
func terminal(r *engine.Request) (restore func(), err error) {
	if !r.Process.Terminal {
		return func() {}, nil
	}
	out := int(os.Stdout.Fd())
	sizes := make(chan isolation.TerminalSize, 1)
	stopSizes := func() {}
	if term.IsTerminal(out) {
		r.Process.Size = terminalSize(out)
		stopSizes = watchSize(func() {
			select { // the newest counts
			case <-sizes:
			default:
			}
			sizes <- terminalSize(out)
		})
		r.Resize = sizes
	}
	in := int(os.Stdin.Fd())
	if r.Stdin == nil || !term.IsTerminal(in) {
		return stopSizes, nil
	}
	state, err := term.MakeRaw(in)
	if err != nil {
		stopSizes()
		return nil, err
	}
	return func() {
		stopSizes()
		_ = term.Restore(in, state)
	}, nil
}

func terminalSize(fd int) isolation.TerminalSize {
	cols, rows, err := term.GetSize(fd)
	if err != nil {
		return isolation.TerminalSize{}
	}
	return isolation.TerminalSize{Rows: uint16(rows), Cols: uint16(cols)}
}
