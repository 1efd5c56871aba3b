package tool

import (
	"encoding/json"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/quantity"
	"github.com/axocoatl/isolation/axo/signature"
)

// ManifestFile is the name of a manifest in a tool's directory.
const ManifestFile = "tool.toml"

// Manifest declares a tool. ManifestSchema is the JSON Schema of its file.
type Manifest struct {
	Name        string `toml:"name" json:"name"`
	Version     string `toml:"version" json:"version"`
	Title       string `toml:"title" json:"title,omitempty"`
	Description string `toml:"description" json:"description"`
	// Requirement is what the entrypoint is by itself; it is needed only where a
	// command is NativeTrusted.
	Requirement isolation.Requirement `toml:"requirement" json:"requirement,omitempty"`
	Convention  Convention            `toml:"convention" json:"convention,omitempty"`
	Entrypoint  Entrypoint            `toml:"entrypoint" json:"entrypoint"`
	// Input and Output are JSON Schemas (2020-12): a table, or the name of a JSON file
	// beside the manifest. Input is an object's.
	Input  any `toml:"input" json:"input,omitempty"`
	Output any `toml:"output" json:"output,omitempty"`

	Env map[string]string `toml:"env" json:"env,omitempty"`
	// Secrets are variables of the environment whose values are not here: "env:NAME",
	// of whoever calls tools, or "file:/absolute/path".
	Secrets map[string]string `toml:"secrets" json:"secrets,omitempty"`

	MinTier       *isolation.Tier `toml:"min_tier" json:"min_tier,omitempty"`
	Engine        string          `toml:"engine" json:"engine,omitempty"`
	AllowEmulated bool            `toml:"allow_emulated" json:"allow_emulated,omitempty"`
	// Concurrency is how many calls run at once; others wait. 0: no bound but the
	// engine's.
	Concurrency int         `toml:"concurrency" json:"concurrency,omitempty"`
	Limits      Limits      `toml:"limits" json:"limits,omitzero"`
	Mounts      []Mount     `toml:"mounts" json:"mounts,omitempty"`
	Files       Files       `toml:"files" json:"files,omitzero"`
	Annotations Annotations `toml:"annotations" json:"annotations,omitzero"`
	Tests       []Test      `toml:"tests" json:"tests,omitempty"`
}

// Convention is how input goes in and output comes out.
type Convention string

// The conventions.
const (
	// JSON: the input on stdin, the output on stdout. The default.
	ConventionJSON Convention = "json"
	// Args: the input's properties in arguments and variables, "{name}"; stdout is the
	// output, a string unless there is a schema of it.
	ConventionArgs Convention = "args"
	// Bundle: the input in /axocoatl/input.json, the output in /axocoatl/output.json.
	// An entrypoint that is a bundle has this one.
	ConventionBundle Convention = "bundle"
)

// Entrypoint is what runs: one of Module, Source, Command, Image and Bundle.
type Entrypoint struct {
	Module   string   `toml:"module" json:"module,omitempty"`     // file of a WASI command
	Source   string   `toml:"source" json:"source,omitempty"`     // file of Language
	Language string   `toml:"language" json:"language,omitempty"` // python, sh, js
	Command  []string `toml:"command" json:"command,omitempty"`   // of the host's system, or of Root
	Image    string   `toml:"image" json:"image,omitempty"`       // reference; it is pinned when the tool is added
	// Bundle is a directory with an OCI config.json and its rootfs. The configuration
	// comes with the tool; the files of rootfs stay where they are.
	Bundle string `toml:"bundle" json:"bundle,omitempty"`
	// Args follow. An element is a string, or a list of strings that is left out as a
	// whole when the input lacks a property that it names.
	Args []any `toml:"args" json:"args,omitempty"`
}

// Limits of a call. Sizes are such as 64M, times such as 2s.
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

func (l Limits) process() isolation.Limits {
	return isolation.Limits{
		Wall: time.Duration(l.Timeout), CPU: time.Duration(l.CPUTime), Fuel: l.Fuel, OutputBytes: int64(l.Output), OpenFiles: l.OpenFiles,
	}
}

