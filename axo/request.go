package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/quantity"
	"github.com/axocoatl/isolation/engine"
)

// requestFlags are the flags of run and explain.
type requestFlags struct {
	tier, minTier, engine, lang string
	native                      bool
	pythonCode, shellCode       string
	packages                    string
	image, root, entrypoint     string
	template                    string
	profile                     string
	timeout, cpuTime            time.Duration
	memory, disk, outputLimit   string
	ioRead, ioWrite             string
	ioReadOps, ioWriteOps       int64
	fuel                        uint64
	pids, files                 int64
	cpus                        float64
	env, dirs                   []string
	copyIn, copyOut             []string
	cwd, user, tenant           string
	interactive, tty            bool
	allowUnenforced, emulated   bool
	allowHosts                  []string
	egressLimit                 string
}

func (f *requestFlags) register(fs *pflag.FlagSet) {
	f.registerSandbox(fs)
	fs.StringVar(&f.lang, "lang", "", "run source of this language, such as js: code, or the path of a file (with -- CMD: what CMD's source is in)")
	fs.StringVar(&f.packages, "packages", "", "Python: give it this directory, read-only, to import from")
	fs.StringVar(&f.pythonCode, "python", "", "run Python: code, or the path of a .py file")
	fs.StringVar(&f.shellCode, "shell", "", "run a shell command")
	fs.BoolVar(&f.native, "native", false, "run a program that you trust, without isolation")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "with --image: run this program instead of the image's entrypoint")
	fs.StringVar(&f.root, "root", "", "run it with this directory as its root file system; what it writes there is gone afterwards")
	fs.StringVar(&f.template, "template", "", "run it in this template of virtual machines (axo template ls)")
	fs.DurationVar(&f.timeout, "timeout", 0, "end it after this time, such as 2s or 500ms")
	fs.DurationVar(&f.cpuTime, "cpu-time", 0, "end it after this much CPU time")
	fs.StringVar(&f.outputLimit, "output-limit", "", "end it when stdout and stderr together exceed this size")
	fs.Uint64Var(&f.fuel, "fuel", 0, "WASM: end it after this many instructions, about")
	fs.Int64Var(&f.files, "open-files", 0, "limit of open files")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "environment variable KEY=VALUE, or KEY to pass yours on; may be repeated")
	fs.StringArrayVar(&f.dirs, "dir", nil, "give it a directory: HOST:GUEST, HOST:GUEST:ro, or HOST:GUEST:sync for a copy whose changes are copied back at the end; may be repeated")
	fs.StringArrayVar(&f.copyIn, "copy-in", nil, "copy a file or directory into the sandbox first: HOST:GUEST; may be repeated")
	fs.StringArrayVar(&f.copyOut, "copy-out", nil, "copy a file or directory out of it afterwards: GUEST:HOST; may be repeated")
	fs.StringVar(&f.cwd, "cwd", "", "working directory inside")
	fs.StringVar(&f.user, "user", "", "user inside: name or uid[:gid]")
	fs.StringVar(&f.tenant, "tenant", "", "whose code it is; nothing is shared between tenants")
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "pass stdin on even from a terminal")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give it a terminal")
	// What follows the program's name is the program's.
	fs.SetInterspersed(false)
}

