// Package policy is what an operator allows, in a TOML file of rules. The first rule
// that matches a request decides; where none does, the strict default: no directories of
// the host, no trusted programs, no network, and the least tiers that the engine has by
// default.
package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/quantity"
	"github.com/axocoatl/isolation/axo/internal/tomlfile"
	"github.com/axocoatl/isolation/axo/signature"
	"github.com/axocoatl/isolation/engine"
)

// File is a policy.
type File struct {
	Keys  []Key  `toml:"key" json:"keys,omitempty"`
	Rules []Rule `toml:"rule" json:"rules"`
}

// Key is a public key of SSH's, and whose it is; one may have several.
type Key struct {
	Name string `toml:"name" json:"name"`
	Key  string `toml:"key" json:"key"` // as in a .pub file
}

// Rule says what some requests may do. Of what it matches by, all that is there has to
// match; patterns are those of path.Match, without regard to slashes.
type Rule struct {
	Name         string                  `toml:"name" json:"name"`
	Tools        []string                `toml:"tools" json:"tools,omitempty"` // names of registered tools
	Tenants      []string                `toml:"tenants" json:"tenants,omitempty"`
	Sources      []string                `toml:"sources" json:"sources,omitempty"` // cli, rest, e2b, mcp, wrap
	Requirements []isolation.Requirement `toml:"requirements" json:"requirements,omitempty"`
	Images       []string                `toml:"images" json:"images,omitempty"`
	// SignedBy has names of keys: registered tools that one of them signed.
	SignedBy []string `toml:"signed_by" json:"signed_by,omitempty"`

	// Deny refuses, and says why. A tool that is denied to a tenant is not shown to it.
	Deny string `toml:"deny" json:"deny,omitempty"`

	MinTier           *isolation.Tier `toml:"min_tier" json:"min_tier,omitempty"`
	Engines           []string        `toml:"engines" json:"engines,omitempty"`
	AllowEmulated     bool            `toml:"allow_emulated" json:"allow_emulated,omitempty"`
	EmulatedIsMicroVM bool            `toml:"emulated_is_microvm" json:"emulated_is_microvm,omitempty"`
	// Native allows programs without isolation.
	Native bool `toml:"native" json:"native,omitempty"`
	// Hosts are what may be reached of the network, in the words of engine.Egress.
	Hosts []string `toml:"hosts" json:"hosts,omitempty"`
	// Directories are those of the host below which mounts, roots and copies may be.
	Directories []Directory `toml:"directories" json:"directories,omitempty"`
	Max         Limits      `toml:"max" json:"max,omitzero"`
	Default     Limits      `toml:"default" json:"default,omitzero"`

	policy  engine.Policy
	signers map[signature.Key]bool // those of SignedBy
}

// Directory is one of the host's, with all below it.
type Directory struct {
	Path     string `toml:"path" json:"path"`
	Writable bool   `toml:"writable" json:"writable,omitempty"`
}

// Limits bound a run.
type Limits struct {
	Timeout   quantity.Duration `toml:"timeout" json:"timeout,omitempty"`
	CPUTime   quantity.Duration `toml:"cpu_time" json:"cpu_time,omitempty"`
	Memory    quantity.Size     `toml:"memory" json:"memory,omitempty"`
	Disk      quantity.Size     `toml:"disk" json:"disk,omitempty"`
	Output    quantity.Size     `toml:"output" json:"output,omitempty"`
	Pids      int64             `toml:"pids" json:"pids,omitempty"`
	OpenFiles int64             `toml:"open_files" json:"open_files,omitempty"`
	CPUs      float64           `toml:"cpus" json:"cpus,omitempty"`
	Fuel      uint64            `toml:"fuel" json:"fuel,omitempty"`
}

func (l Limits) split() (isolation.Limits, isolation.Resources) {
	return isolation.Limits{Wall: time.Duration(l.Timeout), CPU: time.Duration(l.CPUTime), Fuel: l.Fuel, OutputBytes: int64(l.Output), OpenFiles: l.OpenFiles},
		isolation.Resources{MemoryBytes: int64(l.Memory), DiskBytes: int64(l.Disk), Pids: l.Pids, CPUs: l.CPUs}
}

// Sources are the ways by which requests come.
var Sources = []string{"cli", "rest", "e2b", "mcp", "wrap", "test"}

