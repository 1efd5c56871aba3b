package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// helpers are what a copy of the test program does instead of testing, by the
// variable AXO_TEST_IMAGE.
var helpers = map[string]func(args []string) error{}

const helperEnv = "AXO_TEST_IMAGE"

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		if err := helpers[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func helper(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	if helpers[name] == nil {
		t.Fatal(name)
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	return cmd
}

// The layers have what whiteouts can meet. want is how they look on top of each
// other.
func overlayLayers(t testing.TB) (layers [][]byte, want []string) {
	t.Helper()
	return [][]byte{
			mkTar(t, ent{name: "a"}, ent{name: "b"}, ent{name: "dir/"}, ent{name: "dir/x"}, ent{name: "dir/y"},
				ent{name: "opaque/"}, ent{name: "opaque/old"}, ent{name: "opaque/sub/"}, ent{name: "again/"}, ent{name: "again/old"},
				ent{name: "late/"}, ent{name: "late/old"}, ent{name: "tmp/", mode: 0o1777}, ent{name: "srv/", mode: 0o700}, ent{name: "srv/in/", mode: 0o711}, ent{name: "implied/", mode: 0o750}, ent{name: "implied/old"}),
			mkTar(t, ent{name: ".wh.a"}, ent{name: ".wh.nothing"}, ent{name: "dir/"}, ent{name: "dir/.wh.x"}, ent{name: "dir/z"},
				ent{name: "opaque/"}, ent{name: "opaque/.wh..wh..opq"}, ent{name: "opaque/new"}, ent{name: "opaque/.wh.old"},
				ent{name: ".wh.again"}, ent{name: "again/"}, ent{name: "again/new"},
				ent{name: "late/"}, ent{name: "late/new"}, ent{name: ".wh.late"},
				ent{name: ".wh..wh.plnk"}, ent{name: "tmp/f"}, ent{name: "srv/in/f"}, ent{name: ".wh.implied"}, ent{name: "implied/new"}),
			mkTar(t, ent{name: "dir/"}, ent{name: "dir/.wh.y"}, ent{name: "opaque/top"}),
		}, []string{
			"again drwxr-xr-x", "again/new -rw-r--r--", "b -rw-r--r--", "dir drwxr-xr-x", "dir/z -rw-r--r--",
			"implied drwxr-xr-x", "implied/new -rw-r--r--", "late drwxr-xr-x", "late/new -rw-r--r--",
			"opaque drwxr-xr-x", "opaque/new -rw-r--r--", "opaque/top -rw-r--r--",
			"srv drwx------", "srv/in drwx--x--x", "srv/in/f -rw-r--r--",
			"tmp dtrwxrwxrwx", "tmp/f -rw-r--r--",
		}
}

// overlay mounts layers on top of each other, in a mount namespace that ends
// with the test, and lists what is seen.
func overlay(layers []string, target, options string) (list []string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		list, err = overlayHere(layers, target, options)
	}()
	<-done
	return list, err
}

func overlayHere(layers []string, target, options string) (list []string, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, os.NewSyscallError("mount private", err)
	}
	// Short names: the options have to fit into a page.
	top := slices.Clone(layers)
	slices.Reverse(top)
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(top, ":")+options); err != nil {
		return nil, os.NewSyscallError("mount overlay", err)
	}
	err = filepath.WalkDir(target, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == target {
			return err
		}
		st, err := d.Info()
		if err == nil {
			list = append(list, fmt.Sprintf("%s %v", strings.TrimPrefix(p, target+"/"), st.Mode()))
		}
		return err
	})
	return list, err
}

// TestOverlay mounts what was unpacked, in both forms of whiteouts.
func TestOverlay(t *testing.T) {
	require(t, isRoot(), "root, to mount")
	tars, want := overlayLayers(t)
	reg := newRegistry(t)
	ref := reg.push(t, "overlay", mkImage(t, "", gzLayer(t, tars[0]), gzLayer(t, tars[1]), gzLayer(t, tars[2])))
	target := t.TempDir()
	check := func(t *testing.T, layers []string, options string) {
		t.Helper()
		got, err := overlay(layers, target, options)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	s := newStore(t, Limits{})
	img := pull(t, s, ref)
	r := rootFS(t, s, img)
	t.Run("trusted", func(t *testing.T) { check(t, r.Layers, "") })
	t.Run("userxattr", func(t *testing.T) { check(t, r.Layers, ",userxattr") })
	t.Run("correction survives gc", func(t *testing.T) {
		r.Release()
		if _, err := s.GC(context.Background(), GCOptions{}); err != nil {
			t.Fatal(err)
		}
		again := rootFS(t, s, img)
		if !slices.Equal(again.Layers, r.Layers) || len(again.Layers) != 4 {
			t.Fatal(again.Layers)
		}
		check(t, again.Layers, "")
	})
	t.Run("whiteouts as attributes", func(t *testing.T) {
		var layers []string
		for _, b := range tars {
			dir := filepath.Join(t.TempDir(), "fs")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			u := &unpacker{dir: dir, limits: DefaultLimits(), owners: true, noMknod: true, dirAt: map[string]int{}, buf: make([]byte, 4096)}
			if _, err := u.unpack(bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
			layers = append(layers, dir)
		}
		if out, err := exec.Command("find", layers[1], "-type", "c").CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("devices: %s %v", out, err)
		}
		check(t, append(layers, r.Layers[3]), ",userxattr")
	})
}

// TestOpaqueRoot: overlayfs does not look at the roots of its layers, so RootFS
// leaves out what is below an opaque one.
func TestOpaqueRoot(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "opaque", mkImage(t, "", gzLayer(t, mkTar(t, ent{name: "old"})), gzLayer(t, mkTar(t, ent{name: ".wh..wh..opq"}, ent{name: "new"})), gzLayer(t, mkTar(t, ent{name: "top"}))))
	s := newStore(t, Limits{})
	r := rootFS(t, s, pull(t, s, ref))
	if len(r.Layers) != 2 {
		t.Fatal(r.Layers)
	}
	if _, err := os.Stat(filepath.Join(r.Layers[0], "new")); err != nil {
		t.Error(err)
	}
}

