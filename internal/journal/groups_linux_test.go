package journal

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/axocoatl/isolation/internal/cgroup"
)

// TestRemovesKeptGroups: of a sandbox that was killed with all of its three groups,
// each has to go before the one that it is in.
func TestRemovesKeptGroups(t *testing.T) {
	tree := cgroup.FindUnified()
	if !tree.Has(cgroup.Core) {
		if os.Getenv("AXO_REQUIRE") != "" && os.Geteuid() == 0 {
			t.Fatal(tree.Why(cgroup.Core))
		}
		t.Skip("SKIPPED: " + tree.Why(cgroup.Core))
	}
	name := fmt.Sprintf("axo-test-kept-%d", os.Getpid())
	g, err := tree.CreateKept(name, cgroup.Limits{}, os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	paths := tree.KeptPaths(name, cgroup.Limits{})
	if len(paths) != 3 {
		t.Fatalf("%v", paths)
	}
	var killed []*exec.Cmd
	for _, dir := range []*os.File{g.Into(), g.Keeper()} {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill() }()
		if err := os.WriteFile(dir.Name()+"/cgroup.procs", fmt.Append(nil, cmd.Process.Pid), 0); err != nil {
			t.Fatal(err)
		}
		go func() { _ = cmd.Wait() }()
		killed = append(killed, cmd)
	}
	for _, p := range paths {
		if was, err := removeGroup(p); !was || err != nil {
			t.Errorf("%s: %v, %v", p, was, err)
		}
	}
	for _, cmd := range killed {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid)); err == nil && strings.HasPrefix(string(b), "sleep") {
			t.Errorf("process %d runs", cmd.Process.Pid)
		}
	}
	if _, err := os.Stat(paths[2]); !os.IsNotExist(err) {
		t.Errorf("%s: %v", paths[2], err)
	}
}
