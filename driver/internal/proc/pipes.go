package proc

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// Pipes are what the driver puts between a native program and its caller.
type Pipes struct {
	Theirs [3]*os.File // the program's ends, closed once it has started
	stdin  *os.File    // our end; nil: the program reads the null device
	from   io.Reader
	ended  *atomic.Bool
}

// NewPipes makes the pipes of p and sets its streams.
func NewPipes(p *Process) (*Pipes, error) {
	io := &Pipes{from: p.Stdio.Stdin, ended: new(atomic.Bool)}
	fail := func(err error) (*Pipes, error) {
		io.Abandon(p)
		return nil, fmt.Errorf("make pipes: %w", err)
	}
	var err error
	if io.from == nil {
		io.Theirs[0], err = os.Open(os.DevNull)
	} else {
		io.stdin, io.Theirs[0], err = newPipe(false)
	}
	if err != nil {
		return fail(err)
	}
	var out, errs *os.File
	if out, io.Theirs[1], err = newPipe(true); err != nil {
		return fail(err)
	}
	p.Out = p.NewStream(newPipeSource(out), p.Stdio.Stdout)
	if errs, io.Theirs[2], err = newPipe(true); err != nil {
		return fail(err)
	}
	p.Err = p.NewStream(newPipeSource(errs), p.Stdio.Stderr)
	return io, nil
}

// Begin starts the pumps.
func (i *Pipes) Begin(p *Process) {
	go p.Out.Pump()
	go p.Err.Pump()
	if i.stdin != nil {
		go feedPipe(i.stdin, i.from, i.ended)
	}
}

// feedPipe moves a caller's input into a pipe until either ends. It holds
// nothing of the process: the caller's reader may block for ever.
func feedPipe(to *os.File, from io.Reader, ended *atomic.Bool) {
	defer to.Close()
	buf := Bufs.Get().(*[BufBytes]byte)
	defer Bufs.Put(buf)
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

// CloseStdin ends the feeding, also when it is blocked in the pipe.
func (i *Pipes) CloseStdin() {
	i.ended.Store(true)
	if i.stdin != nil {
		i.stdin.Close()
	}
}

// CloseTheirs closes the program's ends here, once it has its own.
func (i *Pipes) CloseTheirs() {
	for _, f := range i.Theirs {
		if f != nil {
			f.Close()
		}
	}
}

// Abandon closes all ends, for a program that did not start.
func (i *Pipes) Abandon(p *Process) {
	i.CloseTheirs()
	i.CloseStdin()
	for _, s := range []*Stream{p.Out, p.Err} {
		if s != nil {
			s.src.Close()
		}
	}
}
