package tenant_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/tenant"
)

func TestQuotas(t *testing.T) {
	dir := t.TempDir()
	daemon, err := tenant.OpenQuotas(dir)
	if err != nil {
		t.Fatal(err)
	}
	if q, ok := daemon.Of("a"); ok {
		t.Errorf("a quota that nobody has set: %+v", q)
	}
	operator, err := tenant.OpenQuotas(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := session.Quota{Sandboxes: 3, CPUs: 1.5, Rate: 2, Burst: 4}
	if err := operator.Set("a", &want); err != nil {
		t.Fatal(err)
	}
	if err := operator.Set("b", &session.Quota{}); err != nil {
		t.Fatal(err)
	}
	if q, ok := daemon.Of("a"); !ok || q != want {
		t.Errorf("what another process has set: %+v %v", q, ok)
	}
	if q, ok := daemon.Of("b"); !ok || q != (session.Quota{}) {
		t.Errorf("one of no bounds: %+v %v", q, ok)
	}
	if all, err := operator.All(); err != nil || len(all) != 2 {
		t.Errorf("%v %v", all, err)
	}
	for name, bad := range map[string]session.Quota{"negative": {Sandboxes: -1}, "rate": {Rate: math.NaN()}, "cpus": {CPUs: math.Inf(1)}} {
		if err := operator.Set("a", &bad); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := operator.Set("../a", &want); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("a tenant of a bad name: %v", err)
	}
	// A file that is broken takes no bound away.
	file := filepath.Join(dir, "quotas.json")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if q, ok := daemon.Of("a"); !ok || q != want {
		t.Errorf("with a broken file: %+v %v", q, ok)
	}
	if _, err := tenant.OpenQuotas(dir); err == nil {
		t.Error("a broken file was taken")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := operator.Set("a", &want); err != nil {
		t.Fatal(err)
	}
	if err := operator.Set("a", nil); err != nil {
		t.Fatal(err)
	}
	if _, ok := daemon.Of("a"); ok {
		t.Error("a quota that was taken away")
	}
}
