package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/internal/duplex"
)

func newPort() *cobra.Command {
	return &cobra.Command{
		Use:   "port SANDBOX PORT[:LOCAL]",
		Short: "Reach what listens on a port of a sandbox at a port of this host's loopback address",
		Long: `Listen on 127.0.0.1:LOCAL, and connect whoever connects there to what listens on
PORT inside the sandbox, until it is interrupted. LOCAL is PORT if it is not given;
0 is one that is free. The address is printed. Every user of this host can
connect to it.`,
		Example: `  axo exec -d "$id" -- python3 -m http.server 8000
  axo port "$id" 8000:8080`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			inside, local, err := parsePorts(args[1])
			if err != nil {
				return err
			}
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error { return forward(ctx, c, d, args[0], inside, local) })
		},
	}
}

func parsePorts(v string) (inside, local uint16, err error) {
	in, out, two := strings.Cut(v, ":")
	a, err := strconv.ParseUint(in, 10, 16)
	b := a
	if err == nil && two {
		b, err = strconv.ParseUint(out, 10, 16)
	}
	if err != nil || a == 0 {
		return 0, 0, fmt.Errorf("port %s: want PORT or PORT:LOCAL, of numbers up to 65535", v)
	}
	return uint16(a), uint16(b), nil
}

func forward(ctx context.Context, c *cobra.Command, d *client.Driver, id string, inside, local uint16) error {
	sb, err := d.Open(ctx, id)
	if err != nil {
		return err
	}
	ports, ok := isolation.As[isolation.PortDialer](sb)
	if !ok {
		return &isolation.UnsupportedError{Feature: "ports"}
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(local))))
	if err != nil {
		return &statusError{exitEngine, err}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	context.AfterFunc(ctx, func() { l.Close() })
	fmt.Fprintln(c.OutOrStdout(), l.Addr())
	for {
		conn, err := l.Accept()
		if err != nil {
			return nil //nolint:nilerr // it was interrupted, which is how this ends
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			in, err := ports.DialPort(ctx, inside)
			if err != nil {
				conn.Close()
				fmt.Fprintln(c.ErrOrStderr(), "axo:", errorText(err))
				return
			}
			context.AfterFunc(ctx, func() { in.Close() })
			duplex.Join(conn, in)
		})
	}
}
