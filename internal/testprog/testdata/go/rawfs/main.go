//go:build wasip1

// Command rawfs calls WASI's path functions with exactly the paths that it is
// given, which Go's own package os would clean first. The directory is always
// descriptor 3, the first preopen. It prints the errno of each operation, one
// a line, 0 for success, and what was read.
//
//	open PATH OFLAGS RIGHTS FOLLOW | unlink PATH | rmdir PATH | mkdir PATH |
//	symlink TARGET PATH | rename A B | link A B FOLLOW | stat PATH FOLLOW |
//	readlink PATH
//
// open with RIGHTS "r" reads up to 64 bytes, with "w" writes "x", with "d"
// neither.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"unsafe"
)

//go:wasmimport wasi_snapshot_preview1 path_open
func pathOpen(dirfd, dirflags uint32, path unsafe.Pointer, pathLen, oflags uint32, rights, inheriting uint64, fdflags uint32, fd unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 path_unlink_file
func pathUnlink(dirfd uint32, path unsafe.Pointer, n uint32) uint32

//go:wasmimport wasi_snapshot_preview1 path_remove_directory
func pathRmdir(dirfd uint32, path unsafe.Pointer, n uint32) uint32

//go:wasmimport wasi_snapshot_preview1 path_create_directory
func pathMkdir(dirfd uint32, path unsafe.Pointer, n uint32) uint32

//go:wasmimport wasi_snapshot_preview1 path_symlink
func pathSymlink(target unsafe.Pointer, tn, dirfd uint32, path unsafe.Pointer, n uint32) uint32

//go:wasmimport wasi_snapshot_preview1 path_rename
func pathRename(dirfd uint32, a unsafe.Pointer, an, newfd uint32, b unsafe.Pointer, bn uint32) uint32

//go:wasmimport wasi_snapshot_preview1 path_link
func pathLink(dirfd, flags uint32, a unsafe.Pointer, an, newfd uint32, b unsafe.Pointer, bn uint32) uint32

//go:wasmimport wasi_snapshot_preview1 path_filestat_get
func pathStat(dirfd, flags uint32, path unsafe.Pointer, n uint32, buf unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 path_readlink
func pathReadlink(dirfd uint32, path unsafe.Pointer, n uint32, buf unsafe.Pointer, bn uint32, used unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 fd_read
func fdRead(fd uint32, iov unsafe.Pointer, n uint32, nread unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 fd_write
func fdWrite(fd uint32, iov unsafe.Pointer, n uint32, written unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 fd_close
func fdClose(fd uint32) uint32

const (
	dir        = 3
	rightRead  = 1 << 1
	rightWrite = 1 << 6
)

type iovec struct{ ptr, n uint32 }

func p(s string) (unsafe.Pointer, uint32) {
	return unsafe.Pointer(unsafe.StringData(s)), uint32(len(s))
}

func num(s string) uint32 {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		fmt.Fprintln(os.Stderr, "rawfs:", err)
		os.Exit(2)
	}
	return uint32(n)
}

func open(path, oflags, rights, follow string) (uint32, string) {
	want := uint64(0)
	switch rights {
	case "r":
		want = rightRead
	case "w":
		want = rightWrite
	}
	ptr, n := p(path)
	var fd, done uint32
	if e := pathOpen(dir, num(follow), ptr, n, num(oflags), want, 0, 0, unsafe.Pointer(&fd)); e != 0 {
		return e, ""
	}
	defer fdClose(fd)
	buf := make([]byte, 64)
	buf[0] = 'x'
	iov := &iovec{uint32(uintptr(unsafe.Pointer(&buf[0]))), 64}
	defer runtime.KeepAlive(buf)
	switch rights {
	case "r":
		e := fdRead(fd, unsafe.Pointer(iov), 1, unsafe.Pointer(&done))
		return e, string(buf[:done])
	case "w":
		iov.n = 1
		return fdWrite(fd, unsafe.Pointer(iov), 1, unsafe.Pointer(&done)), ""
	}
	return 0, ""
}

func do(op string, a []string) (e uint32, found string) {
	ptr, n := p(a[0])
	switch op {
	case "open":
		return open(a[0], a[1], a[2], a[3])
	case "unlink":
		return pathUnlink(dir, ptr, n), ""
	case "rmdir":
		return pathRmdir(dir, ptr, n), ""
	case "mkdir":
		return pathMkdir(dir, ptr, n), ""
	case "symlink":
		q, m := p(a[1])
		return pathSymlink(ptr, n, dir, q, m), ""
	case "rename":
		q, m := p(a[1])
		return pathRename(dir, ptr, n, dir, q, m), ""
	case "link":
		q, m := p(a[1])
		return pathLink(dir, num(a[2]), ptr, n, dir, q, m), ""
	case "stat":
		var buf [64]byte
		return pathStat(dir, num(a[1]), ptr, n, unsafe.Pointer(&buf)), ""
	default:
		buf := make([]byte, 256)
		var used uint32
		e := pathReadlink(dir, ptr, n, unsafe.Pointer(&buf[0]), 256, unsafe.Pointer(&used))
		return e, string(buf[:used])
	}
}

var arity = map[string]int{
	"open": 4, "unlink": 1, "rmdir": 1, "mkdir": 1, "symlink": 2, "rename": 2, "link": 3, "stat": 2, "readlink": 1,
}

func main() {
	args := os.Args[1:]
	for len(args) > 0 {
		op := args[0]
		n, known := arity[op]
		if !known || len(args) <= n {
			fmt.Fprintf(os.Stderr, "rawfs: %q is no operation, or has too few arguments\n", op)
			os.Exit(2)
		}
		e, found := do(op, args[1:1+n])
		if found != "" {
			fmt.Printf("%d %q\n", e, found)
		} else {
			fmt.Println(e)
		}
		args = args[1+n:]
	}
}
