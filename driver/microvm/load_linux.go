package microvm

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
)

// loaded is a template, or a machine that was captured, whose files are open,
// verified, and can be mapped.
type loaded struct {
	*Template
	users int      // guarded by the engine's mu
	ram   *os.File // sealed: no machine can change what others map
	state *os.File // sealed
	disk  *os.File
}

func (l *loaded) close() {
	for _, f := range []*os.File{l.ram, l.state, l.disk} {
		if f != nil {
			f.Close()
		}
	}
}

// load opens a template for use with a VMM.
func load(t *Template, v vmm) (_ *loaded, err error) {
	if err := t.fits(v); err != nil {
		return nil, err
	}
	if t.RAM.Size != int64(t.Shape.MemoryMiB)<<20 {
		return nil, fmt.Errorf("template %s: %d bytes of memory for a machine of %d MiB: %w", t.Name, t.RAM.Size, t.Shape.MemoryMiB, isolation.ErrFailedPrecondition)
	}
	l := &loaded{Template: t}
	defer func() {
		if err != nil {
			l.close()
			err = fmt.Errorf("template %s: %w", t.Name, err)
		}
	}()
	if l.disk, err = os.Open(t.path(fileDisk)); err != nil {
		return nil, err
	}
	is, err := identify(l.disk)
	if err != nil {
		return nil, err
	}
	same := is
	same.CTime = t.Disk.Is.CTime // another size of the template has the same file
	if same != t.Disk.Is {       // copied, or touched: what is in it counts
		h := sha256.New()
		if _, err := io.Copy(h, l.disk); err != nil {
			return nil, err
		}
		if err := check(fileDisk, h, t.Disk); err != nil {
			return nil, err
		}
		t.Disk.Is = is
	}
	if l.state, err = inMemory(t, fileState, t.State); err != nil {
		return nil, err
	}
	l.ram, err = inMemory(t, fileRAM, t.RAM)
	return l, err
}

func check(name string, h hash.Hash, want file) error {
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != want.Digest {
		return fmt.Errorf("%s has %s, want %s: %w", name, got, want.Digest, isolation.ErrFailedPrecondition)
	}
	return nil
}

// inMemory reads a file of a template into memory that cannot be written.
func inMemory(t *Template, name string, want file) (_ *os.File, err error) {
	src, err := os.Open(t.path(name))
	if err != nil {
		return nil, err
	}
	defer src.Close()
	m, err := qemu.MemoryFile(name, nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	h := sha256.New()
	if err := copySparse(m, src, want.Size, h); err != nil {
		return nil, err
	}
	if err := check(name, h, want); err != nil {
		return nil, err
	}
	return m, qemu.Seal(m)
}

// copySparse copies the parts of a file that are not holes (lseek(2)), all of
// its size, and hashes where they are and what they have. Zeroes count as holes.
func copySparse(dst, src *os.File, size int64, h hash.Hash) error {
	if st, err := src.Stat(); err != nil {
		return err
	} else if st.Size() != size {
		return fmt.Errorf("%s has %d bytes, want %d: %w", src.Name(), st.Size(), size, isolation.ErrFailedPrecondition)
	}
	if err := dst.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		} else if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		end, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		// File systems differ in where holes begin.
		for at = data - data%int64(len(buf)); at < end; at += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), size-at)]
			if _, err := src.ReadAt(b, at); err != nil {
				return err
			}
			if allZero(b) {
				continue
			}
			_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(at)))
			_, _ = h.Write(b)
			if _, err := dst.WriteAt(b, at); err != nil {
				return err
			}
		}
	}
	return nil
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func identify(f *os.File) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return identity{}, os.NewSyscallError("fstat", err)
	}
	return identity{st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

// hostCPU is the processor's name.
func hostCPU() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// Installed reports why an engine's VMM cannot be used on this host: nil if it is
// there. Whether machines run is for a probe to say.
func Installed(c Config) error {
	_, err := findVMM(c)
	return err
}

// fits reports why a template cannot be restored on this host: nil if it can.
func (t *Template) fits(v vmm) error {
	k := t.Key
	k.Layout, k.Binary, k.CPU = layout, v.caps().id, hostCPU()
	why := t.Key.differs(k)
	switch {
	case why == "":
		return nil
	case t.Live != nil:
		return fmt.Errorf("snapshot %s was taken with %s: %w", t.Name, why, isolation.ErrFailedPrecondition)
	}
	return errStale(t.Name, why)
}

// Check reports why a template cannot be used as it is: nil if it can. What c's
// Builder would make now counts.
func Check(ctx context.Context, c Config, name string) error {
	e := &engine{cfg: c}
	v, err := e.vmm()
	if err != nil {
		return err
	}
	w, err := e.wanted(ctx, isolation.Spec{Root: isolation.Root{Template: name}})
	if err != nil {
		return err
	}
	_, why, err := w.look(c.Templates, v)
	if err == nil && why != "" {
		err = errStale(name, why)
	}
	return err
}
