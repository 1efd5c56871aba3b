package seccomp

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

type call struct {
	nr   uint32
	arch uint32
	args [6]uint64
}

// interpret runs a program as the kernel does.
func interpret(t testing.TB, prog []unix.SockFilter, c call) uint32 {
	var acc uint32
	for pc := 0; pc < len(prog); pc++ {
		f := prog[pc]
		skip := func(cond bool) {
			if cond {
				pc += int(f.Jt)
			} else {
				pc += int(f.Jf)
			}
		}
		switch f.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			switch {
			case f.K == offNumber:
				acc = c.nr
			case f.K == offArch:
				acc = c.arch
			case f.K >= offArgs && f.K < offArgs+48 && f.K%4 == 0:
				v := c.args[(f.K-offArgs)/8]
				if f.K%8 == 4 {
					v >>= 32
				}
				acc = uint32(v)
			default:
				t.Fatalf("load of offset %d", f.K)
			}
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= f.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(f.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			skip(acc == f.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			skip(acc > f.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			skip(acc >= f.K)
		case unix.BPF_RET | unix.BPF_K:
			return f.K
		default:
			t.Fatalf("instruction %#x", f.Code)
		}
	}
	t.Fatal("the program ends without a return")
	return 0
}

// judge applies a profile by its definition.
func judge(t testing.TB, p *specs.LinuxSeccomp, name string, args [6]uint64) uint32 {
	holds := func(a specs.LinuxSeccompArg) bool {
		v := args[a.Index]
		switch a.Op {
		case specs.OpEqualTo:
			return v == a.Value
		case specs.OpNotEqual:
			return v != a.Value
		case specs.OpMaskedEqual:
			return v&a.Value == a.ValueTwo
		case opMaskedNotEqual:
			return v&a.Value != a.ValueTwo
		case specs.OpGreaterThan:
			return v > a.Value
		case specs.OpGreaterEqual:
			return v >= a.Value
		case specs.OpLessThan:
			return v < a.Value
		case specs.OpLessEqual:
			return v <= a.Value
		}
		t.Fatalf("operator %s", a.Op)
		return false
	}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if n != name {
				continue
			}
			all := true
			for _, a := range s.Args {
				all = all && holds(a)
			}
			if all {
				r, err := action(s.Action, s.ErrnoRet)
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
		}
	}
	r, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestCompiledLikeDefined compares programs with the definition of their
// profiles, for every number and many arguments.
func TestCompiledLikeDefined(t *testing.T) {
	info, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	base, err := Profile(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	writable := *base
	writable.Syscalls = append(NoSetID(), base.Syscalls...)
	ops := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	names := []string{"read", "write", "close", "stat", "fstat", "lstat", "poll", "lseek", "mmap", "mprotect"}
	for i, op := range []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpMaskedEqual, opMaskedNotEqual, specs.OpGreaterThan,
		specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual} {
		ops.Syscalls = append(ops.Syscalls, specs.LinuxSyscall{Names: []string{names[i]}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
			{Index: uint(i % 6), Value: 1<<40 | 0xff0, ValueTwo: 0x10, Op: op}, {Index: 5, Value: 3, Op: specs.OpNotEqual},
		}})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	// Values around those that rules compare with.
	interesting := []uint64{0, 1, 3, 16, 40, 0x10, 0xff0, 1 << 40, 1<<40 | 0xff0, 1<<40 | 0xfef, 1<<40 | 0xff1, 1<<40 | 0x10, 0xffffffff, ^uint64(0),
		unix.CLONE_NEWUSER, unix.CLONE_NEWNS | 17, 0x20000, 8, 0o4755, 0o2644, 0o644, unix.O_CREAT | unix.O_WRONLY, unix.O_TMPFILE, unix.AF_ALG, unix.AF_VSOCK, unix.AF_INET}
	for _, p := range []*specs.LinuxSeccomp{base, &writable, ops} {
		prog, err := Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d rules, %d instructions", len(p.Syscalls), len(prog))
		for nr := range 600 {
			name := info.SyscallNumbers[nr]
			for range 60 {
				c := call{nr: uint32(nr), arch: uint32(info.ID)}
				for i := range c.args {
					c.args[i] = interesting[rng.IntN(len(interesting))]
				}
				if got, want := interpret(t, prog, c), judge(t, p, name, c.args); got != want {
					t.Fatalf("%s (%d) with %#x: %#x, want %#x", name, nr, c.args, got, want)
				}
			}
		}
		for _, c := range []call{{nr: 1, arch: 0x40000003}, {nr: x32Bit | 1, arch: uint32(info.ID)}} {
			if got := interpret(t, prog, c); got != errno(unix.ENOSYS) {
				t.Errorf("a foreign call %+v: %#x", c, got)
			}
		}
	}
}

func TestNotImplementedIsRefused(t *testing.T) {
	for name, p := range map[string]*specs.LinuxSeccomp{
		"notify":   {DefaultAction: specs.ActNotify},
		"flags":    {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}},
		"argument": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}},
		"operator": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "?"}}}}},
	} {
		if _, err := Compile(p); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestKernelTakesIt loads the default profile in a child, where getpid still
// works and unshare does not.
func TestKernelTakesIt(t *testing.T) {
	if os.Getenv("AXO_SECCOMP_CHILD") == "1" {
		runtime.LockOSThread()
		p, err := Profile(nil, true)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Code(p)
		if err != nil {
			t.Fatal(err)
		}
		prog := unix.SockFprog{Len: uint16(len(b) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&b[0]))}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
			t.Fatal(e)
		}
		if _, _, e := unix.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWNS, 0, 0); e != unix.EPERM {
			t.Errorf("unshare: %v", e)
		}
		if pid, _, _ := unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0); int(pid) != os.Getpid() {
			t.Error("getpid does not work")
		}
		if err := unix.Fchmod(0, 0o4755); err != unix.EPERM {
			t.Errorf("a set-user-ID bit: %v", err)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKernelTakesIt$", "-test.v")
	cmd.Env = append(os.Environ(), "AXO_SECCOMP_CHILD=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func BenchmarkCompile(b *testing.B) {
	p, err := Profile(nil, false)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
