package testvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/image/kernel"
	"github.com/axocoatl/isolation/internal/testprog"
)

// Link makes the shared kernel and template those of a state directory. guest is
// the program axo-guest that is to be used with it. Where there is no QEMU or no
// kernel package the test is skipped, or fails where AXO_REQUIRE is set.
func Link(t testing.TB, state, guest string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: " + err.Error())
	}
	pkg := testprog.KernelPackage(t)
	shared, err := ensure(guest, pkg)
	if err != nil {
		t.Fatal(err)
	}
	if err := link(state, shared); err != nil {
		t.Fatal(err)
	}
}

// Try is Link for tests that do without: it reports what is missing.
func Try(state, guest string) error {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return err
	}
	pkg := testprog.FindKernelPackage()
	if pkg == "" {
		return errors.New("no kernel package: scripts/kernel-package.sh fetches one")
	}
	shared, err := ensure(guest, pkg)
	if err != nil {
		return err
	}
	return link(state, shared)
}

func link(state, shared string) error {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{all.KernelsDir, all.TemplatesDir} {
		if err := os.Symlink(filepath.Join(shared, dir), filepath.Join(state, dir)); err != nil {
			return err
		}
	}
	return nil
}

// ensure returns the shared state directory, and makes it where it is not there.
// One process does at a time.
func ensure(guest, pkg string) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	base = filepath.Join(base, "axo-testvm")
	if err := os.MkdirAll(base, 0o700); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(base, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", os.NewSyscallError("flock", err)
	}
	sum, err := key(guest, pkg)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, sum)
	c := all.Config{StateDir: dir, Guest: guest}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	now := time.Now()
	if all.CheckTemplate(ctx, c, microvm.QEMU, microvm.DefaultTemplate) == nil {
		return dir, os.Chtimes(dir, now, now)
	}
	prune(base, now.Add(-24*time.Hour))
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	s, err := kernel.Open(filepath.Join(dir, all.KernelsDir), kernel.Limits{})
	if err != nil {
		return "", err
	}
	if _, err := s.Import(ctx, []string{pkg}, kernel.Options{}); err != nil {
		return "", err
	}
	err = all.BuildTemplate(ctx, c, microvm.QEMU, microvm.DefaultTemplate, microvm.Recipe{Accel: "tcg"})
	return dir, err
}

// prune removes what nobody has used for long.
func prune(base string, before time.Time) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.IsDir() && info.ModTime().Before(before) {
			_ = os.RemoveAll(filepath.Join(base, e.Name())) // the next one tries again
		}
	}
}

// key is made of all that goes into the template: programs, and the code that
// makes it.
func key(guest, pkg string) (string, error) {
	h := sha256.New()
	f, err := os.Open(guest)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	fmt.Fprintln(h, filepath.Base(pkg))
	top, err := module()
	if err != nil {
		return "", err
	}
	for _, dir := range []string{"driver/all", "driver/microvm", "driver/microvm/internal/qemu", "driver/microvm/internal/jail", "image/disk", "image/kernel", "guest/plan"} {
		list, err := filepath.Glob(filepath.Join(top, dir, "*.go"))
		if err != nil {
			return "", err
		}
		for _, name := range list {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			b, err := os.ReadFile(name)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, "%s %d\n", filepath.Base(name), len(b))
			h.Write(b)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:10]), nil
}

// module is the directory of this module, in which tests run.
func module() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "driver/microvm")); err == nil { // and not the module of axo
			return d, nil
		}
	}
	return "", fmt.Errorf("%s is not in this module", dir)
}
