package root

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
)

func TestProcess(t *testing.T) {
	c := Config{
		Entrypoint: []string{"/entry", "-x"}, Cmd: []string{"serve"}, Env: []string{"PATH=/image", "A=1"}, User: "app:staff", WorkingDir: "work",
	}
	const image, shell = isolation.ContainerImage, isolation.Shell
	for _, x := range []struct {
		name           string
		config         Config
		req            isolation.Requirement
		p              isolation.ProcessSpec
		args, env      string
		cwd, user, bad string
	}{
		{name: "the image as it is", config: c, req: image, args: "/entry -x serve", env: "PATH=/image A=1", cwd: "/work", user: "app:staff"},
		{name: "arguments follow the entrypoint", config: c, req: image, p: isolation.ProcessSpec{Args: []string{"a", "b"}}, args: "/entry -x a b", env: "PATH=/image A=1", cwd: "/work", user: "app:staff"},
		{name: "a program has no entrypoint", config: c, req: shell, p: isolation.ProcessSpec{Args: []string{"sh"}}, args: "sh", env: "PATH=/image A=1", cwd: "/work", user: "app:staff"},
		{name: "the caller's word counts", config: c, req: image, p: isolation.ProcessSpec{Env: []string{"B=2", "A=3", "B=4"}, Cwd: "/tmp", User: "9"}, args: "/entry -x serve", env: "PATH=/image A=3 B=4", cwd: "/tmp", user: "9"},
		{name: "nothing said", req: shell, p: isolation.ProcessSpec{Args: []string{"x"}}, args: "x", cwd: "/", user: "0"},
		{name: "nothing to run", req: image, bad: "neither an entrypoint"},
		{name: "working directory with dots", config: Config{Cmd: []string{"x"}, WorkingDir: "../../a/.."}, req: image, args: "x", cwd: "/", user: "0"},
		{name: "hostile environment", config: Config{Cmd: []string{"x"}, Env: []string{"A"}}, req: image, bad: "not KEY=VALUE"},
		{name: "hostile argument", config: Config{Cmd: []string{"x\x00y"}}, req: image, bad: "NUL"},
		{name: "hostile size", config: Config{Cmd: []string{strings.Repeat("x", 3<<20)}}, req: image, bad: "at most"},
	} {
		t.Run(x.name, func(t *testing.T) {
			entry := slices.Clone(x.config.Entrypoint)
			got, err := x.config.Process(x.req, x.p)
			if x.bad != "" {
				if !errors.Is(err, isolation.ErrInvalidArgument) || !strings.Contains(err.Error(), x.bad) {
					t.Errorf("%v, want %q", err, x.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if strings.Join(got.Args, " ") != x.args || strings.Join(got.Env, " ") != x.env || got.Cwd != x.cwd || got.User != x.user {
				t.Errorf("%+v", got)
			}
			if !slices.Equal(entry, x.config.Entrypoint) {
				t.Error("the config was changed")
			}
		})
	}
}

func TestDirs(t *testing.T) {
	got, err := Config{Volumes: []string{"/data", "data", "/", "../etc/x/"}, WorkingDir: "/data/work"}.Dirs()
	if err != nil || !slices.Equal(got, []string{"/data", "/etc/x", "/data/work"}) {
		t.Errorf("%q %v", got, err)
	}
	var many []string
	for i := range 100 {
		many = append(many, strings.Repeat("x", i+1))
	}
	for _, c := range []Config{{Volumes: many}, {WorkingDir: "a\x00"}} {
		if _, err := c.Dirs(); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Error(err)
		}
	}
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(dir, link)); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, link} {
		fs, err := Directory(name)
		if err != nil || !slices.Equal(fs.Layers, []string{real}) || fs.OwnersMapped || fs.UID != 0 {
			t.Errorf("%s: %+v %v", name, fs, err)
		}
	}
	for name, class := range map[string]error{file: isolation.ErrInvalidArgument, "relative": isolation.ErrInvalidArgument, dir + "/none": isolation.ErrNotFound} {
		if _, err := Directory(name); !errors.Is(err, class) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReleaseOnce(t *testing.T) {
	n := 0
	fs := New(FS{}, func() { n++ })
	fs.Release()
	fs.Release()
	(*FS)(nil).Release()
	if n != 1 {
		t.Errorf("released %d times", n)
	}
}
