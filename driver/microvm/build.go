package microvm

import (
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/root"
)

// BuildConfig describes a template.
type BuildConfig struct {
	Name      string // "" is [DefaultTemplate]
	MemoryMiB int    // of the machine; 0: 640
	CPUs      int    // 0: 1
	// Accel is "kvm" or "tcg"; empty: kvm if a machine starts with it.
	Accel string

	// Kernel is the path of an uncompressed kernel, KernelID what people and
	// digests call it.
	Kernel, KernelID string
	// WriteInitrd writes an initial RAM file system with these modules, those that
	// they depend on, a list of all in [ModuleList], and these files.
	WriteInitrd func(w io.Writer, modules []string, dirs []string, files []InitFile) error
	// Guest is the program axo-guest.
	Guest []byte
	// WriteDisk writes the root disk, an erofs image, to an empty file. Temp is a directory for
	// what it needs meanwhile.
	WriteDisk func(f *os.File, temp string) error
	Source    string // what the disk is made of, for people
	// Image: programs are started as Config says, from a root that is an image's
	// or a directory's. Else the root is the host's system.
	Image  bool
	Config root.Config
	// UID and GID are Config.User's.
	UID, GID int
	// Recipe is what it was asked for by; sizes are those above. SourceKey
	// identifies what the disk is made of; see Inputs.Source.
	Recipe    Recipe
	SourceKey string
	// Reuse is a root disk that has the same source. Empty: WriteDisk makes one.
	Reuse string
	// Warm are commands that run before the snapshot, so that machines find in
	// memory what they need. One that fails is an error.
	Warm [][]string
	// Progress is told each step as it begins. nil: nobody.
	Progress func(step string)
}

// InitFile is a file of the initial RAM file system.
type InitFile struct {
	Name string // without a slash before it
	Mode fs.FileMode
	Data []byte
}

// ModuleList is the file by which the guest finds its modules.
const ModuleList = "modules.list"

func (b BuildConfig) withDefaults() (BuildConfig, error) {
	if b.Name == "" {
		b.Name = DefaultTemplate
	}
	if b.MemoryMiB == 0 {
		b.MemoryMiB = defaultMemoryMiB
	}
	if b.CPUs == 0 {
		b.CPUs = 1
	}
	if b.Progress == nil {
		b.Progress = func(string) {}
	}
	if err := checkTemplateName(b.Name); err != nil {
		return b, err
	}
	switch {
	case b.MemoryMiB < 192 || b.MemoryMiB > maxMachineMiB:
		return b, fmt.Errorf("a machine of %d MiB: from 192 to %d can be had: %w", b.MemoryMiB, maxMachineMiB, isolation.ErrInvalidArgument)
	case b.CPUs < 1 || b.CPUs > maxMachineCPUs:
		return b, fmt.Errorf("a machine of %d processors: from 1 to %d can be had: %w", b.CPUs, maxMachineCPUs, isolation.ErrInvalidArgument)
	case b.Accel != "" && b.Accel != "kvm" && b.Accel != "tcg":
		return b, fmt.Errorf("accelerator %q: want kvm or tcg: %w", b.Accel, isolation.ErrInvalidArgument)
	case b.Kernel == "" || b.WriteInitrd == nil || len(b.Guest) == 0 || b.WriteDisk == nil:
		return b, fmt.Errorf("a template needs a kernel, an initial RAM file system, a guest and a disk: %w", isolation.ErrInvalidArgument)
	}
	r := &b.Recipe
	r.MemoryMiB, r.CPUs, r.Accel = b.MemoryMiB, b.CPUs, b.Accel
	return b, nil
}

// Machines' sizes: what they have if nobody says, and can have.
const (
	defaultMemoryMiB = 640
	maxMachineMiB    = 64 << 10
	maxMachineCPUs   = 64
)
