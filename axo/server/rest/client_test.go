package rest_test

import (
	"errors"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/drivertest"
)

// withServer ends its daemon when it is closed.
type withServer struct {
	*client.Driver
	s *server
}

func (w *withServer) Close() error { return errors.Join(w.Driver.Close(), w.s.stop()) }

// TestClientConformance has the whole suite run against a daemon, by the client
// that other programs use.
func TestClientConformance(t *testing.T) {
	drivertest.Run(t, drivertest.Config{
		New: func(tb testing.TB) isolation.Driver {
			// Little is kept, so that who does not read is seen to hold a program back.
			s := start(tb, func(c *session.Config) { c.Keep = 1 << 20 })
			d, err := client.New(client.Config{Address: "unix://" + s.socket, Key: s.keys["a"], Engine: "mem"})
			if err != nil {
				tb.Fatal(err)
			}
			return &withServer{d, s}
		},
		Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			return isolation.Spec{Requirement: isolation.Arbitrary, Language: "mem"},
				isolation.ProcessSpec{Args: append([]string{string(p)}, args...)}, true
		},
	})
}
