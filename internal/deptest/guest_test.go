package deptest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// guestPackages is all that axo-guest is made of, beside the packages of Go's
// own that are internal. It runs as the first process of every sandbox, in each
// of them anew: what is added here is added there.
var guestPackages = strings.Fields(`
	bufio bytes cmp context embed encoding/binary errors fmt io io/fs iter maps math math/bits os path
	path/filepath reflect runtime slices sort strconv strings sync sync/atomic syscall time unicode unicode/utf8 unsafe
	golang.org/x/sys/unix
	github.com/axocoatl/isolation/cmd/axo-guest
	github.com/axocoatl/isolation/guest
	github.com/axocoatl/isolation/guest/layer
	github.com/axocoatl/isolation/guest/plan
	github.com/axocoatl/isolation/guest/wire
	github.com/axocoatl/isolation/internal/cgroup
	github.com/axocoatl/isolation/internal/landlock
	github.com/axocoatl/isolation/internal/spawn
`)

// maxGuest is its size in bytes.
const maxGuest = 3_000_000

func guestCommand(args ...string) *exec.Cmd {
	c := exec.Command("go", args...)
	c.Dir = "../.."
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	return c
}

func TestGuestDependencies(t *testing.T) {
	out, err := guestCommand("list", "-deps", "./cmd/axo-guest").Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for p := range strings.FieldsSeq(string(out)) {
		if !standard(p) || !slices.Contains(strings.Split(p, "/"), "internal") {
			got = append(got, p)
		}
	}
	for _, p := range got {
		if !slices.Contains(guestPackages, p) {
			t.Errorf("axo-guest now has %s", p)
		}
	}
	for _, p := range guestPackages {
		if !slices.Contains(got, p) {
			t.Errorf("axo-guest does not have %s any more", p)
		}
	}
}

func TestGuestSize(t *testing.T) {
	file := filepath.Join(t.TempDir(), "axo-guest")
	if out, err := guestCommand("build", "-trimpath", "-ldflags", "-s -w", "-o", file, "./cmd/axo-guest").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxGuest {
		t.Errorf("axo-guest has %d bytes, at most %d are wanted", info.Size(), maxGuest)
	}
}
