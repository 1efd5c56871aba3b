package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
)

// The layout of an artefact's directory, shared with the host side. NativeDir
// is in the format of wazero's compilation cache and holds one entry.
const (
	ModuleFile = "module.wasm"
	ImageFile  = "image"
	NativeDir  = "native"
)

// MaxModule is the largest module in bytes that is read.
const MaxModule = 256 << 20

// features of WebAssembly that run. What wazero has beyond 2.0 is left out
// until a module needs it.
const features = api.CoreFeaturesV2 | experimental.CoreFeaturesTailCall

func newRuntime(ctx context.Context, cache wazero.CompilationCache) wazero.Runtime {
	// No WithCloseOnContextDone: it makes loops 3 to 7 times slower, and
	// cannot stop recursion or bulk memory. The host ends the process.
	return wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().
		WithCoreFeatures(features).
		WithDebugInfoEnabled(false).
		WithCustomSections(false).
		WithCompilationCache(cache))
}

func readModule(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("module: %w", err)
	}
	if info.Size() > MaxModule {
		return nil, fmt.Errorf("module has %d bytes, at most %d are taken", info.Size(), MaxModule)
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, info.Size()), b); err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	return b, nil
}

// files turns what came with a message into open files: descriptors, or the
// paths where descriptors cannot be passed.
func files(fds []int, byPath bool, paths ...string) ([]*os.File, error) {
	if !byPath {
		if len(fds) != len(paths) {
			return nil, fmt.Errorf("%d descriptors came, %d were announced", len(fds), len(paths))
		}
		out := make([]*os.File, len(fds))
		for i, fd := range fds {
			out[i] = os.NewFile(uintptr(fd), fmt.Sprintf("descriptor %d", i))
		}
		return out, nil
	}
	var out []*os.File
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

var errNoStart = errors.New("module exports no function _start: it is a library or a reactor, not a command")
