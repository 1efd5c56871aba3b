package drivertest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

// Story is what a host does until it is killed: it makes a detached sandbox and
// runs a process in it.
type Story struct {
	ID, ExecID string // of the sandbox and the process
	Program    Program
	Args       []string
	Limits     isolation.Limits
}

// Play has a driver do what a story says, and returns when the process has ended.
// Its output goes to the writers, as it comes.
func Play(d isolation.Driver, c Config, st Story, stdout, stderr io.Writer) error {
	spec, ps, ok := c.Command(st.Program, st.Args...)
	if !ok {
		return fmt.Errorf("the driver has no program %q", st.Program)
	}
	spec.Detached, ps.ExecID, ps.Limits = true, st.ExecID, st.Limits
	ctx := context.Background()
	sb, err := d.Create(ctx, st.ID, spec)
	if err != nil {
		return err
	}
	p, err := sb.Exec(ctx, ps, isolation.Stdio{Stdout: stdout, Stderr: stderr})
	if err != nil {
		return err
	}
	_, err = p.Wait(ctx)
	return err
}

// HostHere is a Config.Host in this process: d plays the story, and crash ends d as
// SIGKILL ends a process.
func HostHere(d isolation.Driver, c Config, st Story, crash func()) (stdout, stderr io.Reader, kill func()) {
	out, toOut := io.Pipe()
	errs, toErrs := io.Pipe()
	played := make(chan error, 1)
	go func() { played <- Play(d, c, st, toOut, toErrs) }()
	return out, errs, func() {
		crash()
		toOut.Close()
		toErrs.Close()
		<-played // however it ended
	}
}

// storyEnv is a story in the environment of a process that is to play it.
const storyEnv = "DRIVERTEST_STORY"

// HostProcess is a Config.Host that is another process: cmd must come to
// [PlayHost].
func HostProcess(t testing.TB, cmd *exec.Cmd, st Story) (stdout, stderr io.Reader, kill func()) {
	t.Helper()
	b, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, storyEnv+"="+string(b))
	outs, theirs := make([]*os.File, 2), make([]*os.File, 2)
	for i := range outs {
		if outs[i], theirs[i], err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { outs[i].Close() })
	}
	cmd.Stdout, cmd.Stderr = theirs[0], theirs[1]
	err = cmd.Start()
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return outs[0], outs[1], func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, or it is over
	}
}

// PlayHost plays the story of a process that HostProcess has started, on a driver
// that make makes, and does not return; in another process it does nothing.
func PlayHost(c Config, make func() (isolation.Driver, error)) {
	text, ok := os.LookupEnv(storyEnv)
	if !ok {
		return
	}
	var st Story
	err := json.Unmarshal([]byte(text), &st)
	if err == nil {
		var d isolation.Driver
		if d, err = make(); err == nil {
			err = Play(d, c, st, os.Stdout, os.Stderr)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "host:", err)
		os.Exit(1)
	}
	time.Sleep(math.MaxInt64) // until it is killed
}
