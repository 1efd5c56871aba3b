package tenant

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
)

func TestKeys(t *testing.T) {
	dir := t.TempDir()
	k, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(TokenPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	first := strings.TrimSpace(string(b))
	if key, err := k.Find(first); err != nil || key.Tenant != "default" || key.Role != RoleAdmin {
		t.Errorf("%+v %v", key, err)
	}
	for _, path := range []string{TokenPath(dir), filepath.Join(dir, keysFile)} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
	}
	if all, err := os.ReadFile(filepath.Join(dir, keysFile)); err != nil || strings.Contains(string(all), first) {
		t.Errorf("the key itself is kept, or %v", err)
	}
	secret, key, err := k.Add("other", RoleUser)
	if err != nil {
		t.Fatal(err)
	}
	// Another process sees what this one does.
	again, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := again.Find(secret); err != nil || found.Tenant != "other" || found.Role != RoleUser {
		t.Errorf("%+v %v", found, err)
	}
	if err := again.Remove(key.ID); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{secret, "", "e2b_", first + "0", strings.ToUpper(first), "e2b_" + strings.Repeat("0", 40)} {
		if _, err := k.Find(bad); !errors.Is(err, isolation.ErrUnauthenticated) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := k.Remove("x"); !errors.Is(err, isolation.ErrNotFound) {
		t.Error(err)
	}
	for _, c := range []struct{ tenant, role string }{{"a/b", "user"}, {"", "user"}, {"a", "root"}} {
		if _, _, err := k.Add(c.tenant, Role(c.role)); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%v: %v", c, err)
		}
	}
}

func TestRoles(t *testing.T) {
	for role, may := range map[Role]string{"viewer": "viewer", "user": "viewer user", "admin": "viewer user admin", "": "", "root": "", "Admin": ""} {
		for _, least := range []Role{"viewer", "user", "admin", "", "root"} {
			want := least != "" && slices.Contains(strings.Fields(may), string(least))
			if got := role.May(least); got != want {
				t.Errorf("%q where %q is wanted: %v", role, least, got)
			}
		}
	}
}

func TestKeysThatOthersCanReadAreRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, keysFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("%v", err)
	}
}
