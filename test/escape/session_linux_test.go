package escape

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/axocoatl/isolation"
)

// TestSession tries the attacks as the root of the profile session, which has
// docker's capabilities in its own user namespace. What it may do there is not
// asked (calls, rights), only whether it gets out.
func TestSession(t *testing.T) {
	l := newLab(t)
	root := filepath.Join(t.TempDir(), "root")
	for _, dir := range []string{"tmp", "opt/escape", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range engines(t) {
		t.Run(d.Name(), func(t *testing.T) {
			sb, _, err := l.tryCreate(t, d, func(s *isolation.Spec) { s.Root.Path, s.Profile = root, "session" })
			if errors.Is(err, isolation.ErrUnsupported) {
				missing(t, "profile session: "+err.Error())
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"namespaces", "cgroup", "files", "devices", "mknod", "exe", "leaks", "handle", "processes", "sockets", "network", "ipc"} {
				t.Run(name, func(t *testing.T) {
					p := l.process(t, name, nil)
					p.User = "0"
					out, exit, err := execute(t, sb, p)
					if err != nil || exit.Code != 0 {
						t.Fatalf("%v %v %s", err, exit, out)
					}
					judge(t, d.Name(), parse(out), l.control(t, name))
				})
			}
		})
	}
}
