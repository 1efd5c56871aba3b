package image

import (
	"bufio"
	"bytes"
	"strconv"
	"strings"
)

// maxUserFile bounds what is read of an image's /etc/passwd and /etc/group.
const maxUserFile = 1 << 20

// User returns the numbers that a user has in the image: a name or a number,
// with :group or :number or without; empty means root. A name is looked up in
// the image's own /etc/passwd and /etc/group, as its layers show them; ok is
// false if those do not tell, or are not plain files.
func (r *RootFS) User(user string) (uid, gid int, ok bool) {
	name, group, both := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	n, nerr := parseID(name)
	uid, ok = n, nerr == nil
	r.records("etc/passwd", 7, func(f []string) bool {
		u, err := parseID(f[2])
		g, gerr := parseID(f[3])
		if err != nil || gerr != nil || f[0] != name && (nerr != nil || u != n) {
			return false
		}
		uid, gid, ok = u, g, true
		return true
	})
	if !ok || !both {
		return uid, gid, ok
	}
	if n, err := parseID(group); err == nil {
		return uid, n, true
	}
	ok = false
	r.records("etc/group", 3, func(f []string) bool {
		n, err := parseID(f[2])
		if err != nil || f[0] != group {
			return false
		}
		gid, ok = n, true
		return true
	})
	return uid, gid, ok
}

func parseID(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err
}

// records calls take for the lines of at least n fields, until it returns true.
func (r *RootFS) records(name string, n int, take func([]string) bool) {
	b, err := readLayers(r.Layers, name, maxUserFile)
	if err != nil {
		return
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if f := strings.Split(s.Text(), ":"); len(f) >= n && take(f) {
			return
		}
	}
}
