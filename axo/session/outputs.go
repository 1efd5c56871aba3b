package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/axocoatl/isolation"
)

// Stream names an output.
type Stream int

// The streams.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// outputs are the streams of a program, on disk.
type outputs struct {
	stdout, stderr *log
	done           chan struct{} // closed when it is written down how the program ended
	first          *firstReaders
}

// firstReaders are readers from the beginning, from before the program was started,
// for the first who follows.
type firstReaders struct {
	mu sync.Mutex
	r  [2]*reader // guarded by mu
}

func newOutputs() outputs { return outputs{done: make(chan struct{}), first: new(firstReaders)} }

func (o *outputs) open(dir string, keep int64) (err error) {
	if o.stdout, err = openLog(dir, "stdout", keep); err == nil {
		o.stderr, err = openLog(dir, "stderr", keep)
	}
	return err
}

func (o *outputs) closeLogs() {
	for _, l := range []*log{o.stdout, o.stderr} {
		if l != nil {
			l.close()
		}
	}
}

// removeLogs is called before their files are removed.
func (o *outputs) removeLogs() {
	for _, l := range []*log{o.stdout, o.stderr} {
		if l != nil {
			l.remove()
		}
	}
}

// kept is how much output is on disk.
func (o *outputs) kept() (n int64) {
	for _, l := range []*log{o.stdout, o.stderr} {
		from, to := l.bounds()
		n += to - from
	}
	return n
}

func (o *outputs) live() bool {
	select {
	case <-o.done:
		return false
	default:
		return true
	}
}

// reserve has nothing dropped before the first who follows from the beginning on.
func (o *outputs) reserve() (err error) {
	o.first.mu.Lock()
	defer o.first.mu.Unlock()
	if o.first.r[0], err = o.stdout.read(0); err == nil {
		o.first.r[1], err = o.stderr.read(0)
	}
	return err
}

// reader returns the one that was there from the start, if it is wanted, or another.
func (o *outputs) reader(i int, l *log, at int64) (*reader, error) {
	o.first.mu.Lock()
	r := o.first.r[i]
	if at == 0 {
		o.first.r[i] = nil
	}
	o.first.mu.Unlock()
	if r != nil && at == 0 {
		return r, nil
	}
	return l.read(at)
}

// Unfollow is for who does not follow after all. It may be called after he did.
func (o *outputs) Unfollow() {
	o.first.mu.Lock()
	first := o.first.r
	o.first.r = [2]*reader{}
	o.first.mu.Unlock()
	for _, r := range first {
		if r != nil {
			r.close()
		}
	}
}

// Follow gives sink the output of both streams from offsets on, as it comes, and
// returns when there is no more and the program has ended. What sink is given is
// good until it returns. While it is slow the program is held back, in time.
func (o *outputs) Follow(ctx context.Context, from isolation.Offsets, sink func(Stream, []byte) error) error {
	out, err := o.reader(0, o.stdout, from.Stdout)
	if err != nil {
		return fmt.Errorf("stdout: %w", err)
	}
	defer out.close()
	errs, err := o.reader(1, o.stderr, from.Stderr)
	if err != nil {
		return fmt.Errorf("stderr: %w", err)
	}
	defer errs.close()
	p := make([]byte, 64<<10)
	for {
		n, more, err := out.now(p)
		if n > 0 {
			if err := sink(Stdout, p[:n]); err != nil {
				return err
			}
			// The other one is looked at as well: neither waits for the other.
		}
		n2, more2, err2 := errs.now(p)
		if n2 > 0 {
			if err := sink(Stderr, p[:n2]); err != nil {
				return err
			}
		}
		ended, ended2 := errors.Is(err, io.EOF), errors.Is(err2, io.EOF)
		switch {
		case err != nil && !ended:
			return fmt.Errorf("stdout: %w", err)
		case err2 != nil && !ended2:
			return fmt.Errorf("stderr: %w", err2)
		case ended && ended2:
			select {
			case <-o.done:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case n > 0 || n2 > 0:
			if err := context.Cause(ctx); err != nil {
				return err
			}
			continue
		}
		// A nil channel is never ready: the stream that has ended.
		select {
		case <-more:
		case <-more2:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Holds reports whether output is kept from these offsets on: FailedPrecondition
// if it is not any more, InvalidArgument if it is not there yet.
func (o *outputs) Holds(from isolation.Offsets) error {
	for _, s := range []struct {
		l  *log
		at int64
	}{{o.stdout, from.Stdout}, {o.stderr, from.Stderr}} {
		r, err := s.l.read(s.at)
		if err != nil {
			return fmt.Errorf("%s: %w", s.l.name, err)
		}
		r.close()
	}
	return nil
}