// Read reads a policy. What is wrong in it is told with its lines, and is of class
// InvalidArgument.
func Read(name string) (*File, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("policy: %w (%w)", err, isolation.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return Parse(name, b)
}

// Parse reads a policy's text.
func Parse(name string, b []byte) (*File, error) {
	var p File
	f, err := tomlfile.Decode(name, b, &p)
	if err != nil {
		return nil, err
	}
	var errs []error
	keys := map[string][]signature.Key{}
	for i, k := range p.Keys {
		key := fmt.Sprintf("key.%d", i)
		parsed, err := signature.ParseKey(k.Key)
		switch {
		case k.Name == "":
			errs = append(errs, f.Errorf(key, "want a name: rules go by it"))
		case err != nil:
			errs = append(errs, f.Errorf(key+".key", "%w", err))
		}
		keys[k.Name] = append(keys[k.Name], parsed)
	}
	names := map[string]bool{}
	for i := range p.Rules {
		r := &p.Rules[i]
		key := fmt.Sprintf("rule.%d", i)
		if r.Name == "" || names[r.Name] {
			errs = append(errs, f.Errorf(key, "want a name, and each once: results tell it"))
		}
		names[r.Name] = true
		errs = append(errs, r.check(f, key))
		for _, who := range r.SignedBy {
			if len(keys[who]) == 0 {
				errs = append(errs, f.Errorf(key+".signed_by", "there is no key %.80q", who))
			}
			if r.signers == nil {
				r.signers = map[signature.Key]bool{}
			}
			for _, k := range keys[who] {
				r.signers[k] = true
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &p, nil
}

func (r *Rule) check(f tomlfile.File, key string) error {
	var errs []error
	for name, patterns := range map[string][]string{"tools": r.Tools, "tenants": r.Tenants, "images": r.Images} {
		for _, p := range patterns {
			if _, err := path.Match(p, ""); err != nil || p == "" {
				errs = append(errs, f.Errorf(key+"."+name, "%.80q is no pattern", p))
			}
		}
	}
	for _, s := range r.Sources {
		if !slices.Contains(Sources, s) {
			errs = append(errs, f.Errorf(key+".sources", "%.40q: want some of %v", s, Sources))
		}
	}
	for i, d := range r.Directories {
		if !filepath.IsAbs(d.Path) {
			errs = append(errs, f.Errorf(fmt.Sprintf("%s.directories.%d.path", key, i), "%.200q is not absolute", d.Path))
		}
	}
	if r.Deny != "" && (r.MinTier != nil || r.Native || r.AllowEmulated || r.EmulatedIsMicroVM || len(r.Engines)+len(r.Hosts)+len(r.Directories) > 0 || r.Max != Limits{} || r.Default != Limits{}) {
		errs = append(errs, f.Errorf(key+".deny", "a rule that denies allows nothing"))
	}
	p := engine.Policy{Engines: r.Engines, AllowEmulated: r.AllowEmulated, EmulatedIsMicroVM: r.EmulatedIsMicroVM, Egress: append([]string{}, r.Hosts...)}
	p.MaxLimits, p.MaxResources = r.Max.split()
	p.DefaultLimits, p.DefaultResources = r.Default.split()
	if r.MinTier != nil {
		p.MinTier = map[isolation.Requirement]isolation.Tier{}
		for _, q := range isolation.Requirements() {
			if q != isolation.NativeTrusted {
				p.MinTier[q] = *r.MinTier
			}
		}
	}
	if err := p.Validate(); err != nil {
		errs = append(errs, f.Errorf(key, "%w", err))
	}
	r.policy = p
	return errors.Join(errs...)
}

// strict is what holds where no rule matches.
var strict = Rule{Name: "default", policy: engine.Policy{Egress: []string{}}}

// Decide returns the policy for a request, and the name of its rule. What that does not
// allow is of class PermissionDenied.
func (p *File) Decide(r engine.Request) (engine.Policy, string, error) {
	rule := &strict
	for i := range p.Rules {
		if p.Rules[i].matches(r) {
			rule = &p.Rules[i]
			break
		}
	}
	if err := rule.allows(r); err != nil {
		return engine.Policy{}, rule.Name, fmt.Errorf("policy rule %q: %w: %w", rule.Name, err, isolation.ErrPermissionDenied)
	}
	return rule.policy, rule.Name, nil
}

func (r *Rule) matches(q engine.Request) bool {
	tool, _, _ := strings.Cut(q.Tool, "@")
	tenant, _, _ := strings.Cut(q.Spec.Tenant, "/")
	return some(r.Tools, tool) && some(r.Tenants, tenant) && some(r.Images, q.Spec.Root.Image) &&
		(len(r.SignedBy) == 0 || q.Signer != "" && r.signers[signature.Key(q.Signer)]) &&
		(len(r.Sources) == 0 || slices.Contains(r.Sources, q.Source)) &&
		(len(r.Requirements) == 0 || slices.Contains(r.Requirements, q.Spec.Requirement))
}

// some reports whether a pattern matches, or there is none. What is not there is
// matched by no pattern.
func some(patterns []string, v string) bool {
	if len(patterns) == 0 {
		return true
	}
	v = strings.ReplaceAll(v, "/", "\x00") // a star is any text
	return v != "" && slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := path.Match(strings.ReplaceAll(p, "/", "\x00"), v) // Read has looked at it
		return ok
	})
}

// allows looks at what the engine's own policy does not know.
func (r *Rule) allows(q engine.Request) error {
	if r.Deny != "" {
		return errors.New(r.Deny)
	}
	if q.Spec.Requirement == isolation.NativeTrusted && !r.Native {
		return errors.New("programs without isolation are not allowed")
	}
	type use struct {
		path     string
		writable bool
	}
	var uses []use
	for _, m := range q.Spec.Mounts {
		uses = append(uses, use{m.Source, !m.ReadOnly})
	}
	if q.Spec.Root.Path != "" {
		uses = append(uses, use{q.Spec.Root.Path, false})
	}
	for _, c := range q.Sync {
		uses = append(uses, use{c.Host, true})
	}
	// A tool's copies are the registry's and of a private directory.
	if q.Tool == "" {
		for _, c := range q.CopyIn {
			uses = append(uses, use{c.Host, false})
		}
		for _, c := range q.CopyOut {
			uses = append(uses, use{filepath.Dir(c.Host), true})
		}
	}
	for _, u := range uses {
		if !slices.ContainsFunc(r.Directories, func(d Directory) bool { return (d.Writable || !u.writable) && below(u.path, d.Path) }) {
			how := "read"
			if u.writable {
				how = "written to"
			}
			return fmt.Errorf("%.200q of the host may not be %s", u.path, how)
		}
	}
	return nil
}

// below reports whether a path is a directory or below it, wherever links lead.
func below(name, dir string) bool {
	abs, err := filepath.Abs(name)
	if err != nil {
		return false
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return false
	}
	base, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(base, real)
	return err == nil && filepath.IsLocal(rel)
}

// Watched is a policy whose file may change. A change holds for the requests after it,
// whole; a file that is broken, or gone, leaves what there was. It is safe for
// concurrent use.
type Watched struct {
	name   string
	logger *slog.Logger

	mu   sync.Mutex
	file *File       // guarded by mu
	seen os.FileInfo // that was read last, good or not; guarded by mu
	bad  error       // of it; guarded by mu
}

// Watch reads a policy. It has to be right to begin with. nil logger: silent.
func Watch(name string, logger *slog.Logger) (*Watched, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	f, err := Read(name)
	return &Watched{name: name, logger: logger, file: f, seen: info}, err
}

// Decide is File.Decide, of the file as it is now.
func (w *Watched) Decide(r engine.Request) (engine.Policy, string, error) {
	return w.current().Decide(r)
}

// Err is what is wrong with the file as it is now; nil: it is what holds.
func (w *Watched) Err() error {
	w.current()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bad
}

func (w *Watched) current() *File {
	info, err := os.Stat(w.name)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		if w.bad == nil {
			w.bad = err
			w.logger.Error("the policy's file is not there; the policy stays as it was", "error", err)
		}
		w.seen = nil
		return w.file
	}
	if w.seen != nil && os.SameFile(info, w.seen) && info.ModTime().Equal(w.seen.ModTime()) && info.Size() == w.seen.Size() {
		return w.file
	}
	w.seen = info
	f, err := Read(w.name)
	if w.bad = err; err != nil {
		w.logger.Error("the policy's file is broken; the policy stays as it was", "error", err)
		return w.file
	}
	w.file = f
	w.logger.Info("policy read", "file", w.name, "rules", len(f.Rules))
	return f
}
