package wasm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/wasm/internal/rewrite"
	"github.com/axocoatl/isolation/driver/wasm/worker"
)

// source is a module before it is compiled: its digest, and where its bytes
// are.
type source struct {
	digest    [sha256.Size]byte
	size      int64
	path      string // or
	data      []byte
	component bool
}

// digests remembers the digest of files that did not change, so that a warm
// run costs one fstat.
type digests struct {
	components bool // the engine takes them

	mu    sync.Mutex
	known map[string]knownFile // guarded by mu
}

type knownFile struct {
	id        fileID
	digest    [sha256.Size]byte
	component bool
}

// maxKnown bounds digests.known; past it the map starts anew.
const maxKnown = 4096

// resolve finds the module that m names and checks its first bytes.
func (d *digests) resolve(ctx context.Context, m isolation.Module) (source, error) {
	var s source
	var err error
	switch {
	case m.Data != nil:
		component, err := d.sniff(m.Data[:min(len(m.Data), sniffLen)], int64(len(m.Data)))
		if err != nil {
			return source{}, err
		}
		s = source{digest: sha256.Sum256(m.Data), size: int64(len(m.Data)), data: m.Data, component: component}
	case m.Path != "" && m.Digest != "":
		// What runs is what was compiled of this digest; whoever compiles the file checks
		// that it has it. So a new process need not read the file.
		return d.named(m.Path, m.Digest)
	case m.Path != "":
		if s, err = d.file(ctx, m.Path); err != nil {
			return source{}, err
		}
	default:
		return source{}, fmt.Errorf("no module is named: %w", isolation.ErrInvalidArgument)
	}
	if m.Digest != "" && m.Digest != "sha256:"+hex.EncodeToString(s.digest[:]) {
		return source{}, fmt.Errorf("module has digest sha256:%x, %s was asked for: %w", s.digest, m.Digest, isolation.ErrFailedPrecondition)
	}
	return s, nil
}

const sniffLen = 16

// sniff refuses what is no module for this engine, and reports whether it is a
// component.
func (d *digests) sniff(prefix []byte, size int64) (component bool, err error) {
	err = rewrite.Sniff(prefix, size)
	component = rewrite.IsKind(err, rewrite.Component)
	switch {
	case component && d.components:
	case component:
		return true, &isolation.UnsupportedError{Feature: "a WebAssembly component on the engine " + string(Wazero), Need: "the engine " + string(Wasmtime) + " (" + descriptions[Wasmtime].make + ")"}
	case rewrite.IsKind(err, rewrite.Unsupported):
		return false, fmt.Errorf("module: %w: %w", err, isolation.ErrUnsupported)
	case err != nil:
		return false, fmt.Errorf("module: %w: %w", err, isolation.ErrInvalidArgument)
	}
	if size > worker.MaxModule {
		return component, fmt.Errorf("module has %d bytes, at most %d are taken: %w", size, worker.MaxModule, isolation.ErrInvalidArgument)
	}
	return component, nil
}

// named is a file whose digest is told. Its first bytes alone are looked at.
func (d *digests) named(path, digest string) (source, error) {
	f, info, err := openModule(path)
	if err != nil {
		return source{}, err
	}
	defer f.Close()
	s := source{size: info.Size(), path: path}
	if err := s.parseDigest(digest); err != nil {
		return source{}, fmt.Errorf("module: %w", err)
	}
	s.component, err = d.sniffFile(f, info)
	return s, err
}

func openModule(path string) (*os.File, fs.FileInfo, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("module: %w", err)
	}
	return f, info, nil
}

func (d *digests) sniffFile(f *os.File, info fs.FileInfo) (component bool, err error) {
	prefix := make([]byte, min(sniffLen, info.Size()))
	if _, err := f.ReadAt(prefix, 0); err != nil && err != io.EOF {
		return false, fmt.Errorf("module: %w", err)
	}
	if component, err = d.sniff(prefix, info.Size()); err != nil {
		return component, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return component, nil
}

func (d *digests) file(ctx context.Context, path string) (source, error) {
	f, info, err := openModule(path)
	if err != nil {
		return source{}, err
	}
	defer f.Close()
	id := identify(info)
	d.mu.Lock()
	known, ok := d.known[path]
	d.mu.Unlock()
	if ok && known.id == id {
		return source{digest: known.digest, size: info.Size(), path: path, component: known.component}, nil
	}
	component, err := d.sniffFile(f, info)
	if err != nil {
		return source{}, err
	}
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, info.Size()))
	if err == nil && n != info.Size() {
		err = errors.New("it changed while it was read")
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return source{}, fmt.Errorf("module %s: %w", path, err)
	}
	s := source{size: n, path: path, component: component}
	h.Sum(s.digest[:0])
	if !id.settled() {
		// Another change could still leave the same times.
		return s, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil || len(d.known) >= maxKnown {
		d.known = map[string]knownFile{}
	}
	d.known[path] = knownFile{id, s.digest, component}
	return s, nil
}

// openRegular opens a regular file without waiting for a writer of a FIFO.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		class := isolation.ErrInvalidArgument
		switch {
		case errors.Is(err, fs.ErrNotExist):
			class = isolation.ErrNotFound
		case errors.Is(err, fs.ErrPermission):
			class = isolation.ErrPermissionDenied
		}
		return nil, fmt.Errorf("module: %w: %w", err, class)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("module %s is not a regular file: %w", path, isolation.ErrInvalidArgument)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// open gives the module's bytes as a file whose content has the digest: the
// worker must compile what was judged, also when the path changed since.
func (s source) open() (*os.File, error) {
	var r io.Reader = bytes.NewReader(s.data)
	if s.path != "" {
		f, err := openRegular(s.path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = io.LimitReader(f, s.size+1)
	}
	out, err := newPrivateFile("axo-module")
	if err != nil {
		return nil, fmt.Errorf("module copy: %w", err)
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, h), r)
	if err == nil && (n != s.size || !bytes.Equal(h.Sum(nil), s.digest[:])) {
		err = fmt.Errorf("module %s has not the digest sha256:%x, or changed while it was read: %w", s.path, s.digest, isolation.ErrFailedPrecondition)
	}
	if err != nil {
		discard(out)
		return nil, err
	}
	return out, nil
}
