package proc

import (
	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// CheckGroups refuses limits for which no control group can be made.
func CheckGroups(g *cgroup.Tree, r isolation.Resources) error {
	for _, l := range []struct {
		asked            bool
		what, controller string
	}{
		{r.MemoryBytes > 0, "memory limit", cgroup.Memory},
		{r.Pids > 0, "pids limit", cgroup.Pids},
		{r.CPUs > 0, "cpu limit", cgroup.CPU},
		{!r.IO.IsZero(), "io limit", cgroup.IO},
	} {
		if l.asked && !g.Has(l.controller) {
			return Unsupported(l.what, "a cgroup with the controller "+l.controller+": "+g.Why(l.controller))
		}
	}
	return nil
}
