package escape

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

// TestWorkingDirectoryByDescriptor is CVE-2024-21626: a working directory that is
// named by a descriptor of whoever starts the program.
func TestWorkingDirectoryByDescriptor(t *testing.T) {
	l := newLab(t)
	t.Run("control", func(t *testing.T) {
		// A starter that leaves a directory of the host open, in a root of its own.
		dir, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		arg, err := json.Marshal(l.inside)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/attack", "leaks", string(arg))
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: l.dir}
		cmd.ExtraFiles = []*os.File{dir}
		cmd.Dir = "/"
		if err := os.Mkdir(filepath.Join(l.dir, "proc"), 0o755); err != nil {
			t.Fatal(err)
		}
		out := inMountNamespace(t, func() ([]byte, error) {
			if err := unix.Mount("proc", filepath.Join(l.dir, "proc"), "proc", 0, ""); err != nil {
				return nil, err
			}
			return cmd.Output()
		})
		found := parse(out)
		for _, thing := range []string{"secret through a descriptor"} {
			if found[thing].verdict != "ESCAPED" {
				t.Errorf("%s: %+v", thing, found)
			}
		}
	})
	for _, d := range everywhere(t) {
		t.Run(d.Name(), func(t *testing.T) {
			sb, _ := l.create(t, d)
			for n := range 24 {
				for _, form := range []string{"/proc/self/fd/%d", "/proc/self/fd/%d/../../..", "/proc/1/fd/%d", "/dev/fd/%d"} {
					p := l.process(t, "leaks", nil)
					p.Cwd = fmt.Sprintf(form, n)
					out, _, err := execute(t, sb, p)
					if err == nil {
						judge(t, d.Name(), parse(out), nil)
					}
				}
				if testing.Short() && n > 8 {
					break
				}
			}
		})
	}
}

// inMountNamespace calls f on a thread with a mount namespace of its own.
func inMountNamespace(t *testing.T, f func() ([]byte, error)) (out []byte) {
	t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err = enterMountNamespace(); err == nil {
			out, err = f()
		}
	}()
	<-done
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return out
}

// TestRuntimesProgram is CVE-2019-5736 as it was done: a script whose interpreter
// is /proc/self/exe makes the one who starts it run himself, and another process
// waits for that to write to his program.
func TestRuntimesProgram(t *testing.T) {
	l := newLab(t)
	script := filepath.Join(l.dir, "script")
	if err := os.WriteFile(script, []byte("#!/proc/self/exe\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range everywhere(t) {
		for _, user := range []string{"", "0"} {
			t.Run(d.Name()+" as "+user, func(t *testing.T) {
				sb, _ := l.create(t, d)
				p := l.process(t, "exe", func(x *Target) { x.Loop = true })
				p.User = user
				var out bytes.Buffer
				watch, err := sb.Exec(t.Context(), p, isolation.Stdio{Stdout: &out})
				if err != nil {
					t.Fatal(err)
				}
				for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
					for _, args := range [][]string{{programDir + "/script"}, {"/proc/self/exe"}, {"/proc/1/exe"}} {
						q := isolation.ProcessSpec{Args: args, Cwd: "/", User: user, Limits: isolation.Limits{Wall: time.Second}}
						if proc, err := sb.Exec(t.Context(), q, isolation.Stdio{}); err == nil {
							_, _ = proc.Wait(t.Context())
						}
					}
				}
				if _, err := watch.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				judge(t, d.Name(), parse(out.Bytes()), nil)
			})
		}
	}
}

