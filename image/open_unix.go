//go:build !windows

package image

import "syscall"

// nonblock: to open a FIFO must not wait for its other end.
const nonblock = syscall.O_NONBLOCK
