package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// oomPatience bounds the wait for the kernel's own kill after it said that it
// has no memory left.
const oomPatience = time.Second

// OnOOM calls f with the number of kills for want of memory, when it has grown:
// what is left of a program then is no use, and what it says of its end not true.
// Version 2 ends a group as a whole by itself (memory.oom.group); version 1 tells by
// an event (Documentation/admin-guide/cgroup-v1/memory.rst, section 10). It lasts
// until Delete. On version 2, and without a limit, f is never called.
func (g *Group) OnOOM(f func(kills int64)) error {
	if g == nil || g.v2 || g.dir[Memory] == "" {
		return nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	event := os.NewFile(uintptr(fd), "oom")
	control, err := open(filepath.Join(g.dir[Memory], "memory.oom_control"), unix.O_RDONLY)
	if err == nil {
		err = write(filepath.Join(g.dir[Memory], "cgroup.event_control"), fmt.Sprintf("%d %d", fd, control))
		unix.Close(control)
	}
	if err != nil {
		event.Close()
		return err
	}
	g.oom = event
	go func() {
		seen := int64(0)
		for b := make([]byte, 8); ; {
			if _, err := event.Read(b); err != nil {
				return
			}
			if n := g.killsAfter(seen); n > seen {
				seen = n
				f(n)
			}
		}
	}()
	return nil
}

// killsAfter waits until the kernel has killed more than seen.
func (g *Group) killsAfter(seen int64) int64 {
	for end := time.Now().Add(oomPatience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if n := g.Read().OOM; n > seen {
			return n
		}
	}
	return seen
}
