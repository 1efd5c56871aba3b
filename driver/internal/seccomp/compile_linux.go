package seccomp

import (
	"fmt"
	"maps"
	"runtime"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// maxInstructions is the kernel's bound (BPF_MAXINSNS).
const maxInstructions = 4096

// x32Bit is set in the numbers of x32's calls on x86-64.
const x32Bit = 0x40000000

// rule is what a call with certain arguments gets.
type rule struct {
	conditions []specs.LinuxSeccompArg // all must hold
	ret        uint32
}

// Compile compiles a profile. Rules for one call are alternatives; the first
// of the profile that matches decides. Names that the host's architecture does not have
// are left out, as the specification allows; a field that is not implemented is an error.
func Compile(p *specs.LinuxSeccomp) ([]unix.SockFilter, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	if p.ListenerPath != "" || p.ListenerMetadata != "" || len(p.Flags) > 0 {
		return nil, fmt.Errorf("seccomp: flags and listeners are not implemented")
	}
	if len(p.Architectures) > 0 && !slices.Contains(p.Architectures, native[runtime.GOARCH]) {
		return nil, fmt.Errorf("seccomp: the profile is for %v, this host runs %s", p.Architectures, runtime.GOARCH)
	}
	otherwise, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	rules := map[int][]rule{}
	for _, s := range p.Syscalls {
		ret, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, a := range s.Args {
			if a.Index > 5 {
				return nil, fmt.Errorf("seccomp: %v: argument %d of at most 6", s.Names, a.Index)
			}
		}
		for _, name := range s.Names {
			if nr, ok := info.SyscallNames[name]; ok {
				rules[nr] = append(rules[nr], rule{s.Args, ret})
			}
		}
	}
	c := compiler{otherwise: otherwise}
	for _, nr := range slices.Sorted(maps.Keys(rules)) {
		c.add(nr, rules[nr])
	}
	body, err := c.tree(c.spans)
	if err != nil {
		return nil, err
	}
	prog := []unix.SockFilter{
		load(offArch),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: uint32(info.ID)},
		ret(errno(unix.ENOSYS)),
		load(offNumber),
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: x32Bit},
		ret(errno(unix.ENOSYS)),
	}
	prog = append(prog, body...)
	if len(prog) > maxInstructions {
		return nil, fmt.Errorf("seccomp: %d instructions, the kernel takes %d", len(prog), maxInstructions)
	}
	return prog, nil
}

// native are the names of the architectures for which this is built.
var native = map[string]specs.Arch{
	"amd64": specs.ArchX86_64, "386": specs.ArchX86, "arm64": specs.ArchAARCH64, "arm": specs.ArchARM, "riscv64": specs.ArchRISCV64,
	"ppc64le": specs.ArchPPC64LE, "s390x": specs.ArchS390X, "loong64": specs.ArchLOONGARCH64,
}

func errno(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e)&unix.SECCOMP_RET_DATA }

func action(a specs.LinuxSeccompAction, e *uint) (uint32, error) {
	if e != nil && *e != 0 && a != specs.ActErrno {
		return 0, fmt.Errorf("seccomp: errno %d for action %q, which has none", *e, a)
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		n := uint(unix.EPERM)
		if e != nil {
			n = *e
		}
		if n > 4095 {
			return 0, fmt.Errorf("seccomp: errno %d", n)
		}
		return errno(unix.Errno(n)), nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("seccomp: action %q is not implemented", a)
}

// span is a range of numbers, up to the next span's, that get the same.
type span struct {
	from  int
	rules []rule // the last one has no conditions
}

type compiler struct {
	otherwise uint32
	spans     []span
}

// add appends a number, larger than those before.
func (c *compiler) add(nr int, rules []rule) {
	none := []rule{{ret: c.otherwise}}
	if len(c.spans) == 0 {
		c.spans = append(c.spans, span{0, none})
	}
	if i := slices.IndexFunc(rules, func(r rule) bool { return len(r.conditions) == 0 }); i >= 0 {
		rules = rules[:i+1]
	} else {
		rules = append(slices.Clone(rules), rule{ret: c.otherwise})
	}
	c.put(nr, rules)
	c.put(nr+1, none)
}

// put begins a span, over one that begins there, and joins it to an equal one.
func (c *compiler) put(from int, rules []rule) {
	if n := len(c.spans); c.spans[n-1].from == from {
		c.spans = c.spans[:n-1]
	}
	if n := len(c.spans); n > 0 {
		last := c.spans[n-1].rules
		if len(last) == 1 && len(rules) == 1 && last[0].ret == rules[0].ret {
			return
		}
	}
	c.spans = append(c.spans, span{from, rules})
}

// tree finds the span of the number in the accumulator.
func (c *compiler) tree(spans []span) ([]unix.SockFilter, error) {
	if len(spans) == 1 {
		return leaf(spans[0].rules)
	}
	mid := len(spans) / 2
	left, err := c.tree(spans[:mid])
	if err != nil {
		return nil, err
	}
	right, err := c.tree(spans[mid:])
	if err != nil {
		return nil, err
	}
	k := uint32(spans[mid].from)
	var out []unix.SockFilter
	if len(left) <= 255 {
		out = append(out, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jt: uint8(len(left)), K: k})
	} else {
		out = append(out,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: k},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(left))})
	}
	return append(append(out, left...), right...), nil
}

