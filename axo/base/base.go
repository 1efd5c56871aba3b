// Package base makes the image "base": a Debian in which agents' code finds what it
// expects, bash, python, pip, git and curl, and the user "user", who may do what he
// likes in his sandbox with sudo. It is made by mmdebstrap of Debian's own packages,
// which are verified by their signatures, in a user namespace, and put into an image
// store. What was downloaded is kept: it is made again without the network.
package base

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/image"
	"github.com/axocoatl/isolation/internal/form"
)

// Name is the image's.
const Name = "base"

// Label is of images that this package made; its value says of what.
const Label = "io.axocoatl.base"

// Packages are those of every base.
var Packages = []string{
	"bash", "ca-certificates", "curl", "git", "iproute2", "procps", "python-is-python3", "python3", "python3-pip", "python3-venv", "sudo",
}

// nodePackages are those of a base with Node.
var nodePackages = []string{"nodejs", "npm"}

// DefaultSuite is Debian 12.
const DefaultSuite = "bookworm"

// Config says what is to be made.
type Config struct {
	Images *image.Store
	// Dir keeps what was downloaded; it is made.
	Dir string
	// Name is the image's; empty: [Name].
	Name string
	// Suite is a release of Debian; empty: [DefaultSuite]. Mirror is where its packages
	// are; empty: Debian's own, with its security updates.
	Suite, Mirror string
	// Packages are further ones.
	Packages []string
	Node     bool
	// Offline uses what was downloaded before, and no network.
	Offline bool
	// Again makes it also where one of the same description is there.
	Again bool
	// Mode is how mmdebstrap may write files of other owners: "unshare" (in a user
	// namespace), the default; "root" and "fakechroot" are for hosts that have none.
	Mode string
	// Progress is called for every step; nil: nobody wants to know.
	Progress func(step string)
}

// Result is what there is now.
type Result struct {
	Image image.Image `json:"image"`
	Suite string      `json:"suite"`
	// Made is false if it was there.
	Made    bool    `json:"made"`
	Seconds float64 `json:"seconds"`
}

// version changes when the same description makes something else.
const version = 1

var (
	suiteName   = form.Of(`^[a-z][a-z0-9-]{1,31}$`)
	packageName = form.Of(`^[a-z0-9][a-z0-9+.-]{1,127}$`) // Debian Policy, 5.6.7
)