// registerSandbox has the flags that are of a sandbox, and not of its program.
func (f *requestFlags) registerSandbox(fs *pflag.FlagSet) {
	fs.StringVar(&f.tier, "tier", "", "run in exactly this tier: none, wasm, oci, microvm")
	fs.StringVar(&f.minTier, "min-tier", "", "run in this tier or a stronger one")
	fs.StringVar(&f.engine, "engine", "", "run with exactly this engine (axo doctor lists them)")
	fs.StringVar(&f.image, "image", "", "run it in a container image of this host (axo image ls); by itself, what the image runs")
	fs.StringVar(&f.profile, "profile", "", "default (strict), or session: root and sudo work inside; with --image or --root")
	fs.StringVar(&f.memory, "memory", "", "memory limit, such as 64M or 1G")
	fs.StringVar(&f.disk, "disk", "", "limit of what it may write to files")
	fs.Int64Var(&f.pids, "pids", 0, "limit of processes and threads")
	fs.Float64Var(&f.cpus, "cpus", 0, "cores that it may use, such as 0.5")
	fs.BoolVar(&f.allowUnenforced, "allow-unenforced", false, "run even if a limit cannot be enforced, and list it")
	fs.BoolVar(&f.emulated, "allow-emulated", false, "allow an emulated virtual machine")
	fs.StringArrayVar(&f.allowHosts, "allow-host", nil, "let it reach HOST[:PORT] by HTTP(S) through a proxy: a name, *.NAME, an address or a network; without a port 80 and 443; may be repeated")
	fs.StringVar(&f.egressLimit, "egress-limit", "", "with --allow-host: what may go both ways in all (default 1G)")
	fs.StringVar(&f.ioRead, "io-read", "", "bytes that it may read a second of each block device, such as 10M")
	fs.StringVar(&f.ioWrite, "io-write", "", "bytes that it may write a second to each block device")
	fs.Int64Var(&f.ioReadOps, "io-read-ops", 0, "reads a second of each block device")
	fs.Int64Var(&f.ioWriteOps, "io-write-ops", 0, "writes a second to each block device")
}

const requestUsage = `  axo %[1]s [flags] FILE.wasm [ARG...]      a WebAssembly module
  axo %[1]s [flags] --python CODE|FILE [-- ARG...]
  axo %[1]s [flags] --shell CODE [-- ARG...]
  axo %[1]s [flags] --lang LANGUAGE CODE|FILE [ARG...]
  axo %[1]s [flags] --native [--] CMD [ARG...]   a program that you trust
  axo %[1]s [flags] -- CMD [ARG...]         any program
  axo %[1]s [flags] --image REF [-- ARG...]  a container image, as docker run does`

// request turns the command line into a request.
func (f *requestFlags) request(c *cobra.Command, args []string) (engine.Request, error) {
	var r engine.Request
	if err := f.program(c, args, &r); err != nil {
		return r, err
	}
	return r, f.options(c, &r)
}

// options reads all that is not the program.
func (f *requestFlags) options(c *cobra.Command, r *engine.Request) error {
	r.Engine, r.AllowUnenforced, r.AllowEmulated = f.engine, f.allowUnenforced, f.emulated
	for _, t := range []struct {
		flag, v string
		to      **isolation.Tier
	}{{"tier", f.tier, &r.Tier}, {"min-tier", f.minTier, &r.MinTier}} {
		if t.v == "" {
			continue
		}
		tier, err := isolation.ParseTier(t.v)
		if err != nil {
			return fmt.Errorf("--%s: %w", t.flag, err)
		}
		*t.to = &tier
	}
	for _, s := range []struct {
		flag, v string
		to      *int64
	}{
		{"memory", f.memory, &r.Spec.Resources.MemoryBytes}, {"disk", f.disk, &r.Spec.Resources.DiskBytes},
		{"output-limit", f.outputLimit, &r.Process.Limits.OutputBytes},
		{"egress-limit", f.egressLimit, &r.Egress.MaxBytes},
		{"io-read", f.ioRead, &r.Spec.Resources.IO.ReadBytes}, {"io-write", f.ioWrite, &r.Spec.Resources.IO.WriteBytes},
	} {
		if s.v == "" {
			continue
		}
		n, err := parseSize(s.v)
		if err != nil {
			return fmt.Errorf("--%s: %w", s.flag, err)
		}
		*s.to = n
	}
	if r.Egress.Allow = f.allowHosts; r.Egress.MaxBytes > 0 && len(f.allowHosts) == 0 {
		return errors.New("--egress-limit goes with --allow-host")
	}
	// Zero would mean no limit, which nobody writes a flag for.
	for _, l := range []struct {
		flag  string
		above bool
	}{
		{"timeout", f.timeout > 0}, {"cpu-time", f.cpuTime > 0}, {"fuel", f.fuel > 0}, {"pids", f.pids > 0},
		{"open-files", f.files > 0}, {"cpus", f.cpus > 0},
		{"io-read-ops", f.ioReadOps > 0}, {"io-write-ops", f.ioWriteOps > 0},
	} {
		if c.Flags().Changed(l.flag) && !l.above {
			return fmt.Errorf("--%s: want a value above zero", l.flag)
		}
	}
	r.Process.Limits.Wall, r.Process.Limits.CPU = f.timeout, f.cpuTime
	r.Process.Limits.Fuel, r.Process.Limits.OpenFiles = f.fuel, f.files
	r.Spec.Resources.Pids, r.Spec.Resources.CPUs = f.pids, f.cpus
	r.Spec.Resources.IO.ReadOps, r.Spec.Resources.IO.WriteOps = f.ioReadOps, f.ioWriteOps
	r.Process.Cwd, r.Process.User, r.Process.Terminal = f.cwd, f.user, f.tty
	r.Spec.Tenant, r.Spec.Profile = f.tenant, f.profile
	for _, e := range f.env {
		if e == "" {
			return errors.New("--env: want KEY=VALUE, or KEY")
		}
		if !strings.Contains(e, "=") {
			v, ok := os.LookupEnv(e)
			if !ok {
				return fmt.Errorf("--env %s: it is not set here; write %s=VALUE", e, e)
			}
			e += "=" + v
		}
		r.Process.Env = append(r.Process.Env, e)
	}
	for _, d := range f.dirs {
		if dir, ok := strings.CutSuffix(d, ":sync"); ok {
			m, err := parseDir(dir)
			if err != nil {
				return err
			}
			r.Sync = append(r.Sync, engine.Copy{Host: m.Source, Guest: m.Destination})
			continue
		}
		m, err := parseDir(d)
		if err != nil {
			return err
		}
		r.Spec.Mounts = append(r.Spec.Mounts, m)
	}
	return errors.Join(f.addPackages(r), f.copies(r))
}

