package testprog

import (
	"os"
	"path/filepath"
	"testing"
)

// KernelPackage returns the Debian package with the kernel that tests of virtual
// machines boot, which scripts/kernel-package.sh fetches. Without it the test is
// skipped, or fails where AXO_REQUIRE is set.
func KernelPackage(t testing.TB) string {
	t.Helper()
	file := FindKernelPackage()
	if file == "" {
		const what = "no kernel package: scripts/kernel-package.sh fetches one"
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatal(what)
		}
		t.Skip("SKIPPED: " + what)
	}
	return file
}

// FindKernelPackage returns the same, or "" if it is not there.
func FindKernelPackage() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	list, _ := filepath.Glob(filepath.Join(cache, "axo-kernel", "linux-image-*-cloud-amd64_*.deb"))
	if len(list) == 0 {
		return ""
	}
	return list[len(list)-1]
}
