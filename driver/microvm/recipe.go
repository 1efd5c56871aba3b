package microvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"reflect"

	"github.com/axocoatl/isolation"
)

// Recipe is what a template is made of, as somebody asked for it. With neither
// Image nor Dir the root disk has this host's system.
type Recipe struct {
	Kernel   string   `json:"kernel,omitempty"`   // release or digest; "": the one imported last
	Image    string   `json:"image,omitempty"`    // a reference, or a digest
	Dir      string   `json:"dir,omitempty"`      // absolute path
	Packages []string `json:"packages,omitempty"` // of the host, beside the essential ones
	// Session: set-user-ID programs work, and root is somebody; see Spec.Profile.
	Session   bool   `json:"session,omitempty"`
	MemoryMiB int    `json:"memory_mib"`
	CPUs      int    `json:"cpus"`
	Accel     string `json:"accel,omitempty"` // as for BuildConfig
}

// Inputs identify what would go into a template of a recipe now.
type Inputs struct {
	Kernel string // release and digest
	Guest  string // digest of axo-guest
	// Source is the digest of an image, or identifies a directory with all below
	// it. Of the host's system it says no more than that.
	Source string
}

// Builder makes templates when sandboxes want them.
type Builder interface {
	Inputs(ctx context.Context, r Recipe) (Inputs, error)
	// Build makes the template of a name, of these inputs. reuse is the root disk of
	// another one with the same source; "": there is none.
	Build(ctx context.Context, name string, r Recipe, in Inputs, reuse string) error
	// WriteDirs writes a disk to an empty file, with copies of directories and
	// files of the host under the names /0, /1 and so on. What belongs to a source's
	// owner is the user's, else nobody's. Temp is a directory for what it needs
	// meanwhile.
	WriteDirs(ctx context.Context, f *os.File, temp string, sources []string, uid, gid int) error
}

// layout is the version of what this program makes of a recipe: devices and their
// order, the plan of the guest, the kernel's command line, what warms it. Machines of another
// one cannot be restored, or are not what they should be.
const layout = 5

// Key is all that a template depends on. One whose key is not what it would be
// now is made anew.
type Key struct {
	Layout int      `json:"layout"`
	Binary identity `json:"binary"` // of the VMM's program
	CPU    string   `json:"cpu"`    // the host's
	Kernel string   `json:"kernel"` // release and digest
	Guest  string   `json:"guest"`  // digest of axo-guest
	Source string   `json:"source"` // see Inputs
	// Machine.
	MemoryMiB int  `json:"memory_mib"`
	CPUs      int  `json:"cpus"`
	Session   bool `json:"session,omitempty"`
}

// keyNames tell people what has changed.
var keyNames = map[string]string{
	"Layout": "another version of this program", "Binary": "another QEMU", "CPU": "another processor", "Kernel": "another kernel",
	"Guest": "another axo-guest", "Source": "another root file system", "MemoryMiB": "another size of memory", "CPUs": "another number of processors",
	"Session": "another profile",
}

// differs names the first part in which two keys differ; "": none.
func (k Key) differs(other Key) string {
	a, b := reflect.ValueOf(k), reflect.ValueOf(other)
	for i := range a.NumField() {
		if !a.Field(i).Equal(b.Field(i)) {
			return keyNames[a.Type().Field(i).Name]
		}
	}
	return ""
}

func digestOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers
	}
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// errStale says that a template does not fit any more.
func errStale(name, why string) error {
	return fmt.Errorf("template %s was built with %s; %s makes it anew: %w", name, why, setupFix, isolation.ErrFailedPrecondition)
}