// copies reads what is copied in and out.
func (f *requestFlags) copies(r *engine.Request) error {
	for _, v := range f.copyIn {
		// At the last colon before an absolute path: the host's may have others.
		i := strings.LastIndex(v, ":/")
		if i < 1 {
			return fmt.Errorf("--copy-in %s: want HOST:GUEST, with GUEST an absolute path", v)
		}
		r.CopyIn = append(r.CopyIn, engine.Copy{Host: v[:i], Guest: v[i+1:]})
	}
	for _, v := range f.copyOut {
		guest, host, ok := strings.Cut(v, ":")
		if !ok || !strings.HasPrefix(guest, "/") || host == "" {
			return fmt.Errorf("--copy-out %s: want GUEST:HOST, with GUEST an absolute path", v)
		}
		r.CopyOut = append(r.CopyOut, engine.Copy{Host: host, Guest: guest})
	}
	return nil
}

// packagesDir is where --packages shows up inside.
const packagesDir = "/packages"

func (f *requestFlags) addPackages(r *engine.Request) error {
	if f.packages == "" {
		return nil
	}
	if r.Spec.Requirement != isolation.Python {
		return fmt.Errorf("--packages goes with --python")
	}
	dir, err := filepath.Abs(f.packages)
	if err != nil {
		return err
	}
	r.Spec.Mounts = append(r.Spec.Mounts, isolation.Mount{Source: dir, Destination: packagesDir, ReadOnly: true})
	for i, e := range r.Process.Env {
		if path, ok := strings.CutPrefix(e, "PYTHONPATH="); ok {
			r.Process.Env[i] = "PYTHONPATH=" + path + ":" + packagesDir
			return nil
		}
	}
	r.Process.Env = append(r.Process.Env, "PYTHONPATH="+packagesDir)
	return nil
}

