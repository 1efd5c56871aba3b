package wasm

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
)

// probeModule writes "ok\n" and exits; its source is probe.wat.
//
//go:embed probe.wasm
var probeModule []byte

// Probe runs a module through the whole path: compile worker, run worker,
// jail.
func (d *Driver) Probe(ctx context.Context) (isolation.Features, error) {
	f := isolation.Features{
		Tier: isolation.TierWASM, Engine: d.Name(), Version: d.engine.version,
		Runs: d.runs(), Interpreted: true, Languages: d.config.languages(),
		Options: []isolation.Option{isolation.OptionMounts, isolation.OptionWritable}, Abilities: []string{isolation.AbilityPrepare},
		Depends: d.launcher.depends(),
	}
	if dir := d.config.LanguagesDir; dir != "" {
		f.Depends = append(f.Depends, dir)
	}
	fail := func(err error) (isolation.Features, error) {
		return f, &isolation.Error{Op: "probe", Driver: d.Name(), Err: err}
	}
	id := fmt.Sprintf("probe-%d-%d", os.Getpid(), d.probes.Add(1))
	sb, err := d.Create(ctx, id, isolation.Spec{Requirement: isolation.WasmCompiled, Module: isolation.Module{Data: probeModule}, Tenant: id})
	if err != nil {
		return fail(err)
	}
	defer sb.Delete(context.WithoutCancel(ctx))
	var out bytes.Buffer
	p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{"probe"}}, isolation.Stdio{Stdout: &out})
	if err != nil {
		return fail(err)
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return fail(err)
	}
	if !exit.Success() || out.String() != "ok\n" {
		return fail(fmt.Errorf("probe module wrote %q and %v: %w", out.String(), exit, isolation.ErrUnavailable))
	}
	f.Enforces = d.enforces()
	f.Walls, f.Warnings = d.walls()
	return f, nil
}

// runs lists modules, and source that an interpreter is installed for.
func (d *Driver) runs() []isolation.Requirement {
	out := []isolation.Requirement{isolation.WasmCompiled}
	for _, name := range d.config.languages() {
		r := isolation.Arbitrary
		switch name {
		case "python":
			r = isolation.Python
		case "sh":
			r = isolation.Shell
		}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

func (d *Driver) enforces() []isolation.Enforcement {
	by := func(l isolation.Limit, by string) isolation.Enforcement {
		return isolation.Enforcement{Limit: l, Enforced: true, By: by}
	}
	return []isolation.Enforcement{
		by(isolation.LimitWall, "host timer, worker killed"),
		cpuTimeEnforcement,
		by(isolation.LimitFuel, d.engine.fuel),
		by(isolation.LimitOutput, "host counts, worker killed"),
		by(isolation.LimitMemory, "linear memory limit in the worker"+d.launcher.memoryWall()),
		by(isolation.LimitFiles, "count of descriptors in the worker"),
		by(isolation.LimitDisk, "count of bytes written to mounts"),
		{Limit: isolation.LimitPids, Reason: "a module cannot start processes or threads: there is nothing to count"},
		{Limit: isolation.LimitIO, Reason: "a worker's control group bounds memory only"},
		{Limit: isolation.LimitCPUs, Reason: "a module uses one core at most; less cannot be set"},
	}
}

// walls tells what stands around the module, as the last worker reported it.
func (d *Driver) walls() (walls []isolation.Wall, warnings []string) {
	walls = []isolation.Wall{
		{Name: "wasm", Present: true, Detail: "WebAssembly sandbox and WASI capabilities, " + d.engine.version},
		{Name: "process", Present: true, Detail: "worker of its own: " + d.launcher.describe()},
	}
	d.pool.mu.Lock()
	report := d.pool.walls
	d.pool.mu.Unlock()
	if report != nil {
		for _, w := range report.Walls {
			name, detail, _ := strings.Cut(w, ": ")
			walls = append(walls, isolation.Wall{Name: name, Present: true, Detail: detail})
		}
		for _, w := range report.Missing {
			name, detail, _ := strings.Cut(w, ": ")
			walls = append(walls, isolation.Wall{Name: name, Detail: detail})
			warnings = append(warnings, "no second wall "+name+": "+detail)
		}
	}
	cg := d.launcher.cgroupWall()
	walls = append(walls, cg)
	if !cg.Present {
		warnings = append(warnings, "no second wall cgroup: "+cg.Detail)
	}
	return walls, append(warnings, d.launcher.warnings()...)
}
