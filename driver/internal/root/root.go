// Package root is what container and microVM drivers share about root file
// systems that come from outside: an image, or a directory of the host.
package root

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
)

// Images finds images on this host. It does not use the network.
type Images interface {
	// Open returns the root file system of the image that ref means: a name, a
	// digest, or a unique prefix of one. Its layers stay until Release. The error
	// is of class NotFound if there is none, and says how to get it.
	Open(ctx context.Context, ref string) (*FS, error)
	// TempDir makes an empty directory on the file system that the layers are
	// on, for probes. remove takes it away; if it is not called, somebody else
	// will after the end of this process.
	TempDir() (dir string, remove func() error, err error)
}

// FS is a root file system, ready to be put together: read-only directories
// that lie on top of each other, as overlayfs has them.
type FS struct {
	// Digest is the image's; empty for a directory.
	Digest string
	// Layers are absolute paths, base first; whiteouts are in overlayfs' form,
	// with attributes for its option userxattr. Nothing may write to them.
	Layers []string
	// OwnersMapped: every file belongs to the user who unpacked it. Else files
	// have the owners that the image says.
	OwnersMapped bool
	Config       Config
	// UID and GID are Config.User's, or those of root if it says nothing; -1
	// if the image's files do not tell.
	UID, GID int

	// Lease is an open file that keeps the layers, for whoever else has it too;
	// nil: nothing does.
	Lease *os.File

	release func()
}

// New returns an FS that calls release once, at its Release.
func New(fs FS, release func()) *FS {
	fs.release = release
	return &fs
}

// Release lets the layers go. A nil FS has none.
func (f *FS) Release() {
	if f != nil && f.release != nil {
		f.release()
		f.release = nil
	}
}

// Directory is a root file system of one directory. It has no config: programs
// run as its root user.
func Directory(dir string) (*FS, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("root %q is not an absolute path: %w", dir, isolation.ErrInvalidArgument)
	}
	info, err := os.Stat(dir)
	switch {
	case os.IsNotExist(err):
		return nil, fmt.Errorf("root: %w: %w", isolation.ErrNotFound, err)
	case err != nil:
		return nil, fmt.Errorf("root: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("root %s is not a directory: %w", dir, isolation.ErrInvalidArgument)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	return &FS{Layers: []string{real}}, nil
}

// Config is what an image says about how to run it; see the OCI image
// specification, config.md. It is the image's word, so it is hostile.
type Config struct {
	Entrypoint []string
	Cmd        []string
	Env        []string // KEY=VALUE
	User       string   // name or uid, and :group or :gid
	WorkingDir string
	Volumes    []string // directories
}

// maxDirs bounds the directories that a config can have made.
const maxDirs = 64

// Dirs are the directories that are made, if they are not there, before
// anything runs.
func (c Config) Dirs() ([]string, error) {
	var dirs []string
	for _, d := range append(slices.Clone(c.Volumes), c.WorkingDir) {
		if d == "" {
			continue
		}
		if strings.IndexByte(d, 0) >= 0 {
			return nil, fmt.Errorf("the image's config: directory %q: %w", d, isolation.ErrInvalidArgument)
		}
		if d = path.Clean("/" + d); d != "/" && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	if len(dirs) > maxDirs {
		return nil, fmt.Errorf("the image's config has %d volumes, allowed are %d: %w", len(dirs), maxDirs, isolation.ErrInvalidArgument)
	}
	return dirs, nil
}

// Process completes what is to be run with what the image says, as docker run
// does. For ContainerImage the arguments follow the entrypoint, and none means
// the image's cmd; for other requirements they are the whole command line. The
// environment comes on top of the image's.
func (c Config) Process(req isolation.Requirement, p isolation.ProcessSpec) (isolation.ProcessSpec, error) {
	if req == isolation.ContainerImage {
		args := p.Args
		if len(args) == 0 {
			args = c.Cmd
		}
		p.Args = append(slices.Clone(c.Entrypoint), args...)
	}
	if len(p.Args) == 0 {
		return p, fmt.Errorf("the image has neither an entrypoint nor a command; name a program: %w", isolation.ErrInvalidArgument)
	}
	p.Env = mergeEnv(c.Env, p.Env)
	if p.Cwd == "" {
		p.Cwd = path.Clean("/" + c.WorkingDir)
	}
	if p.User == "" {
		p.User = c.User
	}
	if p.User == "" {
		p.User = "0"
	}
	// The image's part has not been checked.
	if err := p.Validate(); err != nil {
		return p, fmt.Errorf("with the image's config: %w", err)
	}
	return p, nil
}

// mergeEnv returns base with over's variables in place of those of the same
// name.
func mergeEnv(base, over []string) []string {
	env := slices.Clone(base)
	at := map[string]int{}
	for i, kv := range env {
		k, _, _ := strings.Cut(kv, "=")
		at[k] = i
	}
	for _, kv := range over {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := at[k]; ok {
			env[i] = kv
			continue
		}
		at[k] = len(env)
		env = append(env, kv)
	}
	return env
}
