package escape

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// readAll reads at most so many bytes.
func readAll(t *testing.T, f isolation.Files, name string, most int64) ([]byte, error) {
	t.Helper()
	r, err := f.ReadFile(t.Context(), name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, most))
}

// TestReadBack: whatever a sandbox leaves under a name, reading it back gives
// what is in the sandbox or an error, in bounded time, and never a file of the
// host.
func TestReadBack(t *testing.T) {
	l := newLab(t)
	t.Run("control", func(t *testing.T) {
		// Who reads the shared directory by name on the host falls in.
		l.outside.Shared = filepath.Join(t.TempDir(), "traps")
		if err := os.Mkdir(l.outside.Shared, 0o755); err != nil {
			t.Fatal(err)
		}
		l.control(t, "traps")
		for _, name := range []string{"absolute", "up", "by-proc"} {
			if b, err := os.ReadFile(filepath.Join(l.outside.Shared, name)); err != nil || string(b) != l.outside.Content {
				t.Errorf("%s: %q %v", name, b, err)
			}
		}
	})
	for _, d := range everywhere(t) {
		t.Run(d.Name(), func(t *testing.T) {
			sb, _ := l.create(t, d)
			files, ok := isolation.As[isolation.Files](sb)
			if !ok {
				unlike(t, d, "files")
				return
			}
			const dir = "/tmp/traps"
			dirs, _ := isolation.As[isolation.Directories](sb)
			if err := dirs.Mkdir(t.Context(), dir, 0o755); err != nil {
				t.Fatal(err)
			}
			out, exit, err := execute(t, sb, l.process(t, "traps", func(x *Target) { x.Shared = dir }))
			if err != nil || string(out) != "set\n" {
				t.Fatal(string(out), exit, err)
			}
			list, err := dirs.ReadDir(t.Context(), dir)
			if err != nil || len(list) != 14 {
				t.Errorf("%d entries, %v", len(list), err)
			}
			for _, e := range list {
				began := time.Now()
				b, err := readAll(t, files, dir+"/"+e.Name(), 1<<20)
				if bytes.Contains(b, []byte(l.outside.Content)) {
					t.Errorf("%q gave the secret", e.Name())
				}
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("%q took %v", e.Name(), took)
				}
				if e.Name() == "plain" && string(b) != "plain" || e.Name() == "fifo" && err == nil || e.Name() == "loop" && err == nil {
					t.Errorf("%q: %q %v", e.Name(), b, err)
				}
				// In the place of each, a file of ours: the link is not followed.
				if err := files.WriteFile(t.Context(), dir+"/"+e.Name(), 0o644, strings.NewReader("ours")); err != nil {
					t.Errorf("write %q: %v", e.Name(), err)
				} else if b, err := readAll(t, files, dir+"/"+e.Name(), 100); string(b) != "ours" {
					t.Errorf("%q: %q %v", e.Name(), b, err)
				}
			}
			for _, name := range []string{l.outside.Secret, "/../../../.." + l.outside.Secret, "/proc/1/root" + l.outside.Secret, dir + "/../../../.." + l.outside.Secret} {
				if b, err := readAll(t, files, name, 1000); err == nil {
					t.Errorf("%s gave %q", name, b)
				}
			}
			l.unharmed(t)
		})
		t.Run(d.Name()+" race", func(t *testing.T) {
			sb, _ := l.create(t, d)
			files, ok := isolation.As[isolation.Files](sb)
			if !ok {
				unlike(t, d, "files")
				return
			}
			dirs, _ := isolation.As[isolation.Directories](sb)
			const dir = "/tmp/race"
			if err := dirs.Mkdir(t.Context(), dir, 0o755); err != nil {
				t.Fatal(err)
			}
			p := l.process(t, "race", func(x *Target) { x.Shared = dir })
			proc, err := sb.Exec(t.Context(), p, isolation.Stdio{})
			if err != nil {
				t.Fatal(err)
			}
			name, inside := dir+"/now/"+filepath.Base(l.outside.Secret), 0
			// Where all is emulated it may take a while until something was read.
			for began := time.Now(); time.Since(began) < time.Second || inside == 0 && time.Since(began) < 20*time.Second; {
				b, err := readAll(t, files, name, 1000)
				switch {
				case bytes.Contains(b, []byte(l.outside.Content)):
					t.Fatal("the secret came")
				case err == nil && len(b) > 0:
					inside++
				}
				_ = files.WriteFile(t.Context(), name, 0o644, strings.NewReader("inside"))
			}
			if inside == 0 {
				t.Error("nothing was ever read: there was no race")
			}
			_ = proc.Kill(t.Context(), isolation.SIGKILL)
			if _, err := proc.Wait(t.Context()); err != nil {
				t.Error(err)
			}
			l.unharmed(t)
		})
	}
}

// unharmed checks what is on the host.
func (l *lab) unharmed(t *testing.T) {
	t.Helper()
	if b, err := os.ReadFile(l.outside.Secret); err != nil || string(b) != l.outside.Content {
		t.Errorf("the secret is %q now, %v", b, err)
	}
}

// TestCopyOut: the engine copies out what is a file or a directory, whole or not
// at all.
func TestCopyOut(t *testing.T) {
	l := newLab(t)
	for _, d := range engines(t) {
		t.Run(d.Name(), func(t *testing.T) {
			reg := isolation.Registry{}
			reg.Add(isolation.TierOCI, d)
			e, err := engine.New(engine.Config{Registry: reg, ProbeTimeout: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			for _, from := range []string{"/tmp/traps/absolute", "/tmp/traps/fifo", "/tmp/traps", "/tmp/traps/zero", "/tmp/traps/plain"} {
				to := filepath.Join(t.TempDir(), "out")
				r := engine.Request{Spec: l.spec(), Capture: engine.DefaultCapture, CopyOut: []engine.Copy{{Host: to, Guest: from}}}
				p := l.process(t, "traps", func(x *Target) { x.Shared = "/tmp/traps" })
				r.Process = isolation.ProcessSpec{Args: append([]string{"/bin/sh", "-c", `mkdir /tmp/traps && rm -f /tmp/traps/sparse && exec "$@"`, "sh"}, p.Args...)}
				_, err := e.Run(t.Context(), r)
				if errors.Is(err, isolation.ErrUnsupported) {
					unlike(t, d, "files")
					return
				}
				if from == "/tmp/traps/plain" {
					if b, rerr := os.ReadFile(to); err != nil || string(b) != "plain" {
						t.Errorf("%q %v %v", b, rerr, err)
					}
					continue
				}
				if err == nil {
					t.Errorf("%s was copied", from)
				}
				entries, _ := os.ReadDir(filepath.Dir(to))
				if len(entries) != 0 {
					t.Errorf("%s: left: %v", from, entries)
				}
			}
			l.unharmed(t)
		})
	}
}
