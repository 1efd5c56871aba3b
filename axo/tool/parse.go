package tool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/tomlfile"
	"github.com/axocoatl/isolation/internal/form"
)

// Bounds of what a tool is made of.
const (
	maxFile   = 256 << 20 // bytes of a file that comes with it
	maxSource = 96 << 10  // bytes of source: it is one argument, of which Linux takes 128 KiB (execve(2))
	maxFiles  = 256
	// defaultFilesOut bounds a call's artifacts.
	defaultFilesOut = 64 << 20
)

var (
	nameForm    = form.Of(`^[a-z][a-z0-9_-]{0,63}$`)
	versionForm = form.Of(`^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$`)
	secretForm  = form.Of(`^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$`)
	variable    = form.Of(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// parsed is a manifest with the files that it names.
type parsed struct {
	Manifest
	at       func(key string) string // where a key is in the manifest
	text     []byte
	dir      string            // the manifest's
	manifest string            // its name there
	files    map[string]string // name in the registry -> path on the host
	// named is what a signature is of: the manifest and the files that it names, by the
	// names that they have there, with where their content is.
	named map[string][]source
}

// source is a file of a tool's: its content, or its name in the registry.
type source struct {
	sum []byte
	as  string
}

// Parse reads a manifest: a file, or a directory with a tool.toml. Files that it
// names are looked at, and nothing is run. Its errors have the line, and are of class
// InvalidArgument, or NotFound.
func Parse(name string) (Manifest, error) {
	p, err := parse(name)
	return p.Manifest, err
}

func parse(name string) (p parsed, err error) {
	if info, serr := os.Stat(name); serr == nil && info.IsDir() {
		name = filepath.Join(name, ManifestFile)
	}
	b, err := readFile(name, tomlfile.MaxBytes)
	if err != nil {
		return p, err
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		return p, err
	}
	p.text, p.dir, p.manifest, p.files = b, filepath.Dir(abs), filepath.Base(abs), map[string]string{}
	p.named = map[string][]source{p.manifest: {{sum: digestOf(b)}}}
	f, err := tomlfile.Decode(name, b, &p.Manifest)
	if err != nil {
		return p, err
	}
	p.at = f.At
	return p, errors.Join(p.checkHead(f), p.checkEntrypoint(f), p.checkSchemas(f), p.checkFiles(f), p.checkRest(f))
}

func readFile(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w (%w)", err, isolation.ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: %w", name, isolation.ErrInvalidArgument)
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d bytes: %w", name, most, isolation.ErrInvalidArgument)
	}
	return b, err
}

func (p *parsed) checkHead(f tomlfile.File) error {
	var errs []error
	if !nameForm().MatchString(p.Name) {
		errs = append(errs, f.Errorf("name", "%.80q: want 1 to 64 of a-z, 0-9, _ and -, a letter first", p.Name))
	}
	if !versionForm().MatchString(p.Version) {
		errs = append(errs, f.Errorf("version", "%.80q: want such as 1.0.0", p.Version))
	}
	if p.Description == "" || len(p.Description) > 8192 {
		errs = append(errs, f.Errorf("description", "want 1 to 8192 bytes: callers choose tools by it"))
	}
	if len(p.Title) > 200 {
		errs = append(errs, f.Errorf("title", "want at most 200 bytes"))
	}
	return errors.Join(errs...)
}

// entrypointKey is the key that says what runs.
func (p *parsed) entrypointKey() string {
	switch e := p.Entrypoint; {
	case e.Module != "":
		return "entrypoint.module"
	case e.Source != "":
		return "entrypoint.source"
	case e.Image != "":
		return "entrypoint.image"
	case e.Bundle != "":
		return "entrypoint.bundle"
	}
	return "entrypoint.command"
}

