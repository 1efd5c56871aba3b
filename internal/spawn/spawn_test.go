//go:build linux

package spawn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shell starts a script with its output in a pipe.
func shell(t *testing.T, s *Spawner, script string, change func(*Spec)) (pid int, out *os.File, err error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	defer w.Close()
	w.Fd() // blocking
	spec := Spec{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Dir: "/", Files: []*os.File{null, w, w}}
	if change != nil {
		change(&spec)
	}
	pid, fd, err := s.Start(spec)
	if err == nil {
		fd.Close()
	}
	return pid, r, err
}

func awaited(t *testing.T, pid int) unix.WaitStatus {
	t.Helper()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	return ws
}

func TestStart(t *testing.T) {
	var s Spawner
	defer s.Close()
	pid, out, err := shell(t, &s, "pwd; ulimit -n; umask; echo $A; id -u; exit 3", func(s *Spec) {
		s.Dir, s.Env = "/usr", []string{"A=b", "PATH=/bin:/usr/bin"}
		s.Rlimits = []Rlimit{{unix.RLIMIT_NOFILE, 77, 78}}
		s.Cred = &Credential{UID: 65534, GID: 65534}
		if os.Geteuid() != 0 {
			s.Cred = nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(out)
	if ws := awaited(t, pid); ws.ExitStatus() != 3 {
		t.Errorf("status %v", ws)
	}
	if want := "/usr\n77\n0022\nb\n65534\n"; os.Geteuid() == 0 && string(b) != want {
		t.Errorf("said %q, want %q", b, want)
	}
}

func TestErrorsNameTheStep(t *testing.T) {
	var s Spawner
	defer s.Close()
	for step, change := range map[string]func(*Spec){
		"execute":         func(s *Spec) { s.Path = "/no/such" },
		"enter directory": func(s *Spec) { s.Dir = "/no/such" },
		"set limits":      func(s *Spec) { s.Rlimits = []Rlimit{{unix.RLIMIT_NOFILE, 2, 1}} },
		"join cgroup":     func(s *Spec) { s.Tasks = []*os.File{s.Files[0]} },
	} {
		_, _, err := shell(t, &s, "true", change)
		var e *Error
		if !errors.As(err, &e) || e.Step != step {
			t.Errorf("%s: %v", step, err)
		}
	}
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("children are left: %v", err)
	}
}

// TestStress runs with allocation and collection under way in other threads.
func TestStress(t *testing.T) {
	var s Spawner
	defer s.Close()
	stop := make(chan struct{})
	var noise, wg sync.WaitGroup
	noise.Go(func() {
		var keep [][]byte
		for {
			select {
			case <-stop:
				return
			default:
			}
			keep = append(keep[:len(keep)%100], bytes.Repeat([]byte("x"), 10000))
			runtime.GC()
		}
	})
	for range 8 {
		wg.Go(func() {
			for range 50 {
				pid, out, err := shell(t, &s, "echo $$", nil)
				if err != nil {
					t.Error(err)
					return
				}
				b, _ := io.ReadAll(out)
				if ws := awaited(t, pid); !ws.Exited() || len(b) == 0 {
					t.Errorf("%v, %q", ws, b)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	noise.Wait()
}

func TestCloseEndsWhatIsTiedToIt(t *testing.T) {
	var s Spawner
	pid, _, err := shell(t, &s, "sleep 1000", func(s *Spec) { s.ParentDeathSignal = syscall.SIGKILL })
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if err := unix.Kill(pid, 0); err != nil {
		t.Fatalf("gone before: %v", err)
	}
	s.Close()
	if ws := awaited(t, pid); ws.Signal() != unix.SIGKILL {
		t.Errorf("ended by %v", ws.Signal())
	}
	if _, _, err := s.Start(Spec{Path: "/bin/true", Args: []string{"true"}, Dir: "/"}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Start after Close: %v", err)
	}
	s.Close()
}

// TestLowDescriptors: whatever numbers are free in this process, the start is over
// when the program runs, and not before.
func TestLowDescriptors(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("maps of a user namespace are root's")
	}
	var s Spawner
	defer s.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	// The program gets so many descriptors that the pipe's own number is one of
	// them.
	files := make([]*os.File, 64)
	for i := range files {
		files[i] = null
	}
	for range 50 {
		pid, pidfd, err := s.Start(Spec{
			Path: "/bin/true", Args: []string{"true"}, Dir: "/", Files: files, Namespaces: unix.CLONE_NEWUSER,
			Map: func(pid int) error {
				return os.WriteFile(fmt.Sprintf("/proc/%d/uid_map", pid), []byte("0 100000 1\n"), 0)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		// It runs: it is no copy of this program any more.
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasSuffix(exe, ".test") {
			t.Errorf("started, and still %s", exe)
		}
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || ws.ExitStatus() != 0 || ws.Signaled() {
			t.Errorf("%v: status %d, signal %v", err, ws.ExitStatus(), ws.Signal())
		}
		pidfd.Close()
	}
}
