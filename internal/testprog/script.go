package testprog

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// noTool is the status by which a script says that it lacks a tool.
const noTool = 3

// script runs one of the module's scripts/NAME.sh, which finds or builds a program
// and prints its path. ErrNoCompiler: it is not there, and cannot be built here.
func script(name string, args ...string) (string, error) {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("the source of this package is not known")
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "..", "..", "scripts", name+".sh"), args...)
	var out, says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &says
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == noTool:
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), ErrNoCompiler, bytes.TrimSpace(says.Bytes()))
	case err != nil:
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, says.Bytes())
	}
	return strings.TrimSpace(out.String()), nil
}