// TestSameLayerTwice: overlayfs refuses that.
func TestSameLayerTwice(t *testing.T) {
	reg := newRegistry(t)
	a, b := gzLayer(t, mkTar(t, ent{name: "a"})), gzLayer(t, mkTar(t, ent{name: ".wh.a"}, ent{name: "b"}))
	ref := reg.push(t, "twice", mkImage(t, "", a, b, a))
	s := newStore(t, Limits{})
	img := pull(t, s, ref)
	r := rootFS(t, s, img)
	if len(img.Layers) != 3 || len(r.Layers) != 2 {
		t.Fatal(img.Layers, r.Layers)
	}
	if _, err := os.Stat(filepath.Join(r.Layers[1], "a")); err != nil {
		t.Error(err)
	}
}

func init() {
	// import DIR FILE...: imports into the store in DIR and prints the root
	// filesystem's layers.
	helpers["import"] = func(args []string) error {
		s, err := Open(Config{Dir: args[0]})
		if err != nil {
			return err
		}
		defer s.Close()
		img, err := s.Import(context.Background(), args[1], ImportOptions{})
		if err != nil {
			return err
		}
		r, err := s.RootFS(context.Background(), img)
		if err != nil {
			return err
		}
		defer r.Release()
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	// overlay TARGET LAYER...: mounts them in a user namespace and lists.
	helpers["overlay"] = func(args []string) error {
		list, err := overlay(args[1:], args[0], ",userxattr")
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(list)
	}
}

// TestOrdinaryUser imports and mounts as a user without any rights, in a user
// namespace of his own, and removes it all.
func TestOrdinaryUser(t *testing.T) {
	require(t, isRoot(), "root, to become an ordinary user")
	const uid = 61234
	tars, want := overlayLayers(t)
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	home, target := filepath.Join(dir, "home"), filepath.Join(dir, "home", "target")
	for _, d := range []string{home, target} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(dir, "image.test")
	if b, err := os.ReadFile("/proc/self/exe"); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "image.tar")
	tars[0] = mkTar(t, append(tarList(t, tars[0]), ent{name: "closed/", mode: 0o100, uid: 5, gid: 6}, ent{name: "closed/suid", mode: 0o4111, uid: 5, gid: 6})...)
	want = slices.Insert(want, 4, "closed d--x------", "closed/suid u--x--x--x")
	slices.Sort(want)
	writeDockerArchive(t, archive, mkImage(t, "", plainLayer(tars[0]), plainLayer(tars[1]), plainLayer(tars[2])), "user:1")
	run := func(sys *syscall.SysProcAttr, name string, args ...string) []byte {
		t.Helper()
		cmd := helper(t, name, args...)
		cmd.Path, cmd.Dir, cmd.SysProcAttr = exe, "/", sys
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v %s", name, err, errOut.Bytes())
		}
		return out
	}
	user := &syscall.Credential{Uid: uid, Gid: uid}
	store := filepath.Join(home, "images")
	var r RootFS
	if err := json.Unmarshal(run(&syscall.SysProcAttr{Credential: user}, "import", store, archive), &r); err != nil {
		t.Fatal(err)
	}
	if !r.OwnersMapped || len(r.Layers) != 4 {
		t.Fatalf("%+v", r)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(r.Layers[0], "closed/suid"), &st); err != nil || st.Uid != uid || st.Mode != unix.S_IFREG|0o4111 {
		t.Errorf("%+v %v", st, err)
	}
	if max, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(max)) == "0" {
		require(t, false, "user namespaces")
	}
	ns := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, GidMappingsEnableSetgroups: false,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		Credential: &syscall.Credential{NoSetGroups: true},
	}
	var got []string
	if err := json.Unmarshal(run(ns, "overlay", append([]string{target}, r.Layers...)...), &got); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	run(&syscall.SysProcAttr{Credential: user}, "empty", store)
	for _, d := range []string{dirBlobs, dirLayers, dirTemp} {
		if list, err := os.ReadDir(filepath.Join(store, d)); err != nil || len(list) != 0 {
			t.Errorf("%s: %v %v", d, list, err)
		}
	}
}

func init() {
	// empty DIR: removes all images.
	helpers["empty"] = func(args []string) error {
		s, err := Open(Config{Dir: args[0]})
		if err != nil {
			return err
		}
		defer s.Close()
		list, err := s.List()
		if err != nil {
			return err
		}
		for _, img := range list {
			if _, err := s.Remove(context.Background(), img.Digest); err != nil {
				return err
			}
		}
		_, err = s.GC(context.Background(), GCOptions{})
		return err
	}
}