// leaf goes through the rules of a call.
func leaf(rules []rule) ([]unix.SockFilter, error) {
	var out []unix.SockFilter
	for _, r := range rules {
		code, err := match(r)
		if err != nil {
			return nil, err
		}
		out = append(out, code...)
	}
	return out, nil
}

// fails marks a jump to the end of a rule, past its return.
const fails = 255

// match is the code of one rule: it returns if all conditions hold, and ends
// after its last instruction if one does not.
func match(r rule) ([]unix.SockFilter, error) {
	var out []unix.SockFilter
	for _, a := range r.conditions {
		code, err := compare(a)
		if err != nil {
			return nil, err
		}
		out = append(out, code...)
	}
	out = append(out, ret(r.ret))
	for i := range out {
		for _, j := range []*uint8{&out[i].Jt, &out[i].Jf} {
			if *j != fails {
				continue
			}
			n := len(out) - i - 1
			if n >= fails {
				return nil, fmt.Errorf("seccomp: a rule with %d conditions is too long", len(r.conditions))
			}
			*j = uint8(n)
		}
	}
	return out, nil
}

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func ret(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }

// compare is the code of one condition on a 64-bit argument: it falls through
// if the condition holds. Words are little-endian, as on all architectures
// that arch knows.
func compare(a specs.LinuxSeccompArg) ([]unix.SockFilter, error) {
	lo, hi := uint32(offArgs+8*a.Index), uint32(offArgs+8*a.Index+4)
	jump := func(op uint16, k uint32, t, f uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: t, Jf: f, K: k}
	}
	and := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: k}
	}
	v := a.Value
	vhi, vlo := uint32(v>>32), uint32(v)
	switch a.Op {
	case specs.OpEqualTo:
		return []unix.SockFilter{load(hi), jump(unix.BPF_JEQ, vhi, 0, fails), load(lo), jump(unix.BPF_JEQ, vlo, 0, fails)}, nil
	case specs.OpNotEqual:
		return []unix.SockFilter{load(hi), jump(unix.BPF_JEQ, vhi, 0, 2), load(lo), jump(unix.BPF_JEQ, vlo, fails, 0)}, nil
	case specs.OpMaskedEqual: // Value is the mask
		w := a.ValueTwo
		return []unix.SockFilter{
			load(hi), and(vhi), jump(unix.BPF_JEQ, uint32(w>>32), 0, fails),
			load(lo), and(vlo), jump(unix.BPF_JEQ, uint32(w), 0, fails),
		}, nil
	case opMaskedNotEqual:
		w := a.ValueTwo
		return []unix.SockFilter{
			load(hi), and(vhi), jump(unix.BPF_JEQ, uint32(w>>32), 0, 3),
			load(lo), and(vlo), jump(unix.BPF_JEQ, uint32(w), fails, 0),
		}, nil
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		op := uint16(unix.BPF_JGT)
		if a.Op == specs.OpGreaterEqual {
			op = unix.BPF_JGE
		}
		return []unix.SockFilter{
			load(hi), jump(unix.BPF_JGT, vhi, 3, 0), jump(unix.BPF_JEQ, vhi, 0, fails), load(lo), jump(op, vlo, 0, fails),
		}, nil
	case specs.OpLessThan, specs.OpLessEqual:
		op := uint16(unix.BPF_JGE)
		if a.Op == specs.OpLessEqual {
			op = unix.BPF_JGT
		}
		return []unix.SockFilter{
			load(hi), jump(unix.BPF_JGT, vhi, fails, 0), jump(unix.BPF_JEQ, vhi, 0, 2), load(lo), jump(op, vlo, fails, 0),
		}, nil
	}
	return nil, fmt.Errorf("seccomp: operator %q is not implemented", a.Op)
}

// opMaskedNotEqual holds when an argument under the mask Value is not
// ValueTwo. The specification has no such operator: it is this package's own.
const opMaskedNotEqual specs.LinuxSeccompOperator = "masked_not_equal"

// Bytes is a program as the guest's plan carries it.
func Bytes(prog []unix.SockFilter) []byte {
	out := make([]byte, 0, 8*len(prog))
	for _, f := range prog {
		out = append(out, byte(f.Code), byte(f.Code>>8), f.Jt, f.Jf, byte(f.K), byte(f.K>>8), byte(f.K>>16), byte(f.K>>24))
	}
	return out
}