func (l Limits) resources() isolation.Resources {
	return isolation.Resources{MemoryBytes: int64(l.Memory), DiskBytes: int64(l.Disk), Pids: l.Pids, CPUs: l.CPUs}
}

// Mount is a directory of the host.
type Mount struct {
	Source      string `toml:"source" json:"source"`
	Destination string `toml:"destination" json:"destination"`
	// Writable mounts are seldom what is meant.
	Writable bool `toml:"writable" json:"writable,omitempty"`
}

// Files go in before the program and come out after it, by copy.
type Files struct {
	In  []FileIn  `toml:"in" json:"in,omitempty"`
	Out []FileOut `toml:"out" json:"out,omitempty"`
	// MaxBytes bounds what comes out, all together. 0: 64 MiB.
	MaxBytes quantity.Size `toml:"max_bytes" json:"max_bytes,omitempty"`
}

// FileIn is a file that comes with the tool.
type FileIn struct {
	Source      string `toml:"source" json:"source"` // below the manifest's directory
	Destination string `toml:"destination" json:"destination"`
}

// FileOut is a result file, an artifact.
type FileOut struct {
	Path      string `toml:"path" json:"path"`                       // in the sandbox
	Name      string `toml:"name" json:"name,omitempty"`             // empty: the path's last element
	MediaType string `toml:"media_type" json:"media_type,omitempty"` // empty: by the name's ending
	Optional  bool   `toml:"optional" json:"optional,omitempty"`     // it is no failure without it
}

// Annotations tell callers what the tool does. They are its maker's word.
type Annotations struct {
	ReadOnly    bool  `toml:"read_only" json:"read_only,omitempty"`
	Destructive *bool `toml:"destructive" json:"destructive,omitempty"`
	Idempotent  bool  `toml:"idempotent" json:"idempotent,omitempty"`
	OpenWorld   *bool `toml:"open_world" json:"open_world,omitempty"`
}

// Test is a call that shows that the tool works.
type Test struct {
	Name  string `toml:"name" json:"name"`
	Input any    `toml:"input" json:"input,omitempty"`
	// Output is what must come out; nil: anything. Of a table the keys that it has.
	Output any `toml:"output" json:"output,omitempty"`
	// Fails: the call has to fail, for this reason.
	Fails FailureKind `toml:"fails" json:"fails,omitempty"`
}

// Tool is a manifest in a registry.
type Tool struct {
	Manifest Manifest  `json:"manifest"` // schemas in it, sources absolute
	Digest   string    `json:"digest"`   // "sha256:" and 64 hex digits
	Added    time.Time `json:"added"`
	// ImageDigest is what the entrypoint's image was when the tool was added.
	ImageDigest string `json:"image_digest,omitempty"`
	// ModuleDigest is that of the entrypoint's module, in the same form.
	ModuleDigest string `json:"module_digest,omitempty"`
	// SignedBy is the key whose signature came with the tool, and was verified when it
	// was added; empty: none came.
	SignedBy signature.Key `json:"signed_by,omitempty"`
	// RanIn is where a call would have run then: "tier/engine".
	RanIn string `json:"ran_in,omitempty"`

	dir string // with its files
}

// Ref is the tool's name and version.
func (t Tool) Ref() string { return t.Manifest.Name + "@" + t.Manifest.Version }

// InputSchema is the JSON Schema of the input: an object's.
func (t Tool) InputSchema() json.RawMessage {
	if b := schemaBytes(t.Manifest.Input); b != nil {
		return b
	}
	return json.RawMessage(`{"type":"object"}`)
}

// OutputSchema is the JSON Schema of the output; nil: there is none.
func (t Tool) OutputSchema() json.RawMessage { return schemaBytes(t.Manifest.Output) }

func schemaBytes(v any) json.RawMessage {
	if v == nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil // it came of JSON, or of TOML
	}
	return b
}
