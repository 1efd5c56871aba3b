package microvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/internal/root"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/internal/form"
)

// Template is a machine that was booted and stopped, of which sandboxes are
// copies. It is a directory, made under another name and renamed when complete.
type Template struct {
	Name   string    `json:"name"`
	Source string    `json:"source"` // what its root disk was made of
	Built  time.Time `json:"built"`
	// Digest is that of all that follows.
	Digest string `json:"digest"`
	// What it was to be made of, and what it was made of. When that changes it
	// must be built again.
	Recipe Recipe     `json:"recipe"`
	Key    Key        `json:"key"`
	Shape  qemu.Shape `json:"shape"`
	Engine string     `json:"engine"` // that restores it
	VMM    string     `json:"vmm"`    // the VMM's version
	// Image: the root is one, or a directory of the host, and programs are started
	// as Config says.
	Image  bool        `json:"image,omitempty"`
	Config root.Config `json:"config,omitzero"`
	// Who programs are, by number.
	UID int `json:"uid"`
	GID int `json:"gid"`
	// Its files.
	Disk  file `json:"disk"`
	RAM   file `json:"ram"`
	State file `json:"state"`
	// Live is what a snapshot of a sandbox has beside; nil: nobody's program ran.
	Live *Live `json:"live,omitempty"`

	dir string
}

// Live is a sandbox of which a machine is a snapshot.
type Live struct {
	Spec  isolation.Spec `json:"spec"`
	Held  proc.Held      `json:"processes"`
	Token []byte         `json:"token"` // by which the guest knows its host; secret
	Taken time.Time      `json:"taken"`
	// Stopped is how long the sandbox stood still for it, Took what all of it took.
	Stopped time.Duration `json:"stopped_ns"`
	Took    time.Duration `json:"took_ns"`
}

type file struct {
	Digest string   `json:"digest"`
	Size   int64    `json:"size"` // bytes
	Is     identity `json:"is,omitzero"`
}

// identity tells whether a file is still the same without reading it.
type identity struct {
	Inode uint64 `json:"inode"`
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime"` // ns
	CTime int64  `json:"ctime"` // ns
}

const (
	fileTemplate = "template.json"
	fileDisk     = "disk"
	fileRAM      = "ram"
	fileState    = "state"
	buildPrefix  = ".build-"
)

func (t *Template) path(name string) string { return filepath.Join(t.dir, name) }

var templateName = form.Of(`^[a-z0-9][a-z0-9._-]{0,63}$`)

func checkTemplateName(name string) error {
	if !templateName().MatchString(name) {
		return fmt.Errorf("template name %q: want lower-case letters, digits, dots, hyphens and underscores: %w", name, isolation.ErrInvalidArgument)
	}
	return nil
}

// sum is the digest of what a template consists of.
func (t *Template) sum() string {
	c := *t
	c.Digest, c.Name, c.Source, c.Built, c.Disk.Is = "", "", "", time.Time{}, identity{}
	return digestOf(c)
}

// Templates lists the templates of a directory by name. One that cannot be read
// is in the error, beside the others.
func Templates(dir string) ([]*Template, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var out []*Template
	var errs []error
	for _, e := range entries {
		if checkTemplateName(e.Name()) != nil || !e.IsDir() {
			continue
		}
		t, err := ReadTemplate(dir, e.Name())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *Template) int { return strings.Compare(a.Name, b.Name) })
	return out, errors.Join(errs...)
}

// ReadTemplate reads one template of a directory. One that is not whole is of class
// FailedPrecondition.
func ReadTemplate(dir, name string) (*Template, error) {
	if err := checkTemplateName(name); err != nil {
		return nil, err
	}
	t := &Template{dir: filepath.Join(dir, name)}
	b, err := os.ReadFile(t.path(fileTemplate))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no template %q: %w", name, isolation.ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("template %s: %w", name, err)
	}
	if t.Name != name || t.Digest != t.sum() {
		return nil, fmt.Errorf("template %s is damaged; build it again: %w", name, isolation.ErrFailedPrecondition)
	}
	return t, nil
}

// RemoveTemplate removes a template. Sandboxes that were made of it go on.
func RemoveTemplate(dir, name string) error {
	if _, err := ReadTemplate(dir, name); err != nil && !errors.Is(err, isolation.ErrFailedPrecondition) {
		return err
	}
	// First a name that is not listed: it is there whole or not at all.
	gone, err := os.MkdirTemp(dir, buildPrefix)
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, name), filepath.Join(gone, name)); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}
