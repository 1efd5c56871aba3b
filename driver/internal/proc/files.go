package proc

import (
	"context"
	"io"
	"io/fs"

	"github.com/axocoatl/isolation"
)

// filing is a sandbox whose files can be reached. While an operation begins its
// place stays; what is under way when it is removed fails.
type filing struct {
	isolation.Sandbox
	sb    *sandbox
	files Files
}

// Unwrap lets isolation.As find further abilities.
func (f filing) Unwrap() any { return f.Sandbox }

// FilesAs implements [isolation.UserFiles].
func (f filing) FilesAs(user string) (isolation.UserFilesystem, error) {
	of, ok := f.files.(interface{ As(user string) Files })
	if ok && f.sb.d.eng.Features().Has(isolation.OptionUser) {
		if as := of.As(user); as != nil {
			f.files = as
			return f, nil
		}
	}
	return nil, Unsupported("files as another user than the sandbox's own", "a root file system of the sandbox's own, as an image's, and an engine whose programs can have users")
}

// do calls an operation of a sandbox that is there.
func (f filing) do(ctx context.Context, op string, call func() error) error {
	err := f.sb.hold(ctx, nil)
	if err == nil {
		defer f.sb.release()
		err = call()
	}
	if err != nil {
		return f.sb.fail(op, "", err)
	}
	return nil
}

func (f filing) Stat(ctx context.Context, name string) (info fs.FileInfo, err error) {
	err = f.do(ctx, "stat", func() error { info, err = f.files.Stat(ctx, name); return err })
	return info, err
}

func (f filing) ReadFile(ctx context.Context, name string) (r io.ReadCloser, err error) {
	err = f.do(ctx, "read file", func() error { r, err = f.files.ReadFile(ctx, name); return err })
	return r, err
}

func (f filing) WriteFile(ctx context.Context, name string, mode fs.FileMode, r io.Reader) error {
	// It may wait for r as long as it likes, and does not hold up Delete.
	err := f.do(ctx, "write file", func() error { return nil })
	if err == nil {
		if err = f.files.WriteFile(ctx, name, mode, r); err != nil {
			err = f.sb.fail("write file", "", err)
		}
	}
	return err
}

func (f filing) Remove(ctx context.Context, name string) error {
	return f.do(ctx, "remove", func() error { return f.files.Remove(ctx, name) })
}

func (f filing) ReadDir(ctx context.Context, name string) (list []fs.FileInfo, err error) {
	err = f.do(ctx, "read directory", func() error { list, err = f.files.ReadDir(ctx, name); return err })
	return list, err
}

func (f filing) Mkdir(ctx context.Context, name string, mode fs.FileMode) error {
	return f.do(ctx, "make directory", func() error { return f.files.Mkdir(ctx, name, mode) })
}

func (f filing) Rename(ctx context.Context, from, to string) error {
	return f.do(ctx, "rename", func() error { return f.files.Rename(ctx, from, to) })
}

func (f filing) RemoveAll(ctx context.Context, name string) error {
	return f.do(ctx, "remove", func() error { return f.files.RemoveAll(ctx, name) })
}

func (f filing) Watch(ctx context.Context, name string, all bool) (ch <-chan isolation.FileEvent, err error) {
	err = f.do(ctx, "watch", func() error { ch, err = f.files.Watch(ctx, name, all); return err })
	return ch, err
}
