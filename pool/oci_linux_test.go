package pool_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/pool"
)

// guestProgram builds the guest of containers.
func guestProgram(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := testprog.BuildCommands(dir, []string{"axo-guest"}); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "axo-guest")
}

// containerDriver makes the driver of containers, or skips where they do not
// work.
func containerDriver(t testing.TB, guest string, images oci.Images) isolation.Driver {
	t.Helper()
	d, err := oci.New(oci.Config{Guest: guest, Images: images})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Probe(context.Background()); err != nil {
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatalf("containers: %v", err)
		}
		t.Skipf("SKIPPED: containers do not work here: %v", err)
	}
	return d
}

// containers is a pool of real containers.
func containers(t testing.TB, c pool.Config) *pool.Pool {
	t.Helper()
	c.Driver = containerDriver(t, guestProgram(t), nil)
	p, err := pool.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func ready(t testing.TB, p *pool.Pool, n int) {
	t.Helper()
	for range 1000 {
		if p.Stats().Idle >= n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not ready: %+v", p.Stats())
}

// TestContainers: pooled containers are claimed, run and replaced, and what one
// run wrote no other sees.
func TestContainers(t *testing.T) {
	p := containers(t, pool.Config{Templates: []pool.Template{template(2)}, Makers: 2})
	for i := range 6 {
		ready(t, p, 2)
		sb, err := p.Create(t.Context(), "job", shell)
		if err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		pr, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"sh", "-c", "ls /tmp; echo x >/tmp/left; echo done"}},
			isolation.Stdio{Stdout: &out, Stderr: &errOut})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := pr.Wait(t.Context()); err != nil || !e.Success() || strings.TrimSpace(out.String()) != "done" {
			t.Errorf("run %d: %v, %v, %q %q", i, e, err, out.String(), errOut.String())
		}
		if err := sb.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if st := p.Stats(); st.Hits != 6 || st.Failures != 0 {
		t.Errorf("%+v, want 6 hits", st)
	}
}

// waited tells whether the sandbox's next Python program was started before it
// was asked for: its command line is still that of the interpreter that waited.
func waited(t testing.TB, sb isolation.Sandbox) bool {
	t.Helper()
	var out bytes.Buffer
	code := "print(open('/proc/self/cmdline','rb').read().count(b'_a' + b'xo') > 0, 6*7)"
	pr, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"python3", "-c", code}}, isolation.Stdio{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	e, err := pr.Wait(t.Context())
	if err != nil || !strings.HasSuffix(out.String(), " 42\n") {
		t.Errorf("%v, %v, %q", e, err, out.String())
	}
	return strings.HasPrefix(out.String(), "True")
}

// TestContainersPrepared: the template's interpreter runs before anybody asks,
// and so does that of a learned shelf for Python.
func TestContainersPrepared(t *testing.T) {
	tpl := template(1)
	tpl.Prepare = "python"
	p := containers(t, pool.Config{Templates: []pool.Template{tpl}, Learn: 1})
	python := isolation.Spec{Requirement: isolation.Python}
	for i, c := range []struct {
		spec  isolation.Spec
		ahead bool
	}{{shell, true}, {python, false}, {python, true}} {
		ready(t, p, 1+i/2)
		sb, err := p.Create(t.Context(), fmt.Sprint("job-", i), c.spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := waited(t, sb); got != c.ahead {
			t.Errorf("run %d: an interpreter waited: %v, want %v", i, got, c.ahead)
		}
		if err := sb.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
