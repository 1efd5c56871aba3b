//go:build linux

package spawn

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/internal/cgroup"
)

// unified is a place for control groups of version 2, which needs no controllers
// here.
func unified(t *testing.T) *cgroup.Tree {
	t.Helper()
	tree := cgroup.FindUnified()
	why := tree.Why(cgroup.Core)
	switch {
	case os.Geteuid() != 0:
		t.Skip("SKIPPED: takes root")
	case tree.Has(cgroup.Core):
		return tree
	case os.Getenv("AXO_REQUIRE") != "":
		t.Fatal(why)
	}
	t.Skip("SKIPPED: " + why)
	return nil
}

// TestGroup makes children in a group, with both ways to make one, by somebody who
// has no right to the group but the one to make members.
func TestGroup(t *testing.T) {
	tree := unified(t)
	const keeper = 54321
	g, err := tree.CreateKept(fmt.Sprintf("axo-test-spawn-%d", os.Getpid()), cgroup.Limits{}, keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	var s Spawner
	defer s.Close()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Spec){
		"vfork": func(*Spec) {},
		"own stack": func(s *Spec) {
			s.Namespaces = unix.CLONE_NEWUSER
			s.Map = func(pid int) error {
				return os.WriteFile(fmt.Sprintf("/proc/%d/uid_map", pid), []byte("0 100000 1\n"), 0)
			}
		},
	} {
		for _, in := range []struct {
			what string
			dir  *os.File
			want string
		}{{"members", g.Into(), "/axo-members"}, {"keeper", g.Keeper(), "/axo-keeper"}} {
			t.Run(name+"/"+in.what, func(t *testing.T) {
				pid, out, err := shell(t, &s, "grep ^0: /proc/self/cgroup", func(s *Spec) {
					s.Group = in.dir
					change(s)
				})
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(out)
				awaited(t, pid)
				if !strings.HasSuffix(strings.TrimSpace(string(b)), in.want) {
					t.Errorf("in %q, want one that ends with %s", b, in.want)
				}
			})
		}
	}
	t.Run("namespace", func(t *testing.T) {
		pid, out, err := shell(t, &s, "cat /proc/self/cgroup", func(s *Spec) { s.Group, s.NewGroupNamespace = g.Into(), true })
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(out)
		awaited(t, pid)
		for line := range strings.Lines(string(b)) {
			if !strings.HasSuffix(line, ":/\n") {
				t.Errorf("the program sees %q", line)
			}
		}
	})
	// The keeper is in his group, is not root, and makes members by the directory
	// that he was given. Who is in another group does not.
	for _, in := range []struct {
		name string
		dir  *os.File
		want int
	}{{"by the keeper", g.Keeper(), 0}, {"by the same user elsewhere", nil, int(unix.EACCES)}} {
		t.Run(in.name, func(t *testing.T) {
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			pid, out, err := shell(t, &s, "exec /proc/self/fd/3 -test.run '^TestGroupMember$'", func(s *Spec) {
				f, err := os.Open(exe)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
				s.Files = append(s.Files, f, g.Into())
				s.Group, s.Env = in.dir, []string{memberEnv + "=1"}
				s.Cred = &Credential{UID: keeper, GID: keeper}
			})
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(out)
			if ws := awaited(t, pid); ws.ExitStatus() != in.want {
				t.Errorf("status %d, want %d: %s", ws.ExitStatus(), in.want, b)
			}
		})
	}
	if now, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(now) != string(own) {
		t.Errorf("this process is in %s, and was in %s", now, own)
	}
}

const memberEnv = "AXO_TEST_SPAWN_MEMBER"

// TestGroupMember is what TestGroup runs as another user: it makes a child in the
// group of descriptor 4, and ends with the number of the error.
func TestGroupMember(t *testing.T) {
	if os.Getenv(memberEnv) == "" {
		t.Skip("TestGroup runs it")
	}
	var s Spawner
	pid, _, err := shell(t, &s, "exit 0", func(s *Spec) { s.Group = os.NewFile(4, "group") })
	if err != nil {
		fmt.Println(err)
		e := unix.EINVAL
		if n, ok := unwrapped(err).(syscall.Errno); ok {
			e = n
		}
		os.Exit(int(e))
	}
	os.Exit(awaited(t, pid).ExitStatus())
}

func unwrapped(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}

// TestGroupNamespace: programs see the groups of version 1 that a namespace was
// made in as the roots, and this process stays where it is.
func TestGroupNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: takes root")
	}
	tree := cgroup.Find()
	g, err := tree.Create(fmt.Sprintf("axo-test-namespace-%d", os.Getpid()), cgroup.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := GroupNamespace(g.Joins())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var s Spawner
	defer s.Close()
	if err := s.Enter(ns, unix.CLONE_NEWCGROUP); err != nil {
		t.Fatal(err)
	}
	pid, out, err := shell(t, &s, "cat /proc/self/cgroup", func(s *Spec) { s.Tasks = g.Joins() })
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(out)
	awaited(t, pid)
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, ":/\n") {
			t.Errorf("the program sees %q", line)
		}
	}
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(after) != string(before) {
		t.Errorf("this process is in %s, and was in %s: %v", after, before, err)
	}
	if pids, err := g.PIDs(); err != nil || len(pids) > 0 {
		t.Errorf("%v are members: %v", pids, err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := GroupNamespace([]*os.File{null}); err == nil {
		t.Error("a namespace was made in groups that could not be joined")
	}
}
