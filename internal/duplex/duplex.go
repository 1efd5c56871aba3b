// Package duplex joins connections.
package duplex

import (
	"bufio"
	"io"
	"net"
	"sync"
)

// Join copies what comes on either connection to the other, until both directions
// have ended or one is broken, and closes both. The end of one direction is passed
// on where a connection has CloseWrite.
func Join(a, b net.Conn) {
	end := sync.OnceFunc(func() {
		a.Close()
		b.Close()
	})
	defer end()
	half := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if c, ok := to.(interface{ CloseWrite() error }); err == nil && ok && c.CloseWrite() == nil {
			return
		}
		end()
	}
	var wg sync.WaitGroup
	wg.Go(func() { half(a, b) })
	wg.Go(func() { half(b, a) })
	wg.Wait()
}

// Read is a connection of which a reader has some bytes already.
func Read(c net.Conn, r *bufio.Reader) net.Conn { return read{c, r} }

type read struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (c read) Read(b []byte) (int, error) { return c.r.Read(b) }

// CloseWrite ends what is sent; without it in the connection, all of that.
func (c read) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}
