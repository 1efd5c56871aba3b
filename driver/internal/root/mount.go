package root

import (
	"fmt"
	"path"
	"strings"

	"github.com/axocoatl/isolation"
)

// reserved are the directories that a caller's mount may not be, or be above.
var reserved = []string{"/proc", "/sys", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc"}

// CheckMount refuses a mount where a sandbox has something of its own.
func CheckMount(m isolation.Mount) error {
	dst := path.Clean(m.Destination)
	for _, r := range reserved {
		if dst == "/" || dst == r || strings.HasPrefix(dst, r+"/") || strings.HasPrefix(r, dst+"/") {
			return fmt.Errorf("mount on %s: the sandbox has a %s of its own: %w", m.Destination, r, isolation.ErrInvalidArgument)
		}
	}
	return nil
}
