package spawn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// idle is a program that does nothing for ever: the first process of a namespace,
// which is there so that the namespace is, and to be the parent of orphans. It is
// a page, and starts in a tenth of a millisecond. Nobody reads its memory
// (PR_SET_DUMPABLE(2const)): it has capabilities that those around it have not.
func openIdle() (int, error) {
	code, machine := idleCode[runtime.GOARCH], idleMachine[runtime.GOARCH]
	if code == nil {
		return -1, fmt.Errorf("an idle process on %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	return memoryProgram("axo-init", program(machine, code))
}

// program is an ELF file (elf(5)) of one segment, which is this header and the code.
// (Package debug/elf has the names, and would be most of a small program.)
func program(machine uint16, code []byte) []byte {
	const (
		base         = 0x400000
		headerSize   = 64
		segmentSize  = 56
		start        = headerSize + 2*segmentSize
		load, stack  = 1, 0x6474e551
		exec, wr, rd = 1, 2, 4
	)
	size := uint64(start + len(code))
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 15: 0} // 64 bits, little-endian, version 1
	le := binary.LittleEndian
	half := func(v ...uint16) {
		for _, n := range v {
			b = le.AppendUint16(b, n)
		}
	}
	word := func(v ...uint32) {
		for _, n := range v {
			b = le.AppendUint32(b, n)
		}
	}
	long := func(v ...uint64) {
		for _, n := range v {
			b = le.AppendUint64(b, n)
		}
	}
	half(2, machine)                           // ET_EXEC
	word(1)                                    // version
	long(base+start, headerSize, 0)            // entry, segments, no sections
	word(0)                                    // flags
	half(headerSize, segmentSize, 2, 64, 0, 0) // sizes and numbers
	word(load, rd|exec)
	long(0, base, base, size, size, 1<<16) // offset, addresses, sizes, alignment
	word(stack, rd|wr)                     // not executable
	long(0, 0, 0, 0, 0, 16)
	return append(b, code...)
}

// memoryProgram puts a program into a memory file that nobody can change.
func memoryProgram(name string, data []byte) (int, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 all of them can be executed
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	if _, err := unix.Write(fd, data); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("write", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}

// idleMachine are the numbers of architectures (elf.h, EM_).
var idleMachine = map[string]uint16{"amd64": 62, "arm64": 183}

// idleCode is prctl(PR_SET_DUMPABLE, 0), and then a wait for ever.
var idleCode = map[string][]byte{
	"amd64": {
		0xb8, 157, 0, 0, 0, // MOVL $157, AX   SYS_prctl
		0xbf, 4, 0, 0, 0, // MOVL $4, DI     PR_SET_DUMPABLE
		0x31, 0xf6, // XORL SI, SI
		0x0f, 0x05, // SYSCALL
		0xb8, 34, 0, 0, 0, // MOVL $34, AX    SYS_pause
		0x0f, 0x05, // SYSCALL
		0xeb, 0xf7, // JMP to the pause
	},
	"arm64": {
		0xe0, 0x03, 0x7e, 0xb2, // MOVD $4, R0     PR_SET_DUMPABLE
		0xe1, 0x03, 0x1f, 0xaa, // MOVD $0, R1
		0xe8, 0x14, 0x80, 0xd2, // MOVD $167, R8   SYS_prctl
		0x01, 0x00, 0x00, 0xd4, // SVC
		0xe0, 0x03, 0x1f, 0xaa, // MOVD $0, R0
		0xe1, 0x03, 0x1f, 0xaa, // MOVD $0, R1
		0xe2, 0x03, 0x1f, 0xaa, // MOVD $0, R2
		0xe3, 0x03, 0x1f, 0xaa, // MOVD $0, R3
		0x28, 0x09, 0x80, 0xd2, // MOVD $73, R8    SYS_ppoll
		0x01, 0x00, 0x00, 0xd4, // SVC
		0xfa, 0xff, 0xff, 0x17, // B to the first of these
	},
}

// become ends a script as the idle program, which fd is. It ignores the end of its
// children, which the kernel then reaps (wait(2)).
func (s *Script) become(fd int) {
	// The kernel takes what C libraries wrap: handler, flags, restorer, mask.
	ignore := &[4]uint64{0: 1} // SIG_IGN
	argv := &[2]*byte{0: &idleName[0]}
	s.Do("new session", unix.SYS_SETSID)
	s.Do("ignore the end of children", unix.SYS_RT_SIGACTION, int(unix.SIGCHLD), unsafe.Pointer(ignore), 0, 8)
	s.Do("close descriptors", unix.SYS_CLOSE_RANGE, 0, ^uintptr(0)>>32, unix.CLOSE_RANGE_CLOEXEC)
	s.Do("execute the idle program", unix.SYS_EXECVEAT, fd, "", unsafe.Pointer(argv), unsafe.Pointer(&argv[1]), unix.AT_EMPTY_PATH)
}

var idleName = []byte("axo-init\x00")
