// Package all names every driver that this module has and makes a registry of
// them. It is a value, made for whoever asks: nothing registers itself.
package all

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/driver/none"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/driver/wasm"
	"github.com/axocoatl/isolation/internal/journal"
	"github.com/axocoatl/isolation/pool"
)

// Config makes the drivers. The zero value is usable.
type Config struct {
	// StateDir keeps images, interpreters and compiled modules across processes, and the
	// journal of what must not be left behind, which engine.New sweeps. Empty
	// keeps nothing.
	StateDir string
	// Worker is the path of axo-wasm, WasmtimeWorker that of axo-wasmtime;
	// see wasm.Config.
	Worker         string
	WasmtimeWorker string
	// Guest is the path of axo-guest; see oci.Config.
	Guest string
	// QEMU is the path of qemu-system-x86_64; empty: it is looked for in PATH.
	QEMU string
	// Firecracker is the path of firecracker; empty: it is looked for in PATH.
	Firecracker string
	// Runtimes are paths of OCI runtimes by their names; those that are not
	// here are looked for in PATH.
	Runtimes map[string]string
	// Spares is how many WASM workers are kept started ahead.
	Spares int
	// Warm is how many containers are kept ready of each kind that was asked
	// for; see package pool. It is for programs that stay: 0 keeps none.
	Warm int
	// WarmVMs is the same for virtual machines.
	WarmVMs int
	// WarmDetached keeps also such ready that outlive this process. Who sets it
	// discards what a process before has left; see pool.Config.
	WarmDetached bool
	// NoCgroup leaves control groups alone.
	NoCgroup bool
	// Funcs are Go functions that NativeTrusted requests may name.
	Funcs map[string]none.Func
	// Progress is told each step of building a template of virtual machines as it
	// begins, by a sandbox that waits for it too. nil: nobody.
	Progress func(step string)
	Logger   *slog.Logger
}

// Runtimes lists the names that Config.Runtimes may have.
func Runtimes() []string { return oci.Runtimes() }

// Registry returns the drivers in order of preference within their tier. The
// caller closes them, as engine.Close does.
func Registry(c Config) (isolation.Registry, error) {
	var r isolation.Registry
	nc := none.Config{NoCgroup: c.NoCgroup}
	oc := oci.Config{Guest: c.Guest, NoCgroup: c.NoCgroup, Logger: c.Logger}
	var vr vmRecorder
	if c.StateDir != "" {
		j, err := journal.Open(filepath.Join(c.StateDir, journal.Dir))
		if err != nil {
			return r, err
		}
		vr.j = j
		oc.Images, oc.StateDir = imagesIn(c.StateDir), filepath.Join(c.StateDir, "oci")
		oc.SessionDir = filepath.Join(c.StateDir, journal.KeptDir)
		nc.Recorder, oc.Recorder = noneRecorder{j}, ociRecorder{j}
	}
	languages, err := languagesIn(c.StateDir)
	if err != nil {
		return r, err
	}
	modules, err := wasmConfigs(c)
	if err != nil {
		return r, err
	}
	for _, m := range modules {
		m.Languages = languages
		w, err := wasm.New(m)
		if err != nil {
			return closeAll(r, err)
		}
		r.Add(isolation.TierWASM, w)
	}
	for _, name := range append([]string{"builtin"}, oci.Runtimes()...) {
		oc.Engine, oc.Runtime = name, c.Runtimes[name]
		ct, err := oci.New(oc)
		if err != nil {
			return closeAll(r, err)
		}
		warm, err := warmed(ct, c, c.Warm, false)
		if err != nil {
			_ = ct.Close()
			return closeAll(r, err)
		}
		r.Add(isolation.TierOCI, warm)
	}
	for _, name := range []string{microvm.Firecracker, microvm.QEMU} {
		if c.StateDir == "" {
			break // no templates
		}
		vc := c.MicroVM(name)
		vc.Recorder, vc.Builder = vr, newTemplates(c, name)
		vm, err := microvm.New(vc)
		if err != nil {
			return closeAll(r, err)
		}
		warm, err := warmed(vm, c, c.WarmVMs, true)
		if err != nil {
			_ = vm.Close()
			return closeAll(r, err)
		}
		r.Add(isolation.TierMicroVM, warm)
	}
	p, err := none.New(nc)
	if err != nil {
		return closeAll(r, err)
	}
	r.Add(isolation.TierNone, p)
	if len(c.Funcs) > 0 {
		f, err := none.NewFunc(none.FuncConfig{Funcs: c.Funcs})
		if err != nil {
			return closeAll(r, err)
		}
		r.Add(isolation.TierNone, f)
	}
	return r, nil
}

