package journal

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const crashEnv = "AXO_TEST_JOURNAL"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashEnv); dir != "" {
		if os.Getenv(keepEnv) != "" {
			hold(dir)
		}
		leave(dir)
		return
	}
	os.Exit(m.Run())
}

// leave journals a child, tells its number, and waits to be killed.
func leave(dir string) {
	j, err := Open(dir)
	if err != nil {
		panic(err)
	}
	e, err := j.Begin("crash")
	if err != nil {
		panic(err)
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	if err := e.AddProcess(cmd.Process.Pid); err != nil {
		panic(err)
	}
	fmt.Println(cmd.Process.Pid)
	time.Sleep(time.Hour)
}

func entries(t *testing.T, dir string) int {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestSweepAfterAKill(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child := "/proc/" + strings.TrimSpace(line)
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Of a live owner nothing is touched.
	if rep := j.Sweep(); rep.Entries != 0 || len(rep.Errors) != 0 {
		t.Fatalf("while it lives: %+v", rep)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := os.Stat(child); err != nil {
		t.Fatalf("the child went by itself: %v", err)
	}
	if rep := j.Sweep(); rep.Entries != 1 || len(rep.Removed) != 1 || len(rep.Errors) != 0 {
		t.Fatalf("after the kill: %+v", rep)
	}
	for range 1000 {
		b, err := os.ReadFile(child + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			if n := entries(t, dir); n != 0 {
				t.Errorf("%d entries are left", n)
			}
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the child still runs")
}

func TestAnotherProcessOfTheSameNumberIsNotKilled(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if was, err := killProcess(cmd.Process.Pid, start+1); was || err != nil {
		t.Errorf("%t %v", was, err)
	}
	if now, err := startTime(cmd.Process.Pid); err != nil || now != start {
		t.Errorf("it is gone: %v", err)
	}
}

func TestForeignGroupsAreNotRemoved(t *testing.T) {
	for _, p := range []string{"/", "/tmp/axo-x", "/sys/fs/cgroup/../axo-x", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/other"} {
		if _, err := removeGroup(p); err == nil {
			t.Errorf("%s was taken for one of ours", p)
		}
	}
}

func TestEntriesOfAnEarlierBootAreVoid(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	old := *j
	old.self.Boot = "another"
	e, err := old.Begin("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.AddProcess(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if rep := j.Sweep(); rep.Entries != 1 || len(rep.Removed) != 0 {
		t.Errorf("%+v", rep)
	}
	if n := entries(t, dir); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

func TestHalfAnEntry(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "999999999-1-x.json.tmp"), []byte(`{"own`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "1-1-y.json"), []byte(`{"own`), 0o600); err != nil {
		t.Fatal(err)
	}
	if rep := j.Sweep(); len(rep.Errors) != 1 || entries(t, dir) != 1 {
		t.Errorf("%+v, %d entries", rep, entries(t, dir))
	}
	if _, err := j.Begin("a/b"); err == nil {
		t.Error("an id with a slash was taken")
	}
}

// TestOthersMayNotWrite: an entry is an order to kill, so it must be ours.
func TestOthersMayNotWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), Dir)
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("others can write to it: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("another's: %v", err)
	}
}
