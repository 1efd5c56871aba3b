package proc

import (
	"context"
	"net"

	"github.com/axocoatl/isolation"
)

// porting is a sandbox whose network's ports can be reached. A connection does not
// hold the place: it ends with it.
type porting struct {
	isolation.Sandbox
	sb    *sandbox
	ports Ports
}

// Unwrap lets isolation.As find further abilities.
func (p porting) Unwrap() any { return p.Sandbox }

// DialPort implements [isolation.PortDialer].
func (p porting) DialPort(ctx context.Context, port uint16) (c net.Conn, err error) {
	return c, p.do(ctx, "dial port", func() error { c, err = p.ports.DialPort(ctx, port); return err })
}

// ListenPort implements [isolation.PortListener].
func (p porting) ListenPort(ctx context.Context, port uint16) (l net.Listener, err error) {
	return l, p.do(ctx, "listen on port", func() error { l, err = p.ports.ListenPort(ctx, port); return err })
}

func (p porting) do(ctx context.Context, op string, call func() error) error {
	err := p.sb.hold(ctx, nil)
	if err == nil {
		defer p.sb.release()
		err = p.sb.started(call())
	}
	if err != nil {
		return p.sb.fail(op, "", err)
	}
	return nil
}