// checkEntrypoint finds out what runs.
func (p *parsed) checkEntrypoint(f tomlfile.File) error {
	e := p.Entrypoint
	kinds := 0
	for _, there := range []bool{e.Module != "", e.Source != "", len(e.Command) > 0, e.Image != "", e.Bundle != ""} {
		if there {
			kinds++
		}
	}
	if kinds != 1 {
		return f.Errorf("entrypoint", "want one of module, source, command, image and bundle")
	}
	if (e.Source == "") != (e.Language == "") {
		return f.Errorf("entrypoint.language", "source and language go together")
	}
	var errs []error
	is := isolation.Arbitrary
	switch {
	case e.Module != "":
		is = isolation.WasmCompiled
		errs = append(errs, p.file(f, "entrypoint.module", e.Module, moduleFile, maxFile))
	case e.Source != "":
		switch e.Language {
		case "python":
			is = isolation.Python
		case "sh":
			is = isolation.Shell
		}
		if _, err := isolation.ScriptArgs(e.Language, "x"); err != nil {
			errs = append(errs, f.Errorf("entrypoint.language", "%w", err))
		}
		errs = append(errs, p.file(f, "entrypoint.source", e.Source, "source", maxSource))
	case e.Image != "":
		is = isolation.ContainerImage
	case e.Bundle != "":
		dir := e.Bundle
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(p.dir, dir)
		}
		p.Entrypoint.Bundle = filepath.Clean(dir)
		errs = append(errs, p.checkBundle(f))
	}
	switch {
	case p.Requirement == 0, p.Requirement == is:
	case p.Requirement == isolation.NativeTrusted && len(e.Command) > 0:
		is = isolation.NativeTrusted
	default:
		errs = append(errs, f.Errorf("requirement", "%v, and the entrypoint is %v", p.Requirement, is))
	}
	p.Requirement = is
	switch p.Convention {
	case "":
		p.Convention = ConventionJSON
		if e.Bundle != "" {
			p.Convention = ConventionBundle
		}
	case ConventionJSON, ConventionArgs:
		if e.Bundle != "" {
			errs = append(errs, f.Errorf("convention", "that of a bundle is bundle"))
		}
	case ConventionBundle:
		if is == isolation.WasmCompiled || is == isolation.NativeTrusted {
			errs = append(errs, f.Errorf("convention", "bundle is for tools with a root file system of their own"))
		}
	default:
		errs = append(errs, f.Errorf("convention", "%.40q: want json, args or bundle", p.Convention))
	}
	for i, a := range e.Args {
		if _, err := group(a); err != nil {
			errs = append(errs, f.Errorf(fmt.Sprintf("entrypoint.args.%d", i), "%w", err))
		}
	}
	return errors.Join(errs...)
}

// file notes a file that comes with the tool.
func (p *parsed) file(f tomlfile.File, key, name, as string, most int64) error {
	if !filepath.IsLocal(name) {
		return f.Errorf(key, "%.200q leads out of the manifest's directory", name)
	}
	full := filepath.Join(p.dir, name)
	// Through a link it could be any file of the host's.
	real, err := filepath.EvalSymlinks(full)
	if err != nil {
		return f.Errorf(key, "%w", err)
	}
	base, err := filepath.EvalSymlinks(p.dir)
	if err != nil {
		return f.Errorf(key, "%w", err)
	}
	if rel, err := filepath.Rel(base, real); err != nil || !filepath.IsLocal(rel) {
		return f.Errorf(key, "%.200q leads out of the manifest's directory", name)
	}
	info, err := os.Stat(real)
	switch {
	case err != nil:
		return f.Errorf(key, "%w", err)
	case !info.Mode().IsRegular():
		return f.Errorf(key, "%.200q is not a regular file", name)
	case info.Size() > most:
		return f.Errorf(key, "%.200q has %d bytes, and at most %d are taken", name, info.Size(), most)
	case info.Size() == 0:
		return f.Errorf(key, "%.200q is empty", name)
	}
	p.files[as] = real
	p.name(name, source{as: as})
	return nil
}

func (p *parsed) checkSchemas(f tomlfile.File) error {
	var errs []error
	for _, s := range []struct {
		key     string
		v       *any
		compile func([]byte) (schema, error)
	}{{"input", &p.Input, compileInput}, {"output", &p.Output, compile}} {
		if *s.v == nil {
			continue
		}
		var b []byte
		var err error
		if name, ok := (*s.v).(string); ok {
			if !filepath.IsLocal(name) {
				errs = append(errs, f.Errorf(s.key, "%.200q leads out of the manifest's directory", name))
				continue
			}
			b, err = readFile(filepath.Join(p.dir, name), tomlfile.MaxBytes)
			p.name(name, source{sum: digestOf(b)})
		} else {
			b, err = json.Marshal(*s.v)
		}
		if err == nil {
			_, err = s.compile(b)
		}
		if err == nil {
			err = json.Unmarshal(b, s.v)
		}
		if err != nil {
			errs = append(errs, f.Errorf(s.key, "%w", err))
		}
	}
	return errors.Join(errs...)
}

