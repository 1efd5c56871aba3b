//go:build linux

package spawn

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rooted starts a program in new namespaces, with a root that a script makes.
func rooted(t *testing.T, notes *[]Note, scripts ...*Script) (out string, err error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("maps of a user namespace are root's")
	}
	var s Spawner
	defer s.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	w.Fd() // blocking
	pid, pidfd, err := s.Start(Spec{
		Path: "/bin/sh", Dir: "/", Files: []*os.File{null, w, w, nil, nil}, Cred: &Credential{},
		// Waits for the root, and looks.
		Args:       []string{"sh", "-c", "read x <&4; cat /proc/sys/kernel/hostname; cat /proc/1/comm; ls /proc | grep -c '^[0-9]'"},
		Env:        []string{"PATH=/usr/bin:/bin"},
		Namespaces: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS,
		Beside:     scripts, BesideInit: 3, BesideDone: 4, Notes: notes,
		Map: func(pid int) error {
			for _, f := range []string{"uid_map", "gid_map"} {
				if err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), f), []byte("0 100000 65536\n"), 0); err != nil {
					return err
				}
			}
			return nil
		},
	})
	if err != nil {
		return "", err
	}
	defer pidfd.Close()
	w.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	awaited(t, pid)
	return string(b), nil
}

func TestScript(t *testing.T) {
	var s Script
	s.Do("set host name", unix.SYS_SETHOSTNAME, "inside", len("inside"))
	s.Do("no mounts outside", unix.SYS_MOUNT, "", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
	s.Do("mount proc", unix.SYS_MOUNT, "proc", "/proc", "proc", 0, "")
	// An error that is allowed leads to the steps for it, and no other does.
	r := s.Register()
	s.Do("open what is not there", unix.SYS_OPENAT, unix.AT_FDCWD, "/no/such", unix.O_RDONLY, 0).Into(r).Allow(unix.ENOENT).Else(func() {
		s.Do("open what is there", unix.SYS_OPENAT, unix.AT_FDCWD, "/", unix.O_RDONLY|unix.O_DIRECTORY, 0).Into(r)
	})
	s.Do("use it", unix.SYS_FCHDIR, r)
	s.Do("close it", unix.SYS_CLOSE, r).Allow(unix.ENOENT).Else(func() { s.Do("must not be made", unix.SYS_EXIT_GROUP, 3) })
	s.Do("open what is not there", unix.SYS_OPENAT, unix.AT_FDCWD, "/no/such", unix.O_RDONLY, 0).Allow(unix.ENOENT).Then(func() {
		s.Do("must not be made", unix.SYS_EXIT_GROUP, 3)
	})
	s.Optional(func() {
		s.Do("fail", unix.SYS_CHDIR, "/no/such")
		s.Do("must not be made", unix.SYS_EXIT_GROUP, 3)
	})
	// Scripts can be made again, and after others.
	var first, second Script
	first.Optional(func() { first.Do("fail first", unix.SYS_CHDIR, "/no/such") })
	second.Optional(func() { second.Do("fail last", unix.SYS_CHDIR, "/no/such") })
	var notes []Note
	for range 2 {
		if _, err := rooted(t, &notes, &first, &s, &second); err != nil {
			t.Fatal(err)
		}
		if want := []Note{{"fail first", unix.ENOENT}, {"fail", unix.ENOENT}, {"fail last", unix.ENOENT}}; !slices.Equal(notes, want) {
			t.Errorf("notes %v, want %v", notes, want)
		}
	}
	out, err := rooted(t, &notes, &s)
	if err != nil {
		t.Fatal(err)
	}
	// Nothing but the idle process is in the programs' namespace.
	if f := strings.Fields(out); len(f) != 3 || f[0] != "inside" || f[2] != "1" {
		t.Errorf("said %q", out)
	}
	if len(notes) != 1 || notes[0] != (Note{"fail", unix.ENOENT}) {
		t.Errorf("notes %v", notes)
	}
}

func TestScriptErrors(t *testing.T) {
	for name, add := range map[string]func(*Script){
		"enter /no/such":     func(s *Script) { s.Do("enter /no/such", unix.SYS_CHDIR, "/no/such") },
		"another is allowed": func(s *Script) { s.Do("another is allowed", unix.SYS_CHDIR, "/no/such").Allow(unix.EEXIST) },
		"after what may fail": func(s *Script) {
			s.Do("x", unix.SYS_CHDIR, "/no/such").Allow(unix.ENOENT)
			s.Do("after what may fail", unix.SYS_CHDIR, "/no/such")
		},
		"too short": func(s *Script) {
			fd := s.Register()
			s.Do("open", unix.SYS_OPENAT, unix.AT_FDCWD, os.DevNull, unix.O_RDONLY, 0).Into(fd)
			s.Do("too short", unix.SYS_READ, fd, unsafe.Pointer(new([8]byte)), 8).Want(8)
		},
	} {
		var s Script
		add(&s)
		_, err := rooted(t, nil, &s)
		var e *Error
		if !errors.As(err, &e) || e.Step != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("children are left: %v", err)
	}
	var s Script
	for range maxRegs + 1 {
		s.Register()
	}
	if _, err := rooted(t, nil, &s); err == nil {
		t.Error("a script with too many registers was started")
	}
}

// TestStartInit: the idle process reaps orphans.
func TestStartInit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a pid namespace is root's")
	}
	const key = "AXO_TEST_START_INIT"
	if os.Getenv(key) == "" { // again, where its mounts are nobody else's
		c := exec.Command("unshare", "-m", os.Args[0], "-test.run=^TestStartInit$", "-test.v")
		c.Env = append(os.Environ(), key+"=1")
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	init, err := StartInit("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.PidfdSendSignal(int(init.Fd()), unix.SIGKILL, nil, 0) }()
	var s Spawner
	defer s.Close()
	if err := s.Enter(init, unix.CLONE_NEWPID); err != nil {
		t.Fatal(err)
	}
	// The orphan tells who it was, ends, and is gone.
	pid, out, err := shell(t, &s, `orphan=$( (sh -c 'echo $$; exec >/dev/null; sleep 0.05' &) ); test -d /proc/$orphan && echo there
		while test -d /proc/$orphan; do sleep 0.02; done; echo gone; grep Name: /proc/1/status`, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(out)
	awaited(t, pid)
	if f := strings.Fields(string(b)); len(f) != 4 || f[0] != "there" || f[1] != "gone" || f[2] != "Name:" {
		t.Errorf("said %q", b)
	}
}
