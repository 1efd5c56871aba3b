// Command demo runs the main job on real input, and prints what ran where and
// how long each phase took: a JSON tool compiled from Go, a hash compiled from
// C, a trusted native tool, a loop that is stopped at its deadline, Python in a
// container where this host has them, and Python that asks for a virtual
// machine: what cannot be met is refused, with a reason for each tier.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/axocoatl/isolation/internal/testprog"
)

// result is the part of axo's --json that the demo shows.
type result struct {
	Tier   string `json:"tier"`
	Engine string `json:"engine"`
	Stdout string `json:"stdout"`
	Exit   struct {
		Code   int    `json:"code"`
		Reason string `json:"reason"`
		Detail string `json:"detail"`
	} `json:"exit"`
	Usage struct {
		Wall   float64            `json:"wall_ms"`
		Memory int64              `json:"peak_memory_bytes"`
		Phases map[string]float64 `json:"phases"`
	} `json:"usage"`
	Error *struct {
		Class   string `json:"class"`
		Message string `json:"message"`
	} `json:"error"`
}

func main() {
	if err := demo(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo() error {
	axo, err := filepath.Abs("bin/axo")
	if err != nil {
		return err
	}
	state, err := os.MkdirTemp("", "axo-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	d := demonstration{axo, state}

	order := `{"customer":"Acme","items":[{"name":"bolt","price":0.25,"count":400},{"name":"gear","price":12.5,"count":3}]}`
	tool, err := testprog.BuildGo("tool")
	if err != nil {
		return err
	}
	for _, title := range []string{"a JSON tool, compiled from Go to WASI: compiled on its first run", "the same again: from the cache"} {
		if err := d.run(title, order, "exited", "--timeout", "5s", "--memory", "64M", tool); err != nil {
			return err
		}
	}
	sha, err := testprog.BuildC("sha256")
	switch {
	case errors.Is(err, testprog.ErrNoCompiler):
		fmt.Printf("\n== a hash, compiled from C: left out, %v\n", err)
	case err != nil:
		return err
	default:
		if err := d.run("SHA-256 of 1 MiB of input, compiled from C", strings.Repeat("axocoatl", 1<<17), "exited", "--timeout", "5s", sha); err != nil {
			return err
		}
	}
	if err := d.run("a native tool that the operator trusts", "", "exited", "--timeout", "5s", "--native", "--", "uname", "-sm"); err != nil {
		return err
	}
	loop, err := testprog.BuildWat("loop")
	if err != nil {
		return err
	}
	if err := d.run("a loop without end, with a deadline of 300 ms", "", "timeout_wall", "--timeout", "300ms", loop); err != nil {
		return err
	}
	summary := "import json,sys; items=json.load(sys.stdin)['items']; print(json.dumps({'total': sum(i['price']*i['count'] for i in items)}))"
	if err := d.run("Python, in a container where this host has both", order, "exited|refused|not found", "--timeout", "10s", "--memory", "128M", "--python", summary); err != nil {
		return err
	}
	return d.run("Python, in a virtual machine or not at all", order, "exited|refused", "--timeout", "10s", "--min-tier", "microvm", "--python", summary)
}

type demonstration struct{ axo, state string }

// run runs axo and fails unless it ended as wanted: a reason or "refused", or
// several between bars.
func (d demonstration) run(title, stdin, want string, args ...string) error {
	shown := make([]string, len(args))
	for i, a := range args {
		if shown[i] = a; filepath.IsAbs(a) {
			shown[i] = filepath.Base(a)
		}
	}
	fmt.Printf("\n== %s\n   axo run %s\n", title, strings.Join(shown, " "))
	cmd := exec.Command(d.axo, append([]string{"run", "--state-dir", d.state, "--json"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	runErr := cmd.Run()
	var r result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return fmt.Errorf("%v: %q %q: %w", runErr, out.String(), errOut.String(), err)
	}
	got := r.Exit.Reason
	if r.Error != nil {
		if got = r.Error.Class; got == "unsupported" {
			got = "refused"
		}
		fmt.Println("   " + strings.ReplaceAll(r.Error.Message, "\n", "\n   "))
	} else {
		fmt.Printf("   ran in    %s, engine %s\n", r.Tier, r.Engine)
		fmt.Printf("   ended     %s, status %d %s\n", r.Exit.Reason, r.Exit.Code, r.Exit.Detail)
		if r.Stdout != "" {
			fmt.Printf("   output    %s\n", strings.TrimSpace(r.Stdout))
		}
		p := r.Usage.Phases
		memory := "not known"
		if r.Usage.Memory >= 0 {
			memory = fmt.Sprintf("%d KiB", r.Usage.Memory>>10)
		}
		fmt.Printf("   phases    select %.2f, create %.2f, start %.2f, run %.2f, teardown %.2f ms; peak memory %s\n",
			p["select_ms"], p["create_ms"], p["start_ms"], p["run_ms"], p["teardown_ms"], memory)
	}
	if !slices.Contains(strings.Split(want, "|"), got) {
		return fmt.Errorf("%s: ended as %s, want %s", title, got, want)
	}
	return nil
}
