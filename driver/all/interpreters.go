package all

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/wasm"
	"github.com/axocoatl/isolation/interpreter"
)

// InterpretersDir is the directory of the interpreter store in a state
// directory.
const InterpretersDir = "interpreters"

// languagesIn lists what is installed in a state directory, "" having none.
func languagesIn(stateDir string) ([]wasm.Language, error) {
	if stateDir == "" {
		return nil, nil
	}
	list, err := interpreter.Open(filepath.Join(stateDir, InterpretersDir)).Usable()
	if err != nil {
		return nil, err
	}
	var out []wasm.Language
	for _, i := range list {
		out = append(out, wasm.Language{Name: i.Language, Path: i.Path, Digest: i.Digest})
	}
	return out, nil
}

// versions are programs that print the version of their interpreter, after what
// no program prints that does not run them.
var versions = map[string]string{
	"python": "import platform; print('axo', 6 * 7, platform.python_version())",
	"js":     "console.log('axo', 6 * 7, navigator.userAgent.split('/').pop())",
}

// checkLimits bound the program that asks an interpreter for its version.
var checkLimits = isolation.Limits{Wall: 30 * time.Second, OutputBytes: 4 << 10}

// CheckInterpreter compiles an interpreter for every engine that this host has,
// which is then done for the runs to come, and has it say its version, where it
// is of a language whose programs are known here.
func CheckInterpreter(ctx context.Context, c Config, i interpreter.Interpreter) (version string, err error) {
	tried := false
	modules, err := wasmConfigs(c)
	if err != nil {
		return "", err
	}
	for _, w := range modules {
		if !w.HasWorker() {
			continue
		}
		tried = true
		w.Languages = []wasm.Language{{Name: i.Language, Path: i.Path, Digest: i.Digest}}
		v, err := checkWith(ctx, w, i.Language)
		if err != nil {
			return "", err
		}
		version = v
	}
	if !tried {
		return "", &isolation.UnsupportedError{Feature: "to try an interpreter without an engine for WebAssembly", Need: "what axo doctor says"}
	}
	return version, nil
}

func checkWith(ctx context.Context, c wasm.Config, language string) (_ string, err error) {
	d, err := wasm.New(c)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	spec := isolation.Spec{Requirement: isolation.Arbitrary, Language: language, Tenant: "axo-check"}
	switch language {
	case "python":
		spec.Requirement = isolation.Python
	case "sh":
		spec.Requirement = isolation.Shell
	}
	sb, err := d.Create(ctx, "check", spec)
	if err != nil {
		return "", err
	}
	code, ok := versions[language]
	if !ok {
		return "", nil
	}
	args, err := isolation.ScriptArgs(language, code)
	if err != nil {
		return "", err
	}
	var out, errOut bytes.Buffer
	p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: args, Limits: checkLimits}, isolation.Stdio{Stdout: &out, Stderr: &errOut})
	if err != nil {
		return "", err
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return "", err
	}
	version, ok := strings.CutPrefix(strings.TrimSpace(out.String()), "axo 42 ")
	if !exit.Success() || !ok {
		return "", fmt.Errorf("asked for its version with %s it wrote %.200q and %.200q, and %v: %w", d.Name(), out.String(), errOut.String(), exit, isolation.ErrInvalidArgument)
	}
	return version, nil
}