// TestHostileRoot: a root file system that leads what is mounted, masked or made
// in it elsewhere. CVE-2025-31133, 52565 and 52881 went by /dev/null, /dev/console
// and /proc in the root.
func TestHostileRoot(t *testing.T) {
	l := newLab(t)
	drivers := engines(t)
	control := map[string]map[string]finding{}
	for _, a := range []string{"files", "devices", "leaks"} {
		control[a] = l.control(t, a)
	}
	for name, links := range map[string]map[string]string{
		"devices":      {"dev/null": "/proc/sysrq-trigger", "dev/console": "/proc/sys/kernel/core_pattern", "dev/fd": "/proc/1/root", "dev/pts": "/proc/sys", "dev/shm": "/proc/1"},
		"dev":          {"dev": "/proc", "sys": "/proc"},
		"proc":         {"proc": "/tmp", "sys": "tmp"},
		"up":           {"proc": "../../../../../../proc", "dev": "../../../../../dev", "sys": "../../../../sys"},
		"etc":          {"etc": "/proc/sys/kernel"},
		"host names":   {"etc/hosts": l.outside.Secret, "etc/hostname": "../../../.." + l.outside.Secret, "etc/resolv.conf": "/proc/1/root" + l.outside.Secret},
		"mount points": {"opt": "../../../../..", "shared": l.outside.Shared, "readonly": "/"},
		"loop":         {"proc": "sys", "sys": "proc"},
	} {
		root := filepath.Join(t.TempDir(), "root")
		for _, dir := range []string{"tmp", "opt/escape", "dev", "etc"} {
			if links[strings.Split(dir, "/")[0]] != "" {
				continue
			}
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for from, to := range links {
			if err := os.Symlink(to, filepath.Join(root, from)); err != nil {
				t.Fatal(err)
			}
		}
		before := string(must(os.ReadFile(l.outside.Secret)))
		for _, d := range drivers {
			t.Run(d.Name()+"/"+name, func(t *testing.T) {
				sb, _, err := l.tryCreate(t, d, func(s *isolation.Spec) { s.Root.Path = root })
				if errors.Is(err, isolation.ErrUnsupported) && !strings.Contains(err.Error(), "idmapped") {
					missing(t, "a root by path: "+err.Error())
				}
				if err != nil {
					t.Logf("refused: %v", err) // as good as held
					return
				}
				for attack, c := range control {
					p := l.process(t, attack, nil)
					p.User = "0"
					out, exit, err := execute(t, sb, p)
					if err != nil {
						t.Logf("%s does not run: %v", attack, err)
						continue
					}
					if exit.Code != 0 {
						t.Errorf("%s: %v %s", attack, exit, out)
					}
					judge(t, d.Name(), parse(out), c)
				}
			})
		}
		if after := string(must(os.ReadFile(l.outside.Secret))); after != before {
			t.Errorf("%s: the secret was written to: %q", name, after)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestTerminal is CVE-2017-5226: what runs in a sandbox puts input into the
// terminal of the one who started it.
func TestTerminal(t *testing.T) {
	l := newLab(t)
	state := t.TempDir()
	arg, err := json.Marshal(Target{})
	if err != nil {
		t.Fatal(err)
	}
	// injected starts a program on a terminal of its own, and returns what can be
	// read from it afterwards.
	injected := func(t *testing.T, args ...string) string {
		t.Helper()
		master, slave := newPTY(t)
		cmd := exec.Command(args[0], args[1:]...)
		var out bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v %s", err, out.Bytes())
		}
		if !strings.Contains(out.String(), "TIOCSTI") {
			t.Fatalf("the attack did not run: %s", out.Bytes())
		}
		fd := int(slave.Fd())
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, _ := unix.Read(fd, b)
		master.Close()
		return string(b[:max(n, 0)])
	}
	t.Run("control", func(t *testing.T) {
		if got := injected(t, filepath.Join(l.dir, "attack"), "terminal", string(arg)); got != "x\n" {
			t.Skipf("SKIPPED, NOT PROVED: outside, %q came: this kernel has no TIOCSTI", got)
		}
	})
	for _, d := range engines(t) {
		for _, flags := range [][]string{{"-t", "-i"}, {"-i"}, {}} {
			t.Run(d.Name()+" "+strings.Join(flags, " "), func(t *testing.T) {
				args := append([]string{filepath.Join(programs, "axo"), "--state-dir", state, "run", "--engine", d.Name(), "--dir", l.dir + ":" + programDir + ":ro"}, flags...)
				args = append(args, "--", programDir+"/attack", "terminal", string(arg))
				if got := injected(t, args...); got != "" {
					t.Errorf("%q came to the terminal", got)
				}
			})
		}
	}
}

// newPTY makes a terminal.
func newPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		missing(t, "terminals: "+err.Error())
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// TestTrapsInSharedDirectory: what a sandbox leaves in a directory of the host
// has no power there, and belongs to whom the directory belongs.
func TestTrapsInSharedDirectory(t *testing.T) {
	l := newLab(t)
	const owner = 54321
	if err := os.Chown(l.shared, owner, owner); err != nil {
		t.Fatal(err)
	}
	for _, d := range engines(t) {
		t.Run(d.Name(), func(t *testing.T) {
			sb, shared := l.create(t, d)
			if !shared {
				t.Skip("SKIPPED, NOT PROVED: it has no writable directories of the host") // see unlike
			}
			out, _, err := execute(t, sb, l.process(t, "shared", nil))
			if err != nil {
				t.Fatal(err)
			}
			if f := parse(out); f["write"].verdict == "held" {
				t.Fatalf("nothing could be written: %s", out)
			}
			entries, err := os.ReadDir(l.shared)
			if err != nil || len(entries) == 0 {
				t.Fatal(entries, err)
			}
			for _, e := range entries {
				var st unix.Stat_t
				if err := unix.Lstat(filepath.Join(l.shared, e.Name()), &st); err != nil {
					t.Fatal(err)
				}
				if st.Uid != owner || st.Gid != owner || st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 || st.Mode&unix.S_IFMT != unix.S_IFREG {
					t.Errorf("%s: mode %o, owner %d:%d", e.Name(), st.Mode, st.Uid, st.Gid)
				}
				if n, err := unix.Lgetxattr(filepath.Join(l.shared, e.Name()), "security.capability", nil); err == nil {
					t.Errorf("%s has capabilities (%d bytes)", e.Name(), n)
				}
			}
		})
	}
}
