package seccomp

import (
	"fmt"
	"strings"
	"sync"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// kind is a profile that this package makes.
type kind struct {
	capabilities string
	writable     bool
}

type made struct {
	profile *specs.LinuxSeccomp
	code    []byte
}

var (
	mu   sync.Mutex
	all  = map[kind]made{}
	code = map[*specs.LinuxSeccomp][]byte{} // of all
)

// Profile is moby's default profile, made once: it must not be changed. With
// capabilities it is the one for programs that may have these. Writable is for sandboxes that write to directories of the
// host: it also refuses to make files set-user-ID or set-group-ID, which would
// keep their power outside.
func Profile(capabilities []string, writable bool) (*specs.LinuxSeccomp, error) {
	k := kind{strings.Join(capabilities, " "), writable}
	mu.Lock()
	defer mu.Unlock()
	if m, ok := all[k]; ok {
		return m.profile, nil
	}
	p, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capabilities}}})
	if err != nil {
		return nil, fmt.Errorf("seccomp: default profile: %w", err)
	}
	if writable {
		p.Syscalls = append(NoSetID(), p.Syscalls...)
	}
	prog, err := Compile(p)
	if err != nil {
		return nil, err
	}
	m := made{p, Bytes(prog)}
	all[k], code[p] = m, m.code
	return p, nil
}

// Code compiles a profile, unless it comes from Profile and is compiled already.
func Code(p *specs.LinuxSeccomp) ([]byte, error) {
	mu.Lock()
	c, ok := code[p]
	mu.Unlock()
	if ok {
		return c, nil
	}
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
