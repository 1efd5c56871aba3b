package duplex

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
)

func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

func TestJoin(t *testing.T) {
	a, a2 := pair(t)
	b, b2 := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		Join(Read(a2, bufio.NewReader(io.MultiReader(strings.NewReader("before, "), a2))), b2)
	}()
	if _, err := a.Write([]byte("there")); err != nil {
		t.Fatal(err)
	}
	a.CloseWrite()
	if got, err := io.ReadAll(b); err != nil || string(got) != "before, there" {
		t.Errorf("%q, %v", got, err)
	}
	// The other direction is open still.
	if _, err := b.Write([]byte("and back")); err != nil {
		t.Fatal(err)
	}
	b.CloseWrite()
	if got, err := io.ReadAll(a); err != nil || string(got) != "and back" {
		t.Errorf("%q, %v", got, err)
	}
	<-done
}

// TestJoinBroken: a connection that breaks takes the other along.
func TestJoinBroken(t *testing.T) {
	a, a2 := pair(t)
	b, b2 := pair(t)
	go Join(a2, b2)
	_ = a.SetLinger(0)
	a.Close() // a reset
	if _, err := io.ReadAll(b); err != nil {
		t.Logf("the other ends with %v", err)
	}
}