// program finds out what is to run.
func (f *requestFlags) program(c *cobra.Command, args []string, r *engine.Request) error {
	python, shell := c.Flags().Changed("python"), c.Flags().Changed("shell")
	kinds := 0
	for _, k := range []bool{python, shell, f.native} {
		if k {
			kinds++
		}
	}
	if kinds > 1 {
		return fmt.Errorf("--python, --shell and --native exclude each other")
	}
	r.Spec.Root.Image, r.Spec.Root.Template = f.image, f.template
	if f.root != "" {
		dir, err := filepath.Abs(f.root)
		if err != nil {
			return err
		}
		r.Spec.Root.Path = dir
	}
	switch {
	case f.image != "" && f.root != "":
		return fmt.Errorf("--image and --root exclude each other")
	case f.template != "" && (f.image != "" || f.root != ""):
		return fmt.Errorf("--template has a root of its own: it goes without --image and --root")
	case f.native && (f.template != "" || f.image != "" || f.root != ""):
		return fmt.Errorf("--native runs without isolation, so without --image, --root and --template")
	case f.entrypoint != "" && (f.image == "" || kinds > 0):
		return fmt.Errorf("--entrypoint goes with --image alone")
	}
	switch {
	case python:
		return script(r, "python", f.pythonCode, args)
	case shell:
		return script(r, "sh", f.shellCode, args)
	}
	if f.image != "" {
		if f.lang != "" {
			return fmt.Errorf("--lang does not go with --image")
		}
		r.Spec.Requirement, r.Process.Args = isolation.ContainerImage, args
		if f.entrypoint != "" {
			// As the whole command line: the image's entrypoint has no part in it.
			r.Spec.Requirement, r.Process.Args = isolation.Arbitrary, append([]string{f.entrypoint}, args...)
		}
		return nil
	}
	if len(args) == 0 {
		return fmt.Errorf("nothing to run: name a FILE.wasm, --python CODE, --shell CODE, --native CMD, --image REF or -- CMD (see %s --help)", c.CommandPath())
	}
	r.Process.Args = args
	switch {
	case f.native:
		r.Spec.Requirement = isolation.NativeTrusted
	case c.ArgsLenAtDash() == 0, f.root != "", f.template != "":
		r.Spec.Requirement, r.Spec.Language = isolation.Arbitrary, f.lang
	case f.lang != "":
		rest := args[1:]
		if len(rest) > 0 && rest[0] == "--" {
			rest = rest[1:]
		}
		return script(r, f.lang, args[0], rest)
	case isModule(args[0]):
		path, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		r.Spec.Requirement, r.Spec.Module.Path = isolation.WasmCompiled, path
		r.Process.Args = append([]string{filepath.Base(path)}, args[1:]...)
	default:
		return fmt.Errorf("%s is not a WebAssembly module; for a program write -- %s (isolated) or --native %s (trusted)", args[0], args[0], args[0])
	}
	return nil
}

// extensions are what a source file's name ends in.
var extensions = map[string][]string{"python": {".py"}, "js": {".js", ".mjs"}}

// script makes the command line of a language's interpreter.
func script(r *engine.Request, language, code string, args []string) error {
	if code == "" {
		return fmt.Errorf("the code is empty")
	}
	if slices.Contains(extensions[language], filepath.Ext(code)) && !strings.ContainsAny(code, "\n;(") {
		b, err := os.ReadFile(code)
		if err != nil {
			return &statusError{exitNotFound, err}
		}
		code = string(b)
	}
	switch language {
	case "python":
		r.Spec.Requirement = isolation.Python
	case "sh":
		r.Spec.Requirement = isolation.Shell
	default:
		r.Spec.Requirement, r.Spec.Language = isolation.Arbitrary, language
	}
	var err error
	if r.Process.Args, err = isolation.ScriptArgs(language, code, args...); err != nil {
		return fmt.Errorf("--lang %s: %w", language, err)
	}
	return nil
}

// isModule goes by the name, or by the first bytes of a file of another name.
func isModule(path string) bool {
	if strings.HasSuffix(path, ".wasm") {
		return true
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [4]byte
	_, err = f.ReadAt(magic[:], 0)
	return err == nil && string(magic[:]) == "\x00asm"
}

func parseDir(v string) (isolation.Mount, error) {
	parts := strings.Split(v, ":")
	bad := fmt.Errorf("--dir %s: want HOST:GUEST, HOST:GUEST:ro or HOST:GUEST:sync, with GUEST an absolute path", v)
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !strings.HasPrefix(parts[1], "/") {
		return isolation.Mount{}, bad
	}
	m := isolation.Mount{Destination: parts[1]}
	if len(parts) == 3 {
		if parts[2] != "ro" && parts[2] != "rw" {
			return isolation.Mount{}, bad
		}
		m.ReadOnly = parts[2] == "ro"
	}
	var err error
	m.Source, err = filepath.Abs(parts[0])
	return m, err
}

func parseSize(v string) (int64, error) { return quantity.ParseSize(v) }
