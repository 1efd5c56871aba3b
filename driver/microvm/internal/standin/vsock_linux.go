package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// connectPatience is how long a guest may take to accept a connection
// (CONN_REQUEST_TIMEOUT_MS of src/vmm/src/devices/virtio/vsock/csm).
const connectPatience = 2 * time.Second

// listen serves the vsock's socket (docs/vsock.md, "Host-Initiated Connections").
func (m *machine) listen(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		var one sync.Mutex // QEMU's port has one connection at a time
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				one.Lock()
				defer one.Unlock()
				m.connect(c)
			}()
		}
	}()
	return nil
}

// connect connects a connection to the guest. One that the guest does not answer,
// because it does not listen yet, is closed.
func (m *machine) connect(c net.Conn) {
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	var port int
	if err != nil {
		return
	}
	if n, err := fmt.Sscanf(line, "CONNECT %d\n", &port); n != 1 || err != nil || port != 1024 {
		return
	}
	guest, err := m.vm.DialGuest(context.Background())
	if err != nil {
		return
	}
	defer guest.Close()
	// The guest that has accepted speaks first.
	if err := guest.SetReadDeadline(time.Now().Add(connectPatience)); err != nil {
		return
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(guest, first); err != nil || guest.SetReadDeadline(time.Time{}) != nil {
		return
	}
	// In one piece: who reads more than the reply loses what the guest says.
	if _, err := c.Write(append([]byte("OK 1073741824\n"), first...)); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(guest, r)
		guest.Close()
	}()
	_, _ = io.Copy(c, guest)
}
