package main

import (
	"syscall"
	"unsafe"
)

// direct reads what is on the disk (open(2), O_DIRECT), into memory that begins
// where the disk's blocks may.
const direct = syscall.O_DIRECT

func aligned(n int) []byte {
	const block = 4096
	b := make([]byte, n+block)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % block)
	return b[skip : skip+n]
}
