package worker

import (
	esys "github.com/tetratelabs/wazero/experimental/sys"
)

// currentStdin and currentWriter let one instance's stdio follow the process
// that runs, since instances are made ahead.

type currentStdin func() *process

func (c currentStdin) Read(b []byte) (int, error) { return c().stdin.Read(b) }

func (c currentStdin) Poll(flag esys.Pflag, timeoutMillis int32) (bool, esys.Errno) {
	return c().stdin.Poll(flag, timeoutMillis)
}

type currentWriter func() *stdout

func (c currentWriter) Write(b []byte) (int, error) { return c().Write(b) }