// complete fills in and checks a config.
func (c *Config) complete() error {
	c.Name, c.Suite, c.Mode = cmp.Or(c.Name, Name), cmp.Or(c.Suite, DefaultSuite), cmp.Or(c.Mode, "unshare")
	if !suiteName().MatchString(c.Suite) {
		return fmt.Errorf("suite %.40q: want a name such as %s: %w", c.Suite, DefaultSuite, isolation.ErrInvalidArgument)
	}
	if !slices.Contains([]string{"unshare", "root", "fakechroot"}, c.Mode) {
		return fmt.Errorf("mode %.20q: want unshare, root or fakechroot: %w", c.Mode, isolation.ErrInvalidArgument)
	}
	if c.Mirror != "" && !strings.HasPrefix(c.Mirror, "http://") && !strings.HasPrefix(c.Mirror, "https://") {
		return fmt.Errorf("mirror %.80q: want http:// or https://: %w", c.Mirror, isolation.ErrInvalidArgument)
	}
	all := slices.Concat(Packages, c.Packages)
	if c.Node {
		all = append(all, nodePackages...)
	}
	slices.Sort(all)
	c.Packages = slices.Compact(all)
	for _, p := range c.Packages {
		if !packageName().MatchString(p) {
			return fmt.Errorf("package %.80q: no package of Debian has such a name: %w", p, isolation.ErrInvalidArgument)
		}
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	return nil
}

// key is what the image is made of, apart from the packages' versions.
func (c Config) key() string {
	b, _ := json.Marshal([]any{version, c.Suite, c.Mirror, c.Packages, runtime.GOARCH}) // of strings and numbers it cannot fail
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// Of reports whether an image is a base.
func Of(img image.Image) bool { return img.Config.Labels[Label] != "" }

// Make makes the image, unless one of the same description is there. What it was
// doing when it was interrupted it goes on with.
func Make(ctx context.Context, c Config) (Result, error) {
	begin := time.Now()
	if err := c.complete(); err != nil {
		return Result{}, err
	}
	img, err := c.Images.Get(c.Name)
	if err != nil && !errors.Is(err, isolation.ErrNotFound) {
		return Result{}, err
	}
	if err == nil && !c.Again && img.Config.Labels[Label] == c.key() {
		c.Progress("image " + c.Name + " is there")
		return Result{Image: img, Suite: c.Suite, Seconds: time.Since(begin).Seconds()}, nil
	}
	dir := filepath.Join(c.Dir, c.Suite)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Result{}, fmt.Errorf("base: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return Result{}, fmt.Errorf("base: %w", err)
	}
	defer unlock()
	tar := filepath.Join(dir, "rootfs-"+c.key()+".tar.gz")
	_, err = os.Stat(tar)
	if err != nil || c.Again {
		err = c.bootstrap(ctx, dir, tar)
	}
	if err != nil {
		return Result{}, err
	}
	c.Progress("importing")
	img, err = c.Images.Import(ctx, tar, image.ImportOptions{Name: c.Name, Config: &image.RunConfig{
		Cmd: []string{"/bin/bash"}, User: "user", WorkingDir: "/home/user",
		Env:    []string{"PATH=/home/user/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		Labels: map[string]string{Label: c.key()},
	}})
	if err != nil {
		return Result{}, err
	}
	// The store has it now.
	if err := os.Remove(tar); err != nil {
		return Result{}, err
	}
	return Result{Image: img, Suite: c.Suite, Made: true, Seconds: time.Since(begin).Seconds()}, nil
}

// customize is what is done in the new system. pip works as everywhere but on Debian:
// the whole system is the sandbox's.
const customize = `set -e
chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash user
echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/user"
chmod 440 "$1/etc/sudoers.d/user"
rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED "$1/etc/resolv.conf" "$1/etc/hostname" "$1/var/log/"*.log
: >"$1/etc/machine-id"`

// bootstrap writes a root file system.
func (c Config) bootstrap(ctx context.Context, dir, tar string) (err error) {
	program, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return &isolation.UnsupportedError{Feature: "making a base image", Need: "mmdebstrap (apt-get install mmdebstrap uidmap; elsewhere than on Debian also Debian's keyring, debian-archive-keyring)"}
	}
	temp, err := os.MkdirTemp(dir, "tmp-")
	if err != nil {
		return fmt.Errorf("base: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	debs, lists := filepath.Join(dir, "debs"), filepath.Join(dir, "lists")
	newDebs, newLists := filepath.Join(temp, "debs"), filepath.Join(temp, "lists")
	for _, d := range []string{debs, lists, newDebs, newLists} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("base: %w", err)
		}
	}
	args := []string{
		"--mode=" + c.Mode, "--variant=apt", "--format=tar", "--include=" + strings.Join(c.Packages, ","),
		`--aptopt=APT::Install-Recommends "false"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/info/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		// The packages are kept for the next time.
		"--skip=essential/unlink",
		`--setup-hook=mkdir -p "$1/var/cache/apt/archives"`,
		"--setup-hook=sync-in " + quote(debs) + " /var/cache/apt/archives",
		"--essential-hook=sync-out /var/cache/apt/archives " + quote(debs),
		"--customize-hook=" + customize,
		`--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get autoclean >/dev/null`,
		"--customize-hook=sync-out /var/cache/apt/archives " + quote(newDebs),
		"--customize-hook=sync-out /var/lib/apt/lists " + quote(newLists),
	}
	if c.Offline {
		args = append(args, "--skip=update", `--setup-hook=mkdir -p "$1/var/lib/apt/lists"`, "--setup-hook=sync-in "+quote(lists)+" /var/lib/apt/lists")
	}
	args = append(args, c.Suite, "-")
	if c.Mirror != "" {
		args = append(args, c.Mirror)
	}
	if err := c.run(ctx, program, args, filepath.Join(temp, "rootfs")); err != nil {
		return err
	}
	for from, to := range map[string]string{newDebs: debs, newLists: lists} {
		if err := errors.Join(os.RemoveAll(to), os.Rename(from, to)); err != nil {
			return fmt.Errorf("base: %w", err)
		}
	}
	return os.Rename(filepath.Join(temp, "rootfs"), tar)
}

// run has mmdebstrap write to a file, compressed.
func (c Config) run(ctx context.Context, program string, args []string, name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	says := &steps{tell: c.Progress}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = z, says
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	// It takes its temporary directory away when it is asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		hint := ""
		if !c.Offline && says.last == "running apt-get update..." {
			hint = "; with --offline it is made of what was downloaded before"
		}
		return fmt.Errorf("mmdebstrap: %w%s:\n%s", err, hint, strings.Join(says.tail, "\n"))
	}
	return errors.Join(z.Close(), f.Sync(), f.Close())
}

// steps takes what mmdebstrap says: its steps, and the end of all of it for when it
// fails.
type steps struct {
	tell func(string)
	rest []byte
	last string
	tail []string
}

// Write implements [io.Writer].
func (s *steps) Write(b []byte) (int, error) {
	s.rest = append(s.rest, b...)
	for {
		line, rest, ok := strings.Cut(string(s.rest), "\n")
		if !ok {
			break
		}
		s.rest = []byte(rest)
		s.tail = append(s.tail, line)
		s.tail = s.tail[max(0, len(s.tail)-20):]
		step, ok := strings.CutPrefix(line, "I: ")
		if ok && strings.HasSuffix(step, "...") {
			s.last = step
			s.tell(strings.TrimSuffix(step, "..."))
		}
	}
	if len(s.rest) > bufio.MaxScanTokenSize {
		s.rest = nil
	}
	return len(b), nil
}

var _ io.Writer = (*steps)(nil)

// quote is a word as a shell, and mmdebstrap's own hooks, read it.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
