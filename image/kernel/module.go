package kernel

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
)

// Module is a loadable part of a kernel.
type Module struct {
	Name    string   `json:"name"`
	Depends []string `json:"depends,omitempty"` // names that are loaded before it
	Digest  string   `json:"digest"`
	Size    int64    `json:"size"` // bytes
}

// What a virtual machine needs of its kernel, as modules or built in.
var (
	required = []string{"virtio_mmio", "virtio_console", "virtio_blk", "overlay"}
	// Firecracker's channel, its PCI transport, the root file system, and
	// KVM for a machine in the machine.
	optional = []string{
		"erofs", "ext4", "vsock", "vmw_vsock_virtio_transport", "virtio_pci", "virtio_rng", "kvm_amd", "kvm_intel",
	}
)

// info is what a module says of itself.
type info struct {
	depends, after []string // after: if they are there
	vermagic       string
}

// parseInfo reads the section .modinfo: key=value, each ended by a zero byte
// (include/linux/moduleparam.h).
func parseInfo(b []byte) info {
	var m info
	for kv := range bytes.SplitSeq(b, []byte{0}) {
		k, v, _ := strings.Cut(string(kv), "=")
		switch k {
		case "depends":
			for d := range strings.SplitSeq(v, ",") {
				if d != "" {
					m.depends = append(m.depends, moduleName(d))
				}
			}
		case "softdep":
			if pre, ok := strings.CutPrefix(v, "pre: "); ok {
				pre, _, _ = strings.Cut(pre, "post:")
				for d := range strings.FieldsSeq(pre) {
					m.after = append(m.after, moduleName(d))
				}
			}
		case "vermagic":
			m.vermagic = v
		}
	}
	return m
}

// packer puts modules, with those that they depend on, into a directory.
type packer struct {
	release string
	from    map[string]source
	builtin map[string]bool // nil: not known
	dir     string          // where they go
	limits  Limits

	done  map[string]bool
	depth int
	out   []Module
}

// builtins parses a list of modules in the kernel: a path in each line.
func builtins(s source, l Limits) (map[string]bool, error) {
	var buf bytes.Buffer
	if _, err := copyLimited(&buf, s.reader(), l.Module, "modules.builtin"); err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for line := range strings.Lines(buf.String()) {
		if k := moduleFile().FindStringSubmatch(path.Base(strings.TrimSpace(line))); k != nil {
			out[moduleName(k[1])] = true
		}
	}
	return out, nil
}

// errAbsent: the kernel has it neither as a module nor built in.
type errAbsent struct{ name string }

func (e errAbsent) Error() string { return "the kernel has no " + e.name }

// add packs a module after those that it depends on.
func (p *packer) add(name string) (err error) {
	if p.done[name] || p.builtin[name] {
		return nil
	}
	src, ok := p.from[name]
	if !ok {
		return errAbsent{name}
	}
	if p.depth++; p.depth > 32 {
		return refuse("module %s is at the end of a chain of more than 32", name)
	}
	defer func() { p.depth-- }()
	if len(p.done) >= 256 {
		return fmt.Errorf("more than 256 modules: %w", isolation.ErrResourceExhausted)
	}
	p.done[name] = true // a circle ends here
	defer func() {
		if err != nil {
			delete(p.done, name)
		}
	}()
	var buf bytes.Buffer
	z, closeZ, err := decompress(src.reader())
	if err == nil {
		_, err = copyLimited(&buf, z, p.limits.Module, "the module")
		closeZ()
	}
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	m, err := readModule(buf.Bytes())
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	if r, _, _ := strings.Cut(m.vermagic, " "); r != p.release {
		return refuse("module %s is of Linux %q, the kernel is %q", name, r, p.release)
	}
	mod := Module{Name: name, Digest: digestOf(buf.Bytes()), Size: int64(buf.Len())}
	for _, d := range m.depends {
		if err := p.add(d); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		mod.Depends = append(mod.Depends, d)
	}
	for _, d := range m.after {
		if _, ok := p.from[d]; ok {
			if err := p.add(d); err != nil {
				return fmt.Errorf("module %s: %w", name, err)
			}
			mod.Depends = append(mod.Depends, d)
		}
	}
	mod.Depends = slices.DeleteFunc(mod.Depends, func(d string) bool { return p.builtin[d] })
	p.out = append(p.out, mod)
	return os.WriteFile(path.Join(p.dir, name+".ko"), buf.Bytes(), 0o600)
}

func readModule(b []byte) (info, error) {
	f, err := readELF(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return info{}, err
	}
	if f.kind != elfRel {
		return info{}, refuse("an ELF file of type %d is no module", f.kind)
	}
	s, err := f.section(".modinfo", 1<<20)
	if err != nil {
		return info{}, err
	}
	if s == nil {
		return info{}, refuse("it says nothing of itself")
	}
	return parseInfo(s), nil
}