func (p *parsed) checkFiles(f tomlfile.File) error {
	var errs []error
	for i, m := range p.Mounts {
		key := fmt.Sprintf("mounts.%d", i)
		if m.Source == "" || !path.IsAbs(m.Destination) {
			errs = append(errs, f.Errorf(key, "want a source, and a destination that is an absolute path"))
			continue
		}
		if !filepath.IsAbs(m.Source) {
			p.Mounts[i].Source = filepath.Join(p.dir, m.Source)
		}
		if info, err := os.Stat(p.Mounts[i].Source); err != nil || !info.IsDir() {
			errs = append(errs, f.Errorf(key+".source", "%s is not a directory", p.Mounts[i].Source))
		}
	}
	if len(p.Files.In) > maxFiles || len(p.Files.Out) > maxFiles {
		return errors.Join(append(errs, f.Errorf("files", "more than %d", maxFiles))...)
	}
	for i, in := range p.Files.In {
		key := fmt.Sprintf("files.in.%d", i)
		if !guestPath(in.Destination) {
			errs = append(errs, f.Errorf(key+".destination", "%.200q: want an absolute path", in.Destination))
		}
		errs = append(errs, p.file(f, key+".source", in.Source, fmt.Sprintf("in-%d", i), maxFile))
	}
	names := map[string]bool{}
	for i := range p.Files.Out {
		o := &p.Files.Out[i]
		key := fmt.Sprintf("files.out.%d", i)
		if !guestPath(o.Path) {
			errs = append(errs, f.Errorf(key+".path", "%.200q: want an absolute path", o.Path))
			continue
		}
		if o.Name == "" {
			o.Name = path.Base(path.Clean(o.Path))
		}
		if o.Name == "." || !filepath.IsLocal(o.Name) || strings.ContainsAny(o.Name, "/\\:\x00") || names[o.Name] {
			errs = append(errs, f.Errorf(key+".name", "%.200q: want the name of a file, and each once", o.Name))
		}
		names[o.Name] = true
		if o.MediaType == "" {
			o.MediaType = mime.TypeByExtension(path.Ext(o.Name))
		} else if _, _, err := mime.ParseMediaType(o.MediaType); err != nil {
			errs = append(errs, f.Errorf(key+".media_type", "%w", err))
		}
		if o.MediaType == "" {
			o.MediaType = "application/octet-stream"
		}
	}
	return errors.Join(errs...)
}

func guestPath(name string) bool {
	return path.IsAbs(name) && path.Clean(name) != "/" && !strings.ContainsRune(name, 0)
}

func (p *parsed) checkRest(f tomlfile.File) error {
	var errs []error
	if p.Concurrency < 0 {
		errs = append(errs, f.Errorf("concurrency", "it is negative"))
	}
	l := p.Limits
	if l.Pids < 0 || l.OpenFiles < 0 || l.CPUs < 0 {
		errs = append(errs, f.Errorf("limits", "a limit is negative"))
	}
	for k := range p.Env {
		if !variable().MatchString(k) {
			errs = append(errs, f.Errorf("env."+k, "that is no variable's name"))
		}
		if _, both := p.Secrets[k]; both {
			errs = append(errs, f.Errorf("secrets."+k, "it is in env too"))
		}
	}
	for k, ref := range p.Secrets {
		if !variable().MatchString(k) || !secretForm().MatchString(ref) {
			errs = append(errs, f.Errorf("secrets."+k, "want a variable, and env:NAME or file:/absolute/path"))
		}
	}
	for i, t := range p.Tests {
		key := fmt.Sprintf("tests.%d", i)
		if t.Name == "" {
			errs = append(errs, f.Errorf(key, "it has no name"))
		}
		if t.Fails != "" && !slices.Contains(failureKinds, t.Fails) {
			errs = append(errs, f.Errorf(key+".fails", "%.40q: want one of %v", t.Fails, failureKinds))
		}
	}
	return errors.Join(errs...)
}
