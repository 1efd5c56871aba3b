package worker

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A filter lists what a worker may call; everything else fails with EPERM. It
// is one pass over the list: the kernel asks the filter once for each number
// that is always allowed, and remembers.

// allowed for every worker: what the Go runtime needs to schedule, to collect
// garbage and to map memory (PROT_EXEC included, for compiled modules), and
// input and output on descriptors that are open.
var seccompAlways = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_SENDTO, unix.SYS_SENDMSG,
	unix.SYS_CLOSE, unix.SYS_PPOLL, unix.SYS_LSEEK, unix.SYS_FSTAT,
	unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE, unix.SYS_MREMAP, unix.SYS_MINCORE, unix.SYS_BRK,
	unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP,
	unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETRUSAGE,
	unix.SYS_SIGALTSTACK, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN,
	unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, unix.SYS_SETITIMER,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PIPE2,
	unix.SYS_GETRANDOM, unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST, unix.SYS_MEMBARRIER, unix.SYS_RESTART_SYSCALL,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_SECCOMP,
}

// seccompFcntl are the commands of fcntl. By others a file could be made to send
// signals to another process (F_SETOWN).
var seccompFcntl = []uint32{unix.F_DUPFD, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD_CLOEXEC}

// seccompFiles is what a worker with mounts needs besides: what os.Root does
// with names beneath its directory. Landlock says which directories.
var seccompFiles = []uint32{
	unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_GETDENTS64, unix.SYS_PREAD64, unix.SYS_PWRITE64,
	unix.SYS_FTRUNCATE, unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_SYMLINKAT,
	unix.SYS_READLINKAT, unix.SYS_UTIMENSAT, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FALLOCATE, unix.SYS_FADVISE64,
	unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_FCHMODAT, unix.SYS_FCHMOD, unix.SYS_FCHDIR, unix.SYS_GETCWD, unix.SYS_DUP, unix.SYS_DUP3,
	unix.SYS_FSTATFS, unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDFILE,
}

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h), little-endian.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
	dataArg1 = 24
)

// threadFlags must all be set in a clone: it makes a thread, not a process.
const threadFlags = unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND

type program struct{ code []unix.SockFilter }

func (p *program) stmt(code uint16, k uint32) {
	p.code = append(p.code, unix.SockFilter{Code: code, K: k})
}

// jump goes on after jt statements if the comparison holds, else after jf.
func (p *program) jump(op uint16, k uint32, jt, jf uint8) {
	p.code = append(p.code, unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: jt, Jf: jf, K: k})
}

func (p *program) load(offset uint32) { p.stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset) }

func (p *program) ret(v uint32) { p.stmt(unix.BPF_RET|unix.BPF_K, v) }

const (
	retAllow = unix.SECCOMP_RET_ALLOW
	retKill  = unix.SECCOMP_RET_KILL_PROCESS
	retEPERM = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	retNoSys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// x32Bit marks calls of the x32 ABI, which the filter does not know.
const x32Bit = 0x40000000

// seccompProgram builds the filter.
func seccompProgram(files bool) ([]unix.SockFilter, error) {
	var arch uint32
	switch runtime.GOARCH {
	case "amd64":
		arch = unix.AUDIT_ARCH_X86_64
	case "arm64":
		arch = unix.AUDIT_ARCH_AARCH64
	default:
		return nil, fmt.Errorf("no filter for %s", runtime.GOARCH)
	}
	p := &program{}
	p.load(dataArch)
	p.jump(unix.BPF_JEQ, arch, 1, 0)
	p.ret(retKill)
	p.load(dataNr)
	p.jump(unix.BPF_JGE, x32Bit, 0, 1)
	p.ret(retKill)
	allowed := seccompAlways
	if files {
		allowed = append(append([]uint32(nil), allowed...), seccompFiles...)
	}
	for _, nr := range allowed {
		p.jump(unix.BPF_JEQ, nr, 0, 1)
		p.ret(retAllow)
	}
	p.jump(unix.BPF_JEQ, unix.SYS_FCNTL, 0, uint8(2*len(seccompFcntl)+2))
	p.load(dataArg1)
	for _, command := range seccompFcntl {
		p.jump(unix.BPF_JEQ, command, 0, 1)
		p.ret(retAllow)
	}
	p.ret(retEPERM)
	// A signal to one of the own threads, which the Go scheduler sends.
	p.jump(unix.BPF_JEQ, unix.SYS_TGKILL, 0, 4)
	p.load(dataArg0)
	p.jump(unix.BPF_JEQ, uint32(os.Getpid()), 0, 1)
	p.ret(retAllow)
	p.ret(retEPERM)
	// A thread, but no process.
	p.jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 5)
	p.load(dataArg0)
	p.stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, threadFlags)
	p.jump(unix.BPF_JEQ, threadFlags, 0, 1)
	p.ret(retAllow)
	p.ret(retEPERM)
	// prctl only to name mappings.
	p.jump(unix.BPF_JEQ, unix.SYS_PRCTL, 0, 4)
	p.load(dataArg0)
	p.jump(unix.BPF_JEQ, unix.PR_SET_VMA, 0, 1)
	p.ret(retAllow)
	p.ret(retEPERM)
	// The arguments of clone3 lie in memory, where no filter can see them.
	p.jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1)
	p.ret(retNoSys)
	p.ret(retEPERM)
	return p.code, nil
}

// seccomp puts the filter over every thread. Filters add up: a second one can
// only take away.
func seccomp(files bool) error {
	code, err := seccompProgram(files)
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(code)
	if e != 0 {
		return os.NewSyscallError("seccomp", e)
	}
	if r != 0 {
		return fmt.Errorf("seccomp: thread %d could not be restricted", r)
	}
	return nil
}
