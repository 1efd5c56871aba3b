package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/axocoatl/isolation/driver/wasm/internal/rewrite"
	"github.com/axocoatl/isolation/guest/wire"
)

// The classes that FAIL carries, the texts of the root package's sentinels.
const (
	classInvalid     = "invalid argument"
	classUnsupported = "unsupported"
	classExhausted   = "resource exhausted"
)

// classified is an error with the class that FAIL carries.
type classified struct {
	class string
	err   error
}

func (e *classified) Error() string { return e.err.Error() }

// serveCompile answers one COMPILE. The module is hostile: the process is
// jailed before a byte of it is read.
func serveCompile(c *conn) error {
	f, err := c.r.Next()
	if err != nil {
		return err
	}
	var m wire.CompileMessage
	if f.Type != wire.Compile {
		return fmt.Errorf("%w: %v to a compile worker", wire.ErrProtocol, f.Type)
	}
	if err := m.Parse(f.Body); err != nil {
		return err
	}
	stream := f.Stream
	done, err := compile(c.t.descriptors(), &m)
	if err != nil {
		class := ""
		var ce *classified
		if errors.As(err, &ce) {
			class = ce.class
		}
		return c.fail(stream, class, err)
	}
	return c.send(wire.Compiled, stream, done.Append(nil))
}

func compile(fds []int, m *wire.CompileMessage) (*wire.CompiledMessage, error) {
	in, err := files(fds, m.ByPath, m.ModulePath, m.OutPath)
	if err != nil {
		return nil, err
	}
	module, outDir := in[0], in[1]
	if err := enter(outDir); err != nil {
		return nil, err
	}
	if m.Jail {
		if _, err := jailCompile(outDir); err != nil {
			return nil, fmt.Errorf("jail: %w", err)
		}
	}
	binary, err := readModule(module)
	if err != nil {
		return nil, err
	}
	out, err := rewrite.Rewrite(binary, rewrite.Options{Fuel: m.Fuel, Image: m.Image})
	if err != nil {
		return nil, rewriteError(err)
	}
	if !slices.ContainsFunc(out.Info.Exports, func(e rewrite.Export) bool { return e.Name == "_start" && e.Kind == rewrite.KindFunc }) {
		return nil, &classified{classInvalid, errNoStart}
	}
	ctx := context.Background()
	if err := checkImports(ctx, out.Info.Imports); err != nil {
		return nil, err
	}
	if err := compileNative(ctx, out.Module); err != nil {
		return nil, &classified{classInvalid, fmt.Errorf("compile: %w", err)}
	}
	done := &wire.CompiledMessage{
		MinMemory: uint64(out.Info.MinPages) * pageSize,
		HasStart:  out.Info.HasStart,
	}
	if out.Info.HasMax {
		done.MaxMemory = uint64(out.Info.MaxPages) * pageSize
	}
	if err := os.WriteFile(ModuleFile, out.Module, 0o600); err != nil {
		return nil, err
	}
	if len(out.Image) > 0 {
		base, image := alignImage(uint64(out.ImageBase), out.Image)
		done.HasImage, done.ImageBase = true, base
		if err := os.WriteFile(ImageFile, image, 0o600); err != nil {
			return nil, err
		}
	}
	return done, nil
}

// rewriteError gives what the rewriter found its class.
func rewriteError(err error) error {
	class := classInvalid
	switch {
	case rewrite.IsKind(err, rewrite.Component, rewrite.Unsupported):
		class = classUnsupported
	case rewrite.IsKind(err, rewrite.TooLarge):
		class = classExhausted
	}
	return &classified{class, fmt.Errorf("module: %w", err)}
}

// enter makes dir the working directory: names in it need no path, so the
// worker needs no right to look anything up above it.
func enter(dir *os.File) error {
	if err := dir.Chdir(); err != nil {
		return fmt.Errorf("enter the artefact's directory: %w", err)
	}
	return nil
}

// alignImage pads the front of an image so that it begins on a page.
func alignImage(base uint64, image []byte) (uint64, []byte) {
	page := uint64(os.Getpagesize())
	pad := base % page
	if pad == 0 {
		return base, image
	}
	return base - pad, append(make([]byte, pad, pad+uint64(len(image))), image...)
}

// compileNative has wazero write its native code to NativeDir.
func compileNative(ctx context.Context, module []byte) error {
	cache, err := wazero.NewCompilationCacheWithDir(NativeDir)
	if err != nil {
		return err
	}
	defer cache.Close(ctx)
	r := newRuntime(ctx, cache)
	defer r.Close(ctx)
	compiled, err := r.CompileModule(experimental.WithCompilationWorkers(ctx, runtime.GOMAXPROCS(0)), module)
	if err != nil {
		return err
	}
	return compiled.Close(ctx)
}

// checkImports refuses what instantiation would fail on, by name. It is told
// before the module is compiled, which can take seconds.
func checkImports(ctx context.Context, imports []rewrite.Import) error {
	known, err := wasiFunctions(ctx)
	if err != nil {
		return err
	}
	var bad []string
	for _, im := range imports {
		if im.Module != wasiModule || im.Kind != rewrite.KindFunc {
			bad = append(bad, im.Module+"."+im.Name)
			continue
		}
		if _, ok := known[im.Name]; !ok {
			bad = append(bad, im.Module+"."+im.Name)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	const show = 10
	more := ""
	if len(bad) > show {
		more = fmt.Sprintf(" and %d more", len(bad)-show)
		bad = bad[:show]
	}
	for i := range bad {
		bad[i] = fmt.Sprintf("%.100q", bad[i])
	}
	return &classified{classUnsupported, fmt.Errorf("module imports %s%s: only the functions of %s are there", strings.Join(bad, ", "), more, wasiModule)}
}

func wasiFunctions(ctx context.Context) (map[string]api.FunctionDefinition, error) {
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer r.Close(ctx)
	compiled, err := wasi_snapshot_preview1.NewBuilder(r).Compile(ctx)
	if err != nil {
		return nil, err
	}
	return compiled.ExportedFunctions(), nil
}
