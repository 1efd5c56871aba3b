package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
)

// serverName reads the beginning of a TLS connection (RFC 8446 section 4.1.2), and
// returns the name in it, if it has one, with all bytes that were read.
func serverName(ctx context.Context, c net.Conn) (name string, read []byte, err error) {
	var seen bytes.Buffer
	found := false
	errEnough := errors.New("it was read")
	t := tls.Server(&listening{c, io.TeeReader(c, &seen)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name, found = h.ServerName, true
			return nil, errEnough
		},
	})
	err = t.HandshakeContext(ctx)
	if found {
		err = nil
	}
	return name, seen.Bytes(), err
}

// listening is a connection to which nothing is said.
type listening struct {
	net.Conn
	r io.Reader
}

func (l *listening) Read(b []byte) (int, error)  { return l.r.Read(b) }
func (l *listening) Write(b []byte) (int, error) { return len(b), nil }
func (l *listening) Close() error                { return nil }
