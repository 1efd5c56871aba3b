package none

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// pipes are what the driver puts between a native program and its caller.
type pipes struct {
	theirs [3]*os.File // the program's ends, closed once it has started
	stdin  *os.File    // our end; nil: the program reads the null device
	from   io.Reader
	ended  *atomic.Bool
}

func newPipes(p *process) (*pipes, error) {
	io := &pipes{from: p.stdio.Stdin, ended: new(atomic.Bool)}
	fail := func(err error) (*pipes, error) {
		io.abandon(p)
		return nil, fmt.Errorf("make pipes: %w", err)
	}
	var err error
	if io.from == nil {
		io.theirs[0], err = os.Open(os.DevNull)
	} else {
		io.stdin, io.theirs[0], err = newPipe(false)
	}
	if err != nil {
		return fail(err)
	}
	var out, errs *os.File
	if out, io.theirs[1], err = newPipe(true); err != nil {
		return fail(err)
	}
	p.out = newStream(newPipeSource(out), p.stdio.Stdout, &p.meter)
	if errs, io.theirs[2], err = newPipe(true); err != nil {
		return fail(err)
	}
	p.err = newStream(newPipeSource(errs), p.stdio.Stderr, &p.meter)
	return io, nil
}

// begin starts the pumps.
func (i *pipes) begin(p *process) {
	go p.out.pump()
	go p.err.pump()
	if i.stdin != nil {
		go feedPipe(i.stdin, i.from, i.ended)
	}
}

// feedPipe moves a caller's input into a pipe until either ends. It holds
// nothing of the process: the caller's reader may block for ever.
func feedPipe(to *os.File, from io.Reader, ended *atomic.Bool) {
	defer to.Close()
	buf := bufs.Get().(*[bufBytes]byte)
	defer bufs.Put(buf)
	for !ended.Load() {
		n, err := from.Read(buf[:])
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// closeStdin ends the feeding, also when it is blocked in the pipe.
func (i *pipes) closeStdin() {
	i.ended.Store(true)
	if i.stdin != nil {
		i.stdin.Close()
	}
}

func (i *pipes) closeTheirs() {
	for _, f := range i.theirs {
		if f != nil {
			f.Close()
		}
	}
}

// abandon closes all ends, for a program that did not start.
func (i *pipes) abandon(p *process) {
	i.closeTheirs()
	i.closeStdin()
	for _, s := range []*stream{p.out, p.err} {
		if s != nil {
			s.src.Close()
		}
	}
}
