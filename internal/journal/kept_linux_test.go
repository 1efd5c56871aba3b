package journal

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const keepEnv = "AXO_TEST_KEEP"

// hold has a kept sandbox, whose process is the argument, until it is killed.
func hold(dir string) {
	k, err := OpenKeep(dir)
	if err != nil {
		panic(err)
	}
	var pid int
	if _, err := fmt.Sscan(os.Getenv(keepEnv), &pid); err != nil {
		panic(err)
	}
	e, err := k.New("engine", "held")
	if err == nil {
		err = errors.Join(e.AddProcess(pid), e.SetData(map[string]int{"n": 7}), e.Note("one", "text"), e.Ready())
	}
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	time.Sleep(time.Hour)
}

func openKeep(t *testing.T) *Keep {
	t.Helper()
	k, err := OpenKeep(filepath.Join(t.TempDir(), KeptDir))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

// TestKeptIsHandedOn: what a killed process had is left alone by a sweep, is had by
// one process at a time, and is gone when its process is.
func TestKeptIsHandedOn(t *testing.T) {
	k, main := openKeep(t), sleeper(t)
	host := exec.Command(os.Args[0])
	host.Env = append(os.Environ(), crashEnv+"="+k.dir, keepEnv+"="+fmt.Sprint(main.Process.Pid))
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { host.Process.Kill(); host.Wait() }()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Adopt("engine", "held"); !errors.Is(err, ErrHeld) {
		t.Errorf("Adopt of what a living process has: %v", err)
	}
	if list, err := k.List("engine"); err != nil || len(list) != 1 || list[0].Holder != host.Process.Pid || list[0].Err != nil {
		t.Errorf("%+v, %v", list, err)
	}
	if rep := k.Sweep(); rep.Kept != 0 || rep.Entries != 0 || len(rep.Errors) != 0 {
		t.Errorf("%+v", rep)
	}
	host.Process.Kill()
	host.Wait()
	if rep := k.Sweep(); rep.Kept != 1 || rep.Entries != 0 || len(rep.Errors) != 0 {
		t.Errorf("%+v", rep)
	}
	if list, err := k.List("engine"); err != nil || len(list) != 1 || list[0].Holder != 0 || list[0].Err != nil {
		t.Errorf("%+v, %v", list, err)
	}
	e, err := k.Adopt("engine", "held")
	if err != nil {
		t.Fatal(err)
	}
	// In one process, too.
	if _, err := k.Adopt("engine", "held"); !errors.Is(err, ErrHeld) {
		t.Errorf("Adopt twice: %v", err)
	}
	if _, err := k.New("engine", "held"); !errors.Is(err, os.ErrExist) {
		t.Errorf("New of one that is there: %v", err)
	}
	var data struct{ N int }
	notes := map[string]string{}
	err = errors.Join(e.Data(&data), e.Notes(func(name string, b []byte, err error) { notes[name] = string(b) }))
	if err != nil || data.N != 7 || len(notes) != 1 || notes["one"] != `"text"` {
		t.Errorf("%v, %+v, %v", err, data, notes)
	}
	e.Release()
	main.Process.Kill()
	main.Wait()
	if list, err := k.List("engine"); err != nil || len(list) != 1 || !errors.Is(list[0].Err, ErrGone) {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := k.Adopt("engine", "held"); !errors.Is(err, ErrGone) {
		t.Errorf("Adopt of what has ended: %v", err)
	}
	if _, err := k.Adopt("engine", "held"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Adopt again: %v", err)
	}
	empty(t, k)
}

// empty fails unless nothing is written down.
func empty(t *testing.T, k *Keep) {
	t.Helper()
	for _, pattern := range []string{"*/*", "*/.*"} {
		if left, err := filepath.Glob(filepath.Join(k.dir, pattern)); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

// TestReleaseDespiteCopies: what is given up can be had, also while a child that is
// about to be another program has copies of the descriptors.
func TestReleaseDespiteCopies(t *testing.T) {
	k, err := OpenKeep(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	e, err := k.New("engine", "copied")
	if err == nil {
		err = e.Ready()
	}
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(e.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	name := filepath.Join(e.Dir(), fileLock)
	if held, err := lockedBy(name); err != nil || !held {
		t.Fatalf("before: %v, %v", held, err)
	}
	e.Release()
	if held, err := lockedBy(name); err != nil || held {
		t.Errorf("after: %v, %v", held, err)
	}
}

// TestKeptIsSwept: what is not ready, or whose boot is over, goes with all it left;
// the process of another boot is not touched.
func TestKeptIsSwept(t *testing.T) {
	k, main := openKeep(t), sleeper(t)
	temp := filepath.Join(filepath.Dir(k.dir), "temp")
	for what, change := range map[string]func(e *Kept) error{
		"half made": func(e *Kept) error { return nil },
		"removed":   func(e *Kept) error { return errors.Join(e.Ready(), e.Unready()) },
		"another boot": func(e *Kept) error {
			e.rec.Maker.Boot = "another"
			return e.Ready()
		},
	} {
		if err := os.Mkdir(temp, 0o700); err != nil {
			t.Fatal(err)
		}
		e, err := k.New("engine", "x")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(e.AddPath(KindTemp, temp), e.AddBrand(1<<62|12345<<24)); err != nil {
			t.Fatal(err)
		}
		if what == "another boot" {
			err = e.AddProcess(main.Process.Pid)
		} else {
			err = e.AddProcess(sleeper(t).Process.Pid)
		}
		if err = errors.Join(err, change(e)); err != nil {
			t.Fatal(err)
		}
		e.Release()
		if rep := k.Sweep(); rep.Entries != 1 || rep.Kept != 0 || len(rep.Errors) != 0 || !strings.Contains(fmt.Sprint(rep.Removed), temp) {
			t.Errorf("%s: %+v", what, rep)
		}
		if _, err := os.Stat(temp); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
		empty(t, k)
	}
	if _, err := startTime(main.Process.Pid); err != nil {
		t.Error("a process of this boot was taken for one of another")
	}
	// One that never got its name.
	if err := os.MkdirAll(filepath.Join(k.dir, "engine", ".1-1-x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if rep := k.Sweep(); len(rep.Errors) != 0 {
		t.Errorf("%+v", rep)
	}
	empty(t, k)
	for _, name := range []string{"", "..", ".x", "a/b", "a\x00"} {
		_, err := k.New("engine", name)
		_, aerr := k.Adopt(name, "x")
		if err == nil || aerr == nil {
			t.Errorf("%q was taken", name)
		}
	}
}

// FuzzKept has any bytes as a record: nobody is had by it but who is named rightly,
// and the sweep does not touch what is nobody's.
func FuzzKept(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"version":1,"engine":"engine","id":"x","maker":{"boot":"b"},"ready":true,"main":{"kind":"process","pid":1}}`))
	f.Add([]byte(`{"version":1,"engine":"engine","id":"x","maker":{"boot":"b"},"left":[{"kind":"temp","path":"/etc"}]}`))
	f.Add([]byte(`{"version":1,"engine":"engine","id":"x","maker":{"boot":"b"},"left":[{"kind":"cgroup","path":"/sys/fs/cgroup"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		k := openKeep(t)
		e, err := k.New("engine", "x")
		if err != nil {
			t.Fatal(err)
		}
		e.Release()
		canary := filepath.Join(filepath.Dir(filepath.Dir(k.dir)), "canary-"+filepath.Base(t.TempDir()))
		if err := os.WriteFile(canary, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(canary)
		if err := os.WriteFile(filepath.Join(k.dir, "engine", "x", fileRecord), b, 0o600); err != nil {
			t.Fatal(err)
		}
		// This process must not be among what a record may have killed.
		if strings.Contains(string(b), fmt.Sprint(os.Getpid())) || strings.Contains(string(b), `"pid"`) && strings.Contains(string(b), k.self.Boot) {
			t.Skip()
		}
		_, _ = k.List("engine")
		_ = k.Sweep()
		if e, err := k.Adopt("engine", "x"); err == nil {
			t.Errorf("%q was adopted", b)
			e.Release()
		}
		if _, err := os.Stat(canary); err != nil {
			t.Errorf("%q: %v", b, err)
		}
	})
}
