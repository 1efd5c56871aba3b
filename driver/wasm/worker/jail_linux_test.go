package worker

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/internal/landlock"
)

const jailEnv = "AXO_TEST_JAIL"

func TestMain(m *testing.M) {
	if mode := os.Getenv(jailEnv); mode != "" {
		jailedChild(mode)
		return
	}
	os.Exit(m.Run())
}

// attacks are tried from every thread. Each returns nil if it works.
var attacks = map[string]func() error{
	"open": func() error {
		fd, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	},
	"socket": func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	},
	"exec": func() error {
		// A path that is not there: ENOENT means that the call was let through.
		err := unix.Exec("/nonexistent", []string{"x"}, nil)
		if err == unix.ENOENT {
			return nil
		}
		return err
	},
	"fork": func() error {
		pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if e == 0 && pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		if e != 0 {
			return e
		}
		var ws unix.WaitStatus
		_, err := unix.Wait4(int(pid), &ws, 0, nil)
		return err
	},
	"kill": func() error { return unix.Kill(os.Getppid(), 0) },
	"signals of a file": func() error {
		_, err := unix.FcntlInt(1, unix.F_SETOWN, os.Getppid())
		return err
	},
	"ptrace": func() error {
		// Of a process that cannot exist: ESRCH means that it was let through.
		_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1<<30, 0, 0, 0, 0)
		return letThrough(e)
	},
	"mount": func() error {
		err := unix.Mount("", "/nonexistent", "tmpfs", 0, "")
		if err == unix.ENOENT {
			return nil
		}
		return err
	},
	"memfd":    func() error { fd, err := unix.MemfdCreate("x", 0); unix.Close(fd); return err },
	"io_uring": func() error { _, _, e := unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, 0, 0); return letThrough(e) },
	"bpf":      func() error { _, _, e := unix.RawSyscall(unix.SYS_BPF, 0, 0, 0); return letThrough(e) },
	"unshare":  func() error { return unix.Unshare(unix.CLONE_NEWUTS) },
}

// letThrough is for calls with arguments that cannot work: any error but EPERM
// means that the kernel looked at them.
func letThrough(e syscall.Errno) error {
	if e == unix.EPERM || e == unix.ENOSYS {
		return e
	}
	return nil
}

// report is one line that the child prints.
type report struct {
	Thread  string
	Attack  string
	Worked  bool
	Message string
}

// jailedChild makes threads, jails itself (in the mode "control" it does not),
// makes more threads, and tries every attack from each.
func jailedChild(mode string) {
	const each = 4
	start, stop := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	thread := func(name string) {
		runtime.LockOSThread()
		<-start
		for what, attack := range attacks {
			err := attack()
			mu.Lock()
			b, _ := json.Marshal(report{name, what, err == nil, fmt.Sprint(err)})
			fmt.Println(string(b))
			mu.Unlock()
		}
		wg.Done()
		<-stop
	}
	dir, err := os.Open(os.Getenv("AXO_TEST_DIR"))
	if err != nil {
		panic(err)
	}
	for i := range each {
		wg.Add(1)
		go thread(fmt.Sprintf("before %d", i))
	}
	if mode == "jail" {
		j, err := newRunJail(dir, nil, nil)
		if err == nil {
			err = j.tighten(false)
		}
		if err != nil {
			fmt.Println("JAIL FAILED", err)
			os.Exit(1)
		}
	}
	for i := range each {
		wg.Add(1)
		go thread(fmt.Sprintf("after %d", i))
	}
	close(start)
	wg.Wait()
	runtime.GC()
	fmt.Println("READY")
	// The parent looks at the threads, and then closes stdin.
	bufio.NewReader(os.Stdin).ReadByte()
	os.Exit(0)
}

// TestJailHoldsEveryThread runs the attacks in a jailed process, and as a
// control in one that is not: there each must work.
func TestJailHoldsEveryThread(t *testing.T) {
	for _, mode := range []string{"control", "jail"} {
		t.Run(mode, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), jailEnv+"="+mode, "AXO_TEST_DIR="+t.TempDir())
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer in.Close()
			seen := 0
			lines := bufio.NewScanner(out)
			for lines.Scan() && lines.Text() != "READY" {
				var r report
				if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
					t.Fatalf("child said %q", lines.Text())
				}
				seen++
				if mode == "control" && os.Getuid() != 0 && (r.Attack == "mount" || r.Attack == "unshare") {
					continue // needs privileges in any case
				}
				if r.Worked != (mode == "control") {
					t.Errorf("thread %s: %s worked: %t (%s)", r.Thread, r.Attack, r.Worked, r.Message)
				}
			}
			if seen != 8*len(attacks) {
				t.Fatalf("%d reports, want %d", seen, 8*len(attacks))
			}
			if mode == "jail" {
				checkThreads(t, cmd.Process.Pid)
			}
		})
	}
}

// checkThreads reads the status of every thread (proc_pid_status(5)).
func checkThreads(t *testing.T, pid int) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) < 9 {
		t.Fatalf("%d threads (%v)", len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, l := range strings.Split(string(b), "\n") {
			k, v, _ := strings.Cut(l, ":")
			got[k] = strings.TrimSpace(v)
		}
		for k, want := range map[string]string{
			"Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0000000000000000", "CapPrm": "0000000000000000",
		} {
			if got[k] != want {
				t.Errorf("%s: %s is %s, want %s", f, k, got[k], want)
			}
		}
	}
}

// TestLandlockJudgesOldDescriptors: a directory that was open before, and is
// not listed, is of no use afterwards; a listed one is, for what it is listed
// for.
func TestLandlockJudgesOldDescriptors(t *testing.T) {
	if os.Getenv("AXO_TEST_LANDLOCK") != "1" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestLandlockJudgesOldDescriptors$", "-test.v")
		cmd.Env = append(os.Environ(), "AXO_TEST_LANDLOCK=1")
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), landlock.ErrMissing.Error()) && os.Getenv("AXO_REQUIRE") == "" {
			t.Skipf("SKIPPED: %v", landlock.ErrMissing)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dirs := map[string]*os.File{}
	for _, name := range []string{"listed", "writable", "other"} {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, "f"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		dirs[name] = f
	}
	if err := dropCapabilities(false); err != nil {
		t.Fatal(err)
	}
	if _, err := restrict([]landlockDir{{dirs["listed"], false}, {dirs["writable"], true}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir   string
		flags int
		works bool
	}{
		{"listed", unix.O_RDONLY, true}, {"listed", unix.O_WRONLY, false}, {"listed", unix.O_RDONLY | unix.O_TRUNC, false},
		{"writable", unix.O_RDWR | unix.O_TRUNC, true}, {"other", unix.O_RDONLY, false}, {"other", unix.O_WRONLY, false},
	} {
		fd, err := unix.Openat(int(dirs[c.dir].Fd()), "f", c.flags, 0)
		if err == nil {
			unix.Close(fd)
		}
		if (err == nil) != c.works {
			t.Errorf("%s with flags %#x: %v", c.dir, c.flags, err)
		}
	}
	// The temporary directories cannot be removed from in here.
	os.Exit(map[bool]int{true: 1, false: 0}[t.Failed()])
}
