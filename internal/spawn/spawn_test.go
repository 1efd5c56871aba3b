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

// TestRoot: a program with a root of its own sees what was mounted there, as it
// was to be mounted, and nothing else.
func TestRoot(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"/sys", "/proc", "/missing"} {
		if err := os.Mkdir(root+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mounts := []Mount{{Source: root, Target: root, Flags: unix.MS_BIND, Attr: unix.MOUNT_ATTR_NOSUID}}
	for _, d := range []string{"/bin", "/lib", "/lib64", "/usr"} {
		info, err := os.Lstat(d)
		if err != nil {
			continue
		}
		if info.Mode()&os.ModeSymlink != 0 {
			to, err := os.Readlink(d)
			if err == nil {
				err = os.Symlink(to, root+d)
			}
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.Mkdir(root+d, 0o755); err != nil {
			t.Fatal(err)
		}
		mounts = append(mounts, Mount{Source: d, Target: root + d, Flags: unix.MS_BIND | unix.MS_REC, Attr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV})
	}
	mounts = append(mounts, Mount{Source: "/proc", Target: root + "/proc", Flags: unix.MS_BIND | unix.MS_REC},
		Mount{Source: "/nowhere", Target: root + "/missing", Flags: unix.MS_BIND, Optional: true})
	if err := os.WriteFile(root+"/mark", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var s Spawner
	defer s.Close()
	change := func(sp *Spec) {
		sp.Namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS
		sp.Map = func(pid int) error {
			dir := fmt.Sprintf("/proc/%d/", pid)
			if os.Geteuid() != 0 {
				if err := os.WriteFile(dir+"setgroups", []byte("deny"), 0); err != nil {
					return err
				}
			}
			return errors.Join(os.WriteFile(dir+"gid_map", fmt.Appendf(nil, "0 %d 1", os.Getegid()), 0), os.WriteFile(dir+"uid_map", fmt.Appendf(nil, "0 %d 1", os.Geteuid()), 0))
		}
		sp.Mounts, sp.Root, sp.Dir = mounts, root, "/usr"
	}
	script := "pwd; [ -e /mark ] && echo marked; [ -e " + root + " ] || echo apart; touch /usr/x 2>&1 | grep -q 'Read-only file system' && echo read-only; grep -c 'ro,.*nodev' /proc/self/mountinfo"
	pid, out, err := shell(t, &s, script, change)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(out)
	awaited(t, pid)
	if got := string(b); !strings.HasPrefix(got, "/usr\nmarked\napart\nread-only\n") || strings.HasSuffix(got, "\n0\n") {
		t.Errorf("it said %q", got)
	}
	for name, f := range map[string]func(*Spec){
		"mount": func(sp *Spec) {
			sp.Mounts = append(mounts[:1:1], Mount{Source: "/nowhere", Target: root, Flags: unix.MS_BIND})
		},
		"change root": func(sp *Spec) { sp.Mounts, sp.Root = nil, root },
	} {
		_, _, err := shell(t, &s, "exit 0", func(sp *Spec) { change(sp); f(sp) })
		var e *Error
		if !errors.As(err, &e) || e.Step != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := shell(t, &s, "exit 0", func(sp *Spec) { sp.Mounts = mounts }); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("mounts without a namespace for them: %v", err)
	}
}
