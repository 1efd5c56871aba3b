package session

import (
	"context"
	"net"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
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

// Networked reports whether anything of the network may be reached from it.
func (s *Session) Networked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sb == nil {
		return false
	}
	_, ok := isolation.As[engine.EgressReporter](s.sb)
	return ok
}

// Egress tells what the sandbox asked for of the network since this process has it.
func (s *Session) Egress(ctx context.Context) (engine.EgressReport, error) {
	sb, err := s.use(ctx)
	if err != nil {
		return engine.EgressReport{}, err
	}
	r, ok := isolation.As[engine.EgressReporter](sb)
	if !ok { // it has no network
		return engine.EgressReport{Connections: []engine.EgressConnection{}}, nil
	}
	return r.EgressReport(), nil
}
