package session

import (
	"context"
	"net"

	"github.com/axocoatl/isolation"
)

// DialPort connects to what listens on a port inside; see [isolation.PortDialer]. It
// counts as activity when it is made, and not for as long as it lasts.
func (s *Session) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	d, err := ability[isolation.PortDialer](ctx, s, "ports")
	if err != nil {
		return nil, err
	}
	return d.DialPort(ctx, port)
}
