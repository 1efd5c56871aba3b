package none_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/none"
	"github.com/axocoatl/isolation/internal/journal"
)

// recorder is the journal as the driver sees it.
type recorder struct{ *journal.Journal }

func (r recorder) Record(id string) (none.Entry, error) { return r.Begin(id) }

// TestKilledHost kills a host program that has a sandbox. Its programs die with
// it; what they left in the background is in the recorded cgroup.
func TestKilledHost(t *testing.T) {
	for _, mode := range []string{"cgroup", "plain"} {
		t.Run(mode, func(t *testing.T) {
			if mode == "cgroup" {
				withCgroup(t)
			}
			direct, behind, dir := token(), token(), t.TempDir()
			argv := helper("host", mode, dir, direct, behind)
			c := exec.Command(argv[0], argv[1:]...)
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			defer c.Process.Kill() // if the test fails before it does
			if line, _ := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
				t.Fatalf("the host says %q", line)
			}
			for end := time.Now().Add(10 * time.Second); holders(direct) != 1 || holders(behind) != 1; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d and %d processes run, want one each", holders(direct), holders(behind))
				}
			}
			if err := c.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = c.Wait()
			for end := time.Now().Add(5 * time.Second); holders(direct) != 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the program outlived the host program")
				}
			}
			j, err := journal.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			rep := j.Sweep()
			if mode == "plain" { // told in Features.Warnings
				for _, pid := range sleepers(behind) {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
				return
			}
			if len(rep.Errors) > 0 || rep.Entries != 1 || len(rep.Removed) == 0 {
				t.Errorf("the sweep says %+v", rep)
			}
			for end := time.Now().Add(5 * time.Second); holders(behind) != 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("processes are left after the sweep")
				}
			}
			if left, _ := filepath.Glob("/sys/fs/cgroup/*/axo-none-killed-*"); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func init() {
	helpers["host"] = func(args []string) int {
		j, err := journal.Open(args[1])
		if err != nil {
			fmt.Println(err)
			return 1
		}
		d, err := none.New(none.Config{NoCgroup: args[0] == "plain", Recorder: recorder{j}})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		sb, err := d.Create(context.Background(), "killed", isolation.Spec{Requirement: isolation.NativeTrusted})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		if _, err := sb.Exec(context.Background(), sh("setsid sleep "+args[3]+" & exec sleep "+args[2]), isolation.Stdio{}); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("up")
		time.Sleep(time.Hour)
		return 0
	}
}

// TestNested runs the driver inside its own sandbox: as root, and as a user who
// can only lower the limits that he was given.
func TestNested(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "axo-none-nested-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // another user runs it as well
		t.Fatal(err)
	}
	program := filepath.Join(dir, "nested")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"", "4000:4000"} {
		if user != "" && os.Geteuid() != 0 {
			continue
		}
		eachMode(t, func(t *testing.T, d *none.Driver) {
			sb := create(t, d, isolation.Resources{})
			defer remove(t, sb)
			var out bytes.Buffer
			p := isolation.ProcessSpec{Args: []string{program, helperPrefix + "nested"}, User: user}
			if e := run(t, sb, p, isolation.Stdio{Stdout: &out, Stderr: &out}); !e.Success() || out.String() != "5 1\n" {
				t.Errorf("%+v, %q", e, out.String())
			}
		})
	}
}

func init() {
	helpers["nested"] = func([]string) int {
		ctx := context.Background()
		d, err := none.New(none.Config{NoCgroup: true})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer d.Close()
		for range 20 { // any brand must do
			sb, err := d.Create(ctx, "nested", isolation.Spec{Requirement: isolation.NativeTrusted})
			if err != nil {
				fmt.Println(err)
				return 1
			}
			p, err := sb.Exec(ctx, sh(":"), isolation.Stdio{})
			if err != nil {
				fmt.Println(err)
				return 1
			}
			_, _ = p.Wait(ctx)
			_ = sb.Delete(ctx)
		}
		sb, _ := d.Create(ctx, "nested", isolation.Spec{Requirement: isolation.NativeTrusted})
		p, err := sb.Exec(ctx, sh("setsid sleep 1000 >/dev/null 2>&1 & exit 5"), isolation.Stdio{})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		e, _ := p.Wait(ctx)
		fmt.Println(e.Code, e.Survivors)
		return 0
	}
}
