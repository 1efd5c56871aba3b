package none

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
)

// program is a ProcessSpec with the host's facts filled in.
type program struct {
	path string // of the file to run, absolute
	dir  string
	cred *credential // nil: the host program's own
}

type credential struct {
	uid, gid uint32
	groups   []uint32
}

// resolve finds what p names on this host.
func (c *Config) resolve(p isolation.ProcessSpec) (program, error) {
	var g program
	var err error
	if g.dir, err = c.resolveDir(p.Cwd); err != nil {
		return program{}, err
	}
	if g.path, err = c.lookPath(p.Args[0], p.Env, g.dir); err != nil {
		return program{}, err
	}
	if p.User != "" {
		if g.cred, err = resolveUser(p.User); err != nil {
			return program{}, err
		}
	}
	return g, nil
}

func (c *Config) resolveDir(cwd string) (string, error) {
	if cwd == "" {
		return c.Dir, nil
	}
	if !filepath.IsAbs(cwd) {
		return "", fmt.Errorf("cwd %q is not an absolute path: %w", cwd, isolation.ErrInvalidArgument)
	}
	st, err := os.Stat(cwd)
	switch {
	case err != nil:
		return "", classify(fmt.Errorf("cwd: %w", err))
	case !st.IsDir():
		return "", fmt.Errorf("cwd %q is not a directory: %w", cwd, isolation.ErrInvalidArgument)
	}
	return cwd, nil
}

// lookPath finds a program as execvp(3) does, with the process's own PATH.
func (c *Config) lookPath(name string, env []string, dir string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("args[0] is empty: %w", isolation.ErrInvalidArgument)
	}
	if strings.ContainsRune(name, '/') || strings.ContainsRune(name, filepath.Separator) {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return executable(path)
	}
	list := c.Path
	for _, e := range env {
		if k, v, _ := strings.Cut(e, "="); k == "PATH" || runtime.GOOS == "windows" && strings.EqualFold(k, "PATH") {
			list = v
		}
	}
	var denied error
	for _, d := range filepath.SplitList(list) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		path, err := executable(filepath.Join(d, name))
		if err == nil {
			return path, nil
		}
		if denied == nil && errors.Is(err, isolation.ErrPermissionDenied) {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fmt.Errorf("program %q in PATH %q: %w", name, list, isolation.ErrNotFound)
}

func executable(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil && runtime.GOOS == "windows" && filepath.Ext(path) == "" {
		path += ".exe"
		st, err = os.Stat(path)
	}
	switch {
	case err != nil:
		return "", classify(fmt.Errorf("program: %w", err))
	case st.IsDir() || runtime.GOOS != "windows" && st.Mode()&0o111 == 0:
		return "", fmt.Errorf("program %q is not executable: %w", path, isolation.ErrPermissionDenied)
	}
	return path, nil
}

// classify gives an error of the file system its class.
func classify(err error) error {
	class := error(nil)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errNotDir):
		class = isolation.ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		class = isolation.ErrPermissionDenied
	}
	if class == nil || errors.Is(err, class) {
		return err
	}
	return fmt.Errorf("%w (%w)", err, class)
}

// resolveUser reads a name or uid[:gid]. A uid without a gid gets the group of
// the user database, else the group of the same number: never root's by
// default.
func resolveUser(s string) (*credential, error) {
	if !privileged() {
		return nil, proc.Unsupported("user "+s, "a host program that runs as root")
	}
	id, gid, both := strings.Cut(s, ":")
	n, err := strconv.ParseUint(id, 10, 31)
	if err != nil {
		if both {
			return nil, fmt.Errorf("user %q is neither a name nor uid[:gid]: %w", s, isolation.ErrInvalidArgument)
		}
		u, err := user.Lookup(s)
		if err != nil {
			return nil, fmt.Errorf("user %q: %w (%w)", s, err, isolation.ErrNotFound)
		}
		return credentialOf(u)
	}
	c := &credential{uid: uint32(n), gid: uint32(n)}
	if both {
		g, err := strconv.ParseUint(gid, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("user %q is neither a name nor uid[:gid]: %w", s, isolation.ErrInvalidArgument)
		}
		c.gid = uint32(g)
		return c, nil
	}
	if u, err := user.LookupId(id); err == nil {
		return credentialOf(u)
	}
	return c, nil
}

func credentialOf(u *user.User) (*credential, error) {
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("groups of user %q: %w", u.Username, err)
	}
	nums := make([]uint32, 0, len(ids)+2)
	for _, id := range append([]string{u.Uid, u.Gid}, ids...) {
		n, err := strconv.ParseUint(id, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("user %q: id %q: %w", u.Username, id, err)
		}
		nums = append(nums, uint32(n))
	}
	return &credential{uid: nums[0], gid: nums[1], groups: nums[2:]}, nil
}
