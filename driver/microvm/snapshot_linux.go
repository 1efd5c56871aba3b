package microvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
)

// Snapshot implements [proc.Snapshotter].
func (m copyable) Snapshot(ctx context.Context, name string, what func() proc.Held) error {
	begin := time.Now()
	dir := m.eng.cfg.Snapshots
	if err := checkTemplateName(name); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, name)); err == nil { // found early; publish finds it for good
		return fmt.Errorf("snapshot %s: %w", name, isolation.ErrAlreadyExists)
	}
	l, err := m.capture(ctx, what)
	if err != nil {
		return err
	}
	defer l.close()
	l.Name, l.Built = name, time.Now().UTC().Truncate(time.Second)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	unlock, err := lockBuilds(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	temp, err := os.MkdirTemp(dir, buildPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := l.write(temp, begin); err != nil {
		return fmt.Errorf("snapshot %s: %w", name, err)
	}
	err = os.Rename(temp, filepath.Join(dir, name))
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
		err = fmt.Errorf("snapshot %s: %w", name, isolation.ErrAlreadyExists)
	}
	if err != nil {
		return err
	}
	m.eng.cfg.Logger.Info("snapshot", "sandbox", m.name, "name", name, "took", l.Live.Took, "stopped", l.Live.Stopped)
	return syncDir(dir)
}

// write writes a captured machine to an empty directory, and to the disk.
func (l *loaded) write(dir string, begin time.Time) error {
	l.dir = dir
	for _, p := range []struct {
		name string
		src  *os.File
		want *file
	}{{fileRAM, l.ram, &l.RAM}, {fileState, l.state, &l.State}} {
		st, err := p.src.Stat()
		if err != nil {
			return err
		}
		h := sha256.New()
		p.want.Size = st.Size()
		err = l.create(p.name, func(f *os.File) error { return copySparse(f, p.src, st.Size(), h) })
		if err != nil {
			return err
		}
		p.want.Digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	}
	err := l.create(fileDisk, func(f *os.File) (err error) {
		if err = clone(f, l.disk, l.Disk.Size); err == nil {
			l.Disk.Is, err = identify(f)
		}
		return err
	})
	if err != nil {
		return err
	}
	l.Live.Took = time.Since(begin)
	l.Digest = l.sum()
	doc, err := json.MarshalIndent(l.Template, "", "\t")
	if err == nil {
		err = l.create(fileTemplate, func(f *os.File) error {
			_, err := f.Write(append(doc, '\n'))
			return err
		})
	}
	return errors.Join(err, syncDir(dir))
}

// create writes a file of a snapshot, which is on the disk then.
func (l *loaded) create(name string, write func(f *os.File) error) error {
	f, err := os.OpenFile(l.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// clone copies a file, by reference where the file system can (ioctl_ficlone(2)).
func clone(dst, src *os.File, size int64) error {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	_, err := io.Copy(dst, io.NewSectionReader(src, 0, size))
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// restore makes a machine of a snapshot. All that are made of one share its memory.
func (e *engine) restore(ctx context.Context, id, name string) (*machine, error) {
	v, err := e.vmm()
	if err != nil {
		return nil, err
	}
	t, err := ReadTemplate(e.cfg.Snapshots, name)
	if errors.Is(err, isolation.ErrNotFound) {
		return nil, fmt.Errorf("snapshot %s: %w", name, isolation.ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	if t.Live == nil {
		return nil, errNoSnapshot(name)
	}
	if err := t.fits(v); err != nil {
		return nil, err
	}
	l, err := e.load(t, v)
	if err != nil {
		return nil, err
	}
	m, err := e.raise(ctx, id, l.Live.Spec, l)
	if err != nil {
		e.release(l)
		return nil, err
	}
	m.borrowed = l
	return m, nil
}

// copies reports whether the engine's machines are [living].
func (e *engine) copies() bool { return e.Name() == QEMU }

// restorer is an engine whose machines can be copied while they live. It implements
// [isolation.Restorer].
type restorer struct {
	*proc.Driver
	eng *engine
}

// Restore implements [isolation.Restorer].
func (d *restorer) Restore(ctx context.Context, id, snapshot string) (isolation.Sandbox, error) {
	return d.Adopt(ctx, "restore", id, func(ctx context.Context) (proc.Place, isolation.Spec, proc.Held, error) {
		m, err := d.eng.restore(ctx, id, snapshot)
		if err != nil {
			return nil, isolation.Spec{}, proc.Held{}, err
		}
		return m.place(), m.spec, m.borrowed.Live.Held, nil
	})
}

// Snapshots implements [isolation.Restorer].
func (d *restorer) Snapshots(ctx context.Context) ([]isolation.SnapshotInfo, error) {
	out, err := d.eng.list(ctx)
	if err != nil {
		return nil, &isolation.Error{Op: "list snapshots", Driver: d.Name(), Err: err}
	}
	return out, nil
}

func (e *engine) list(ctx context.Context) (out []isolation.SnapshotInfo, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(e.cfg.Snapshots) // by name
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	v, verr := e.vmm()
	for _, d := range entries {
		if checkTemplateName(d.Name()) != nil || !d.IsDir() {
			continue
		}
		x := isolation.SnapshotInfo{Name: d.Name(), Bytes: bytesOn(filepath.Join(e.cfg.Snapshots, d.Name()))}
		t, err := ReadTemplate(e.cfg.Snapshots, d.Name())
		switch {
		case err != nil:
			x.Err = err
		case t.Live == nil:
			x.Err = errNoSnapshot(t.Name)
		default:
			x.Taken, x.Stopped, x.Took, x.Spec = t.Live.Taken, t.Live.Stopped, t.Live.Took, t.Live.Spec
			x.Execs = t.Live.Held.Live()
			if x.Err = verr; verr == nil {
				x.Err = t.fits(v)
			}
		}
		out = append(out, x)
	}
	return out, nil
}

func errNoSnapshot(name string) error {
	return fmt.Errorf("%s is no snapshot of a sandbox: %w", name, isolation.ErrFailedPrecondition)
}

// bytesOn is what the files of a directory take on the disk.
func bytesOn(dir string) (n int64) {
	entries, _ := os.ReadDir(dir) // what is gone takes nothing
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(dir, e.Name()), &st) == nil {
			n += st.Blocks * 512
		}
	}
	return n
}

// RemoveSnapshot implements [isolation.Restorer].
func (d *restorer) RemoveSnapshot(ctx context.Context, name string) error {
	err := context.Cause(ctx)
	if err == nil {
		err = RemoveTemplate(d.eng.cfg.Snapshots, name)
	}
	if err != nil {
		return &isolation.Error{Op: "remove snapshot", Driver: d.Name(), Err: err}
	}
	return nil
}
