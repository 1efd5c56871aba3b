package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A layer may have files in a directory that it has no entry for: it means the
// directory as the layers below have it. Unpacked alone, it had to be made, with
// mode 0755; on top of others it would then hide, say, /tmp's 1777. A stack of
// layers with such directories gets one more layer on top, of directories only,
// with the owners and modes of the layers that say them.

// correction returns the directory of that layer, or "" if none is needed.
// dirs and infos are base first.
func (s *Store) correction(ctx context.Context, key string, dirs []string, infos []layerInfo) (string, error) {
	final := s.path(dirLayers, key)
	if _, err := readLayerInfo(final); err == nil {
		return filepath.Join(final, layerRoot), nil
	}
	implied := make([]map[string]bool, len(dirs))
	var names []string
	for i, info := range infos {
		implied[i] = map[string]bool{}
		for _, n := range info.Implied {
			implied[i][n] = true
			if i > 0 {
				names = append(names, n)
			}
		}
	}
	if len(names) == 0 {
		return "", nil
	}
	st := stack{implied: implied}
	defer st.close()
	for _, d := range dirs {
		fd, err := unix.Open(d, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &os.PathError{Op: "open", Path: d, Err: err}
		}
		st.roots = append(st.roots, fd)
	}
	want := map[string]unix.Stat_t{}
	for _, n := range names {
		stat, wrong := st.look(n)
		if !wrong {
			continue
		}
		want[n] = stat
		// What is above it in the new layer is seen too.
		for up := path.Dir(n); ; up = path.Dir(up) {
			want[up], _ = st.look(up)
			if up == "." {
				break
			}
		}
	}
	if len(want) == 0 {
		return "", nil
	}
	l, err := waitLock(ctx, s.path(dirLocks, key))
	if err != nil {
		return "", err
	}
	defer l.remove()
	if _, err := readLayerInfo(final); err == nil {
		return filepath.Join(final, layerRoot), nil
	}
	if err := s.writeCorrection(final, want); err != nil {
		return "", fmt.Errorf("directories of the layers below: %w", err)
	}
	return filepath.Join(final, layerRoot), nil
}

// stack looks at layers on top of each other, as overlayfs does.
type stack struct {
	roots   []int // base first
	implied []map[string]bool
}

func (st *stack) close() {
	for _, fd := range st.roots {
		unix.Close(fd)
	}
}

// look returns what a directory should be, and whether the uppermost layer that
// has it does not say so. It ends where something hides the layers below.
func (st *stack) look(name string) (stat unix.Stat_t, wrong bool) {
	found := false
	for i := len(st.roots) - 1; i >= 0; i-- {
		now, here, hides := lookIn(st.roots[i], name)
		switch {
		case here && !st.implied[i][name]:
			return now, found && (now.Mode != stat.Mode || now.Uid != stat.Uid || now.Gid != stat.Gid)
		case here && !found:
			stat, found = now, true
		}
		if hides {
			break
		}
	}
	return stat, false
}

// lookIn looks into one layer: whether the directory is there, and whether it,
// or what is in the place of it or above it, hides the layers below.
func lookIn(root int, name string) (stat unix.Stat_t, here, hides bool) {
	at := ""
	parts := []string{"."}
	if name != "." {
		parts = strings.Split(name, "/")
	}
	for _, part := range parts {
		at = path.Join(at, part)
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_SYMLINKS}
		fd, err := openat2(root, at, &how)
		if errors.Is(err, unix.ENOENT) {
			return stat, false, hides
		} else if err != nil {
			return stat, false, true
		}
		err = unix.Fstat(fd, &stat)
		if err == nil && stat.Mode&unix.S_IFMT == unix.S_IFDIR && at != "." {
			if v, err := getOpaque(fd, "."); err == nil && v == "y" {
				hides = true
			}
		}
		unix.Close(fd)
		if err != nil || stat.Mode&unix.S_IFMT != unix.S_IFDIR {
			return stat, false, true
		}
	}
	return stat, true, hides
}

// writeCorrection makes the layer and gives it its name.
func (s *Store) writeCorrection(final string, want map[string]unix.Stat_t) error {
	temp, err := s.mkTemp("stack-")
	if err != nil {
		return err
	}
	defer func() { _ = removeTree(temp) }()
	dir := filepath.Join(temp, layerRoot)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	u := &unpacker{dir: dir, limits: s.limits, owners: os.Geteuid() == 0, dirAt: map[string]int{}}
	if u.root, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(u.root)
	u.parent.fd = -1
	for name, stat := range want {
		if name != "." {
			p, err := u.openParent(name)
			if err != nil {
				return err
			}
			p.close()
		}
		u.later(dirMeta{name: name, mode: stat.Mode & 0o7777, uid: int(stat.Uid), gid: int(stat.Gid), mtime: unix.Timespec{Sec: stat.Mtim.Sec, Nsec: stat.Mtim.Nsec}})
	}
	if err := u.finish(); err != nil {
		return err
	}
	b, err := json.Marshal(layerInfo{OwnersMapped: !u.owners, Entries: int64(len(want))})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(temp, layerFile), b, 0o600); err != nil {
		return err
	}
	if err := syncTree(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, final); err != nil {
		return err
	}
	return syncDir(s.path(dirLayers))
}

// readLayers reads a file as it is seen on top of all layers, which are base
// first. Links are not followed, also not those above it.
func readLayers(layers []string, name string, limit int64) ([]byte, error) {
	for _, dir := range slices.Backward(layers) {
		root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: dir, Err: err}
		}
		b, hides, err := readLayer(root, name, limit)
		unix.Close(root)
		if !errors.Is(err, unix.ENOENT) || hides {
			return b, err
		}
	}
	return nil, unix.ENOENT
}

func readLayer(root int, name string, limit int64) (b []byte, hides bool, err error) {
	up := path.Dir(name)
	_, here, hides := lookIn(root, up)
	if !here {
		return nil, hides, unix.ENOENT
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_SYMLINKS}
	dir, err := openat2(root, up, &how)
	if err != nil {
		return nil, true, err
	}
	defer unix.Close(dir)
	base := path.Base(name)
	switch kind, err := kindAt(dir, base); {
	case err != nil:
		return nil, hides, err
	case kind == kindWhiteout:
		return nil, true, unix.ENOENT
	}
	how.Flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := openat2(dir, base, &how)
	if err != nil {
		return nil, true, err
	}
	f := os.NewFile(uintptr(fd), base)
	if err := checkRegular(f); err != nil {
		return nil, true, err
	}
	defer f.Close()
	b, err = readLimited(f, limit)
	return b, true, err
}
