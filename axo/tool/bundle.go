package tool

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/tomlfile"
)

// Paths in a bundle's sandbox.
const (
	inputPath  = "/axocoatl/input.json"
	outputPath = "/axocoatl/output.json"
)

// bundleConfig is what is taken of a bundle's configuration (OCI runtime-spec,
// config.md). What else it has is the engine's to say: namespaces, mounts,
// capabilities and limits are those of each sandbox here.
type bundleConfig struct {
	Process struct {
		Args []string `json:"args"`
		Env  []string `json:"env"`
		Cwd  string   `json:"cwd"`
	} `json:"process"`
	Root struct {
		Path string `json:"path"`
	} `json:"root"`
}

func readBundle(config string) (c bundleConfig, err error) {
	b, err := readFile(config, tomlfile.MaxBytes)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(b, &c)
}

// checkBundle looks at a bundle: a directory with config.json and the root that it
// names.
func (p *parsed) checkBundle(f tomlfile.File) error {
	const key = "entrypoint.bundle"
	config := filepath.Join(p.Entrypoint.Bundle, "config.json")
	c, err := readBundle(config)
	if err != nil {
		return f.Errorf(key, "config.json: %w", err)
	}
	if len(c.Process.Args) == 0 {
		return f.Errorf(key, "config.json has no process.args")
	}
	if !filepath.IsLocal(c.Root.Path) {
		return f.Errorf(key, "config.json: root.path is %.200q: want a directory in the bundle", c.Root.Path)
	}
	if info, err := os.Stat(filepath.Join(p.Entrypoint.Bundle, c.Root.Path)); err != nil || !info.IsDir() {
		return f.Errorf(key, "its root %s is not a directory", c.Root.Path)
	}
	p.files["config.json"] = config
	return nil
}

// bundle fills in a request by a bundle's configuration.
func (t Tool) bundle(spec *isolation.Spec, proc *isolation.ProcessSpec) error {
	c, err := readBundle(filepath.Join(t.dir, "config.json"))
	if err != nil {
		return err
	}
	spec.Root.Path = filepath.Join(t.Manifest.Entrypoint.Bundle, c.Root.Path)
	proc.Args, proc.Env, proc.Cwd = c.Process.Args, c.Process.Env, c.Process.Cwd
	return nil
}
