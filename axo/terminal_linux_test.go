package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal makes a terminal, pty(7): the end that a person has, and the one
// for programs.
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// TestTerminal runs axo -it as a person does: the program has a terminal of the
// same size, follows its changes, gets Ctrl-C as a signal, and afterwards the
// person's terminal is as it was.
func TestTerminal(t *testing.T) {
	h := newHost(t)
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: no containers here, and no other tier has terminals")
	}
	ours, theirs := openTerminal(t)
	resize := func(rows, cols uint16) {
		if err := unix.IoctlSetWinsize(int(ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
			t.Fatal(err)
		}
	}
	resize(33, 77)
	before, err := unix.IoctlGetTermios(int(ours.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.axo("-it", "--timeout", "1m", "--shell", `
		trap 'heard=yes' INT
		echo "size $(stty size)"
		until [ "$(stty size)" = "40 100" ]; do sleep 0.05; done
		echo resized
		until [ "$heard" ]; do sleep 0.05; done
		echo heard
		read line
		echo "got $line"
		exit 6`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	watch := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer watch.Stop()
	var seen bytes.Buffer
	expect := func(text string) {
		t.Helper()
		buf := make([]byte, 1024)
		for !bytes.Contains(seen.Bytes(), []byte(text)) {
			n, err := ours.Read(buf)
			seen.Write(buf[:n])
			if err != nil {
				t.Fatalf("waiting for %q: %v, after %q", text, err, seen.Bytes())
			}
		}
	}
	send := func(text string) {
		t.Helper()
		if _, err := ours.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	expect("size 33 77\r\n")
	resize(40, 100)
	expect("resized\r\n")
	send("\x03")
	expect("heard\r\n")
	send("a line\r")
	expect("got a line\r\n")
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 6 {
		t.Errorf("%v, want status 6, after %q", err, seen.Bytes())
	}
	after, err := unix.IoctlGetTermios(int(ours.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal was %+v, is %+v, %v", before, after, err)
	}
	h.clean(t, cmd.Process.Pid)
}
