//go:build unix

package engine

import "syscall"

const nonblock = syscall.O_NONBLOCK
