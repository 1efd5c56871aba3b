package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// GuestPort is the vsock port on which the guest listens.
const GuestPort = 1024

// maxReply bounds the reply of a handshake in bytes.
const maxReply = len("OK 4294967295\n")

// handshake has Firecracker connect a connection to a port of the guest
// (docs/vsock.md there, "Host-Initiated Connections"). What follows the reply is
// the guest's, and is not read.
func handshake(ctx context.Context, c net.Conn, port int) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err := converse(c, port)
	if !stop() {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

func converse(c io.ReadWriter, port int) error {
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", port); err != nil {
		return err
	}
	var line []byte
	for b := make([]byte, 1); len(line) < maxReply; {
		if _, err := io.ReadFull(c, b); err != nil {
			if errors.Is(err, io.EOF) {
				return errRefused
			}
			return err
		}
		if b[0] == '\n' {
			return checkReply(string(line))
		}
		line = append(line, b[0])
	}
	return fmt.Errorf("a reply without end: %q", line)
}

// errRefused is that the guest does not listen, or not yet.
var errRefused = errors.New("the guest does not listen on its vsock port")

func checkReply(line string) error {
	n, ok := strings.CutPrefix(line, "OK ")
	if !ok || n == "" || strings.Trim(n, "0123456789") != "" {
		return fmt.Errorf("reply %q to CONNECT", line)
	}
	return nil
}
