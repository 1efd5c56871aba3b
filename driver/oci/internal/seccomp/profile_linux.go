package seccomp

import (
	"fmt"
	"sync"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Default is moby's default profile for programs without capabilities, compiled
// once.
var Default = sync.OnceValues(func() ([]byte, error) { return compileDefault(nil) })

// DefaultWritable is Default for sandboxes that write to directories of the
// host: it also refuses to make files set-user-ID or set-group-ID, which would
// keep their power outside.
var DefaultWritable = sync.OnceValues(func() ([]byte, error) { return compileDefault(NoSetID()) })

// Profile is moby's default profile for programs without capabilities.
func Profile() (*specs.LinuxSeccomp, error) {
	p, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	if err != nil {
		return nil, fmt.Errorf("seccomp: default profile: %w", err)
	}
	return p, nil
}

func compileDefault(first []specs.LinuxSyscall) ([]byte, error) {
	p, err := Profile()
	if err != nil {
		return nil, err
	}
	p.Syscalls = append(first, p.Syscalls...)
	prog, err := Compile(p)
	if err != nil {
		return nil, err
	}
	return Bytes(prog), nil
}

// NoSetID are rules, to come before others, that refuse set-ID bits wherever a
// call takes a file mode. openat2 takes its mode from memory, which a filter
// cannot read: it is told not to exist, and programs use openat instead.
func NoSetID() []specs.LinuxSyscall {
	eperm, enosys := uint(unix.EPERM), uint(unix.ENOSYS)
	mode := func(index uint) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Value: unix.S_ISUID | unix.S_ISGID, ValueTwo: 0, Op: opMaskedNotEqual}
	}
	// Without O_CREAT (and O_TMPFILE has a bit of its own) there is no mode.
	with := func(index uint, flag uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Value: flag, ValueTwo: flag, Op: specs.OpMaskedEqual}
	}
	deny := func(args []specs.LinuxSeccompArg, names ...string) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: names, Action: specs.ActErrno, ErrnoRet: &eperm, Args: args}
	}
	type args = []specs.LinuxSeccompArg
	const tmpfile = unix.O_TMPFILE &^ unix.O_DIRECTORY
	return []specs.LinuxSyscall{
		deny(args{mode(1)}, "chmod", "fchmod", "creat", "mknod"),
		deny(args{mode(2)}, "fchmodat", "fchmodat2", "mknodat"),
		deny(args{with(1, unix.O_CREAT), mode(2)}, "open"),
		deny(args{with(1, tmpfile), mode(2)}, "open"),
		deny(args{with(2, unix.O_CREAT), mode(3)}, "openat"),
		deny(args{with(2, tmpfile), mode(3)}, "openat"),
		{Names: []string{"openat2"}, Action: specs.ActErrno, ErrnoRet: &enosys},
	}
}
