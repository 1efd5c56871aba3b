//go:build !linux

package worker

import (
	"io"
	"os"
	"time"
)

// pipes is standard input and output: where sockets cannot pass descriptors,
// LOAD and COMPILE name paths.
type pipes struct {
	in    chan []byte
	left  []byte
	err   error
	write io.Writer
}

func newTransport() (transport, error) {
	p := &pipes{in: make(chan []byte, 1), write: os.Stdout}
	// A reader of its own lets readable time out.
	go func() {
		defer close(p.in)
		for {
			b := make([]byte, 64<<10)
			n, err := os.Stdin.Read(b)
			if n > 0 {
				p.in <- b[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	return p, nil
}

func (p *pipes) Read(b []byte) (int, error) {
	if !p.readable(-1) {
		return 0, io.EOF
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}

func (p *pipes) Write(b []byte) (int, error) { return p.write.Write(b) }

func (p *pipes) linger(time.Duration) {}

func (p *pipes) descriptors() []int { return nil }

func (p *pipes) readable(timeout time.Duration) bool {
	if len(p.left) > 0 {
		return true
	}
	var expired <-chan time.Time
	if timeout >= 0 {
		expired = time.After(timeout)
	}
	select {
	case b, ok := <-p.in:
		p.left = b
		return ok
	case <-expired:
		return false
	}
}
