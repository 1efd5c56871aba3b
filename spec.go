package isolation

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Spec describes a sandbox. It is plain data: equal Specs describe equal
// sandboxes, and facts of the host enter only at Create. A zero field asks for
// nothing. What a driver does not implement of a Spec it refuses.
type Spec struct {
	Requirement Requirement `json:"requirement"`
	// Language of the source that Arbitrary runs ("js", "lua"), lower case.
	Language string `json:"language,omitempty"`
	// Module is the WebAssembly module (WasmCompiled).
	Module Module `json:"module,omitzero"`
	// Root is what the file system starts from (containers, microVMs).
	Root Root `json:"root,omitzero"`
	// Func names a Go function that the embedding program registered
	// (NativeTrusted, engine "func").
	Func string `json:"func,omitempty"`

	Mounts    []Mount   `json:"mounts,omitempty"`
	Resources Resources `json:"resources,omitzero"`
	Hostname  string    `json:"hostname,omitempty"`
	// Profile is "default" (strict) or "session"; empty is default.
	Profile string `json:"profile,omitempty"`
	// Detached: the sandbox outlives the process that made it, however that ends,
	// and is there until Delete. Another process finds it by [Recoverer] and its
	// programs by [Attacher]. Else it ends with its maker.
	Detached bool `json:"detached,omitempty"`
	// Tenant is whose code this is. Nothing that ran code of one tenant is
	// reused for another. Empty is a tenant like any other.
	Tenant      string            `json:"tenant,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Module names a WebAssembly module: by a path on the host, or by its bytes.
type Module struct {
	Path string `json:"path,omitempty"`
	Data []byte `json:"data,omitempty"`
	// Digest, "sha256:" and 64 hex digits, is checked when it is set: what runs has it. A
	// file whose digest is told is not read where what it was compiled to is there.
	Digest string `json:"digest,omitempty"`
}

// IsZero reports whether no module is named.
func (m Module) IsZero() bool { return m.Path == "" && len(m.Data) == 0 && m.Digest == "" }

// Root names a root file system: an OCI image, a directory, or a template that has
// one. The zero value
// is the tier's default: the host's system directories, read-only.
type Root struct {
	Image string `json:"image,omitempty"` // reference, or "sha256:..." of a local image
	Path  string `json:"path,omitempty"`  // directory on the host
	// Template names a template of virtual machines (microVMs).
	Template string `json:"template,omitempty"`
}

// IsZero reports whether no root is named.
func (r Root) IsZero() bool { return r == Root{} }

// Mount gives the sandbox one directory of the host: a bind mount (containers),
// a preopen (WASI).
type Mount struct {
	Source      string `json:"source"`      // absolute path on the host
	Destination string `json:"destination"` // absolute path in the sandbox
	ReadOnly    bool   `json:"readonly,omitempty"`
}

// Resources bound a sandbox as a whole. Zero means not asked for.
type Resources struct {
	MemoryBytes int64   `json:"memory_bytes,omitempty"` // WASM: of each process's instance
	CPUs        float64 `json:"cpus,omitempty"`         // cores
	Pids        int64   `json:"pids,omitempty"`         // tasks
	DiskBytes   int64   `json:"disk_bytes,omitempty"`   // what may be written
	IO          IO      `json:"io,omitzero"`
}

// IO bounds what a sandbox may read and write a second, of each block device of
// the host. What is in memory, or in the page cache, is not counted. Zero means not
// asked for.
type IO struct {
	ReadBytes  int64 `json:"read_bytes,omitempty"`
	WriteBytes int64 `json:"write_bytes,omitempty"`
	ReadOps    int64 `json:"read_ops,omitempty"`
	WriteOps   int64 `json:"write_ops,omitempty"`
}

// IsZero reports whether nothing is bounded.
func (l IO) IsZero() bool { return l == IO{} }

// IsZero reports whether no resource is bounded.
func (r Resources) IsZero() bool { return r == Resources{} }

// Limits bound one process. Zero means not asked for. The host side enforces
// them, whatever the program does.
type Limits struct {
	Wall        time.Duration // from the start of the process
	CPU         time.Duration // user and system time
	Fuel        uint64        // WASM: units of the engine, about one an instruction
	OutputBytes int64         // stdout and stderr together; so much is delivered, more ends the process
	OpenFiles   int64         // descriptors
}

// IsZero reports whether nothing is limited.
func (l Limits) IsZero() bool { return l == Limits{} }

type limitsJSON struct {
	WallMS      float64 `json:"wall_ms,omitempty"`
	CPUMS       float64 `json:"cpu_ms,omitempty"`
	Fuel        uint64  `json:"fuel,omitempty"`
	OutputBytes int64   `json:"output_bytes,omitempty"`
	OpenFiles   int64   `json:"open_files,omitempty"`
}

// MarshalJSON writes times in milliseconds.
func (l Limits) MarshalJSON() ([]byte, error) {
	return json.Marshal(limitsJSON{millis(l.Wall), millis(l.CPU), l.Fuel, l.OutputBytes, l.OpenFiles})
}

// UnmarshalJSON reads times in milliseconds.
func (l *Limits) UnmarshalJSON(b []byte) error {
	var j limitsJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*l = Limits{fromMillis(j.WallMS), fromMillis(j.CPUMS), j.Fuel, j.OutputBytes, j.OpenFiles}
	return nil
}

// ProcessSpec describes one process, in the words of the OCI runtime
// specification (config.md, "process").
type ProcessSpec struct {
	// ExecID is how the process is found again. It is unique in its sandbox,
	// also among ended processes that the driver still knows. Empty: the
	// driver makes one.
	ExecID string `json:"exec_id,omitempty"`
	// Args is argv. WASM: Args[0] is the program name that the module sees. In a
	// ContainerImage sandbox they follow the image's entrypoint, and none means
	// the image's own command.
	Args []string `json:"args"`
	// Env is the whole environment, KEY=VALUE. Nothing is inherited. Where
	// Spec.Root is set, the image's own variables, PATH and HOME are added if
	// they are missing.
	Env      []string     `json:"env,omitempty"`
	Cwd      string       `json:"cwd,omitempty"`
	User     string       `json:"user,omitempty"` // name or uid[:gid]
	Terminal bool         `json:"terminal,omitempty"`
	Size     TerminalSize `json:"size,omitzero"`
	Limits   Limits       `json:"limits,omitzero"`
}

// TerminalSize is in character cells.
type TerminalSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Validate checks what can be checked without a host. Errors are of class
// [ErrInvalidArgument].
func (s Spec) Validate() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("spec: "+format+": %w", append(a, ErrInvalidArgument)...)
	}
	if !s.Requirement.valid() {
		return bad("requirement is not set")
	}
	if s.Module.Path != "" && len(s.Module.Data) > 0 {
		return bad("module has both a path and data")
	}
	if d := s.Module.Digest; d != "" && !validDigest(d) {
		return bad("module digest %.80q is not sha256:<64 hex digits>", d)
	}
	if r := s.Root; r.Image != "" && r.Path != "" || r.Template != "" && (r.Image != "" || r.Path != "") {
		return bad("root has more than one of image, path and template")
	}
	if s.Profile != "" && s.Profile != "default" && s.Profile != "session" {
		return bad("profile %q: want default or session", s.Profile)
	}
	r := s.Resources
	if r.MemoryBytes < 0 || r.Pids < 0 || r.DiskBytes < 0 || min(r.IO.ReadBytes, r.IO.WriteBytes, r.IO.ReadOps, r.IO.WriteOps) < 0 || !(r.CPUs >= 0 && r.CPUs < 1<<20) {
		return bad("resources must not be negative")
	}
	seen := map[string]bool{}
	for _, m := range s.Mounts {
		if m.Source == "" || strings.ContainsRune(m.Source, 0) {
			return bad("mount source %q is not a path", m.Source)
		}
		if !strings.HasPrefix(m.Destination, "/") || strings.ContainsRune(m.Destination, 0) {
			return bad("mount destination %q is not an absolute path", m.Destination)
		}
		if seen[m.Destination] {
			return bad("mount destination %q is there twice", m.Destination)
		}
		seen[m.Destination] = true
	}
	return nil
}

// maxArgBytes bounds argv and environment together; Linux's own default is
// 2 MiB (execve(2), ARG_MAX).
const maxArgBytes = 2 << 20

// ValidateProcess checks a process for a sandbox of this Spec: an image may say
// itself what it runs. Errors are of class [ErrInvalidArgument].
func (s Spec) ValidateProcess(p ProcessSpec) error {
	return p.validate(s.Requirement == ContainerImage && s.Root.Image != "")
}

// Validate checks what can be checked without a host and without a Spec. Errors
// are of class [ErrInvalidArgument].
func (p ProcessSpec) Validate() error { return p.validate(false) }

func (p ProcessSpec) validate(argsOptional bool) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("process: "+format+": %w", append(a, ErrInvalidArgument)...)
	}
	if p.ExecID != "" {
		if err := ValidateID(p.ExecID); err != nil {
			return err
		}
	}
	if len(p.Args) == 0 && !argsOptional {
		return bad("args is empty")
	}
	total := 0
	for _, a := range p.Args {
		total += len(a) + 1
		if strings.IndexByte(a, 0) >= 0 {
			return bad("an argument has a NUL byte")
		}
	}
	for _, e := range p.Env {
		total += len(e) + 1
		if strings.IndexByte(e, 0) >= 0 || strings.IndexByte(e, '=') < 1 {
			return bad("environment entry %.80q is not KEY=VALUE", e)
		}
	}
	if total > maxArgBytes {
		return bad("arguments and environment have %d bytes, at most %d are taken", total, maxArgBytes)
	}
	if strings.IndexByte(p.Cwd, 0) >= 0 {
		return bad("cwd has a NUL byte")
	}
	l := p.Limits
	if l.Wall < 0 || l.CPU < 0 || l.OutputBytes < 0 || l.OpenFiles < 0 {
		return bad("limits must not be negative")
	}
	return nil
}

func validDigest(d string) bool {
	h, ok := strings.CutPrefix(d, "sha256:")
	return ok && len(h) == 64 && strings.Trim(h, "0123456789abcdef") == ""
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// fromMillis rounds to a nanosecond, so that millis followed by fromMillis is
// the identity below 2^51 ns, 26 days. Both of its roundings are within half a
// nanosecond there.
func fromMillis(ms float64) time.Duration {
	ns := ms * float64(time.Millisecond)
	switch {
	case ns != ns:
		return 0
	case ns >= float64(1<<63-1):
		return 1<<63 - 1
	case ns <= -float64(1<<63-1):
		return -1 << 63
	case ns < 0:
		return time.Duration(ns - 0.5)
	default:
		return time.Duration(ns + 0.5)
	}
}