// wasmConfigs returns the configurations of the WASM tier's engines, in order of
// preference.
func wasmConfigs(c Config) ([]wasm.Config, error) {
	wc := wasm.Config{Worker: c.Worker, Spares: c.Spares, NoCgroup: c.NoCgroup, Logger: c.Logger}
	if c.StateDir != "" {
		wc.CacheDir = filepath.Join(c.StateDir, "wasm")
		wc.LanguagesDir = filepath.Join(c.StateDir, InterpretersDir)
		j, err := journal.Open(filepath.Join(c.StateDir, journal.Dir))
		if err != nil {
			return nil, err
		}
		wc.Recorder = wasmRecorder{j}
	}
	// Wasmtime comes first where its worker is found. Where it is not, it comes
	// last: no run asks for it, and doctor still tells how to get it.
	mc := wc
	mc.Engine, mc.Worker = wasm.Wasmtime, c.WasmtimeWorker
	modules := []wasm.Config{mc, wc}
	if !mc.HasWorker() {
		slices.Reverse(modules)
	}
	return modules, nil
}

// warmed puts a pool around a driver if the configuration wants one. What stands ready
// is paused by freeze.
func warmed(d isolation.Driver, c Config, learn int, freeze bool) (isolation.Driver, error) {
	if learn == 0 {
		return d, nil
	}
	pc := pool.Config{Driver: d, Learn: learn, Freeze: freeze, Detached: c.WarmDetached, Logger: c.Logger}
	if freeze { // virtual machines
		pc.LearnWarm, pc.RefillAfter = vmWarmUp, VMRefillAfter
	}
	if c.StateDir != "" {
		pc.Resolve = imagesIn(c.StateDir).resolve
	}
	return pool.New(pc)
}

// A virtual machine that has run a program before runs the next one a good deal
// faster: where it is emulated, an eighth of the time. What comes after the first
// time is a third of it. Refilling takes a processor for a quarter of a second.
var vmWarmUp = []isolation.ProcessSpec{{Args: []string{"/bin/true"}}, {Args: []string{"/bin/true"}}}

// VMRefillAfter is how long after a claim another virtual machine is made to stand ready.
const VMRefillAfter = 150 * time.Millisecond

// The journal as each driver sees it.
type (
	wasmRecorder struct{ j *journal.Journal }
	noneRecorder struct{ j *journal.Journal }
	ociRecorder  struct{ j *journal.Journal }
	vmRecorder   struct{ j *journal.Journal }
)

func (r wasmRecorder) Record(id string) (wasm.Entry, error) { return r.j.Begin(id) }
func (r noneRecorder) Record(id string) (none.Entry, error) { return r.j.Begin(id) }
func (r ociRecorder) Record(id string) (oci.Entry, error)   { return r.j.Begin(id) }

func (r vmRecorder) Record(id string) (microvm.Entry, error) { return r.j.Begin(id) }

// closeAll leaves nothing of a registry that could not be completed.
func closeAll(r isolation.Registry, err error) (isolation.Registry, error) {
	for _, e := range r.All() {
		if cerr := e.Driver.Close(); cerr != nil {
			err = fmt.Errorf("%w; close %s: %w", err, e.Driver.Name(), cerr)
		}
	}
	return isolation.Registry{}, err
}
