package microvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/guest/wire"
)

// capture takes all of a machine: its memory moves once, into a file that any
// number of machines can map. The machine goes on as it was.
func (m copyable) capture(ctx context.Context, what func() proc.Held) (_ *loaded, err error) {
	if len(m.spec.Mounts) > 0 {
		return nil, proc.Unsupported("a copy of a microVM that was given directories", "one without")
	}
	if len(m.spec.Mounts) > 0 {
		return nil, proc.Unsupported("a copy of a machine with directories of the host", "a sandbox without")
	}
	t := *m.from
	t.Live = &Live{Spec: m.spec}
	l := &loaded{Template: &t}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	// The most of it cannot change, and is copied while the machine runs.
	if l.ram, err = m.baseMemory(); err != nil {
		return nil, err
	}
	l.disk, err = m.live.Find(func(f *os.File) bool {
		is, err := identify(f)
		is.CTime = t.Disk.Is.CTime // that of one whose name was removed meanwhile is another
		return err == nil && is == t.Disk.Is
	})
	if err != nil {
		return nil, fmt.Errorf("the machine's disk: %w", err)
	}
	t.Live.Taken = time.Now().UTC()
	if err := m.stopped(ctx, func() error { return m.take(ctx, l, what) }); err != nil {
		return nil, err
	}
	t.Live.Stopped = time.Since(t.Live.Taken)
	return l, errors.Join(qemu.Seal(l.ram), qemu.Seal(l.state))
}

// take takes what of a stopped machine is its own.
func (m copyable) take(ctx context.Context, l *loaded, what func() proc.Held) error {
	state, err := m.live.Capture(ctx)
	if err != nil {
		return err
	}
	l.Live.Token, l.Live.Held = m.token, what()
	if l.state, err = qemu.MemoryFile("state", bytes.NewReader(state)); err != nil {
		return err
	}
	return m.live.Dirty(m.ramBytes(), func(at int64, b []byte) error {
		_, err := l.ram.WriteAt(b, at)
		return err
	})
}

// stopped calls f, which may stop the machine, while its programs are stopped.
// Whatever comes of it, all goes on as it was.
func (m copyable) stopped(ctx context.Context, f func() error) (err error) {
	m.still.mu.Lock()
	defer m.still.mu.Unlock()
	paused := m.still.is.Load()
	if paused {
		if err := m.vm.Thaw(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, m.vm.Freeze()) }()
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, m.live.Continue(undo))
		if !paused { // else they go on with Resume
			err = errors.Join(err, m.Conn.Sync(undo, again(m.Resources)))
		}
	}()
	// No program runs in a copy before that has had its SYNC.
	if err := m.Conn.Sync(ctx, &wire.SyncMessage{Snapshot: true}); err != nil {
		return fmt.Errorf("announce a snapshot: %w", err)
	}
	return f()
}

// baseMemory copies what a machine's memory started from into a new file.
func (m copyable) baseMemory() (_ *os.File, err error) {
	base, err := m.live.RAM()
	if err != nil {
		return nil, err
	}
	defer base.Close()
	f, err := qemu.MemoryFile("ram", nil)
	if err != nil {
		return nil, err
	}
	if err := copyExtents(f, base, m.ramBytes()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (m copyable) ramBytes() int64 { return int64(m.from.Shape.MemoryMiB) << 20 }

// copyExtents copies the parts of a file that are not holes (lseek(2)).
func copyExtents(dst, src *os.File, size int64) error {
	st, err := src.Stat()
	if err == nil && st.Size() != size {
		err = fmt.Errorf("%s has %d bytes, want %d: %w", src.Name(), st.Size(), size, isolation.ErrFailedPrecondition)
	}
	if err == nil {
		err = dst.Truncate(size)
	}
	if err != nil {
		return err
	}
	from, to := int(src.Fd()), int(dst.Fd())
	for at := int64(0); at < size; {
		data, err := unix.Seek(from, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		} else if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		end, err := unix.Seek(from, data, unix.SEEK_HOLE)
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		for at = data; at < end; {
			in, out := at, at
			n, err := unix.CopyFileRange(from, &in, to, &out, int(end-at), 0)
			if err != nil {
				return os.NewSyscallError("copy_file_range", err)
			}
			if n == 0 {
				return io.ErrUnexpectedEOF
			}
			at += int64(n)
		}
	}
	return nil
}
