package session

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
)

// input is what callers give a program to read. Each write waits until the driver
// has taken it, so that no more is held than one of them.
type input struct {
	parts chan []byte
	ended chan struct{}
	once  sync.Once
	rest  []byte // of the part that is being read; of the reader's goroutine

	mu   sync.Mutex
	busy bool  // somebody gives; guarded by mu
	to   int64 // how much was given; -1: unknown; guarded by mu
}

// newInput is one of which so much was given before; -1: nobody knows.
func newInput(to int64) *input {
	return &input{parts: make(chan []byte), ended: make(chan struct{}), to: to}
}

// claim makes the caller the one who gives.
func (i *input) claim() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.busy {
		return fmt.Errorf("somebody else gives the program input: %w", isolation.ErrFailedPrecondition)
	}
	i.busy = true
	return nil
}

func (i *input) release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.busy = false
}

func (i *input) state() api.Input {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := api.Input{Open: true, Busy: i.busy, To: i.to}
	select {
	case <-i.ended:
		s.Open = false
	default:
	}
	return s
}

// Read implements io.Reader, for one goroutine at a time.
func (i *input) Read(p []byte) (int, error) {
	if len(i.rest) == 0 {
		select {
		case i.rest = <-i.parts:
		case <-i.ended:
			return 0, io.EOF
		}
	}
	n := copy(p, i.rest)
	i.rest = i.rest[n:]
	return n, nil
}

// write hands p over; it is kept.
func (i *input) write(ctx context.Context, p []byte) error {
	select {
	case <-i.ended:
		return errInputEnded
	default:
	}
	select {
	case i.parts <- p:
		i.mu.Lock()
		if i.to >= 0 {
			i.to += int64(len(p))
		}
		i.mu.Unlock()
		return nil
	case <-i.ended:
		return errInputEnded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var errInputEnded = fmt.Errorf("the program's input has ended: %w", isolation.ErrFailedPrecondition)

func (i *input) close() { i.once.Do(func() { close(i.ended) }) }
