// Command fs does file operations, one for each group of arguments, and prints
// a line for each: "ok" and what it found, or "error" and why. The first error
// gives exit status 1 at the end.
//
//	read F | write F TEXT | append F TEXT | ls D | stat F | mkdir D | rm F |
//	rename A B | symlink TARGET LINK | link A B | readlink L | truncate F N |
//	chtimes F
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

var arity = map[string]int{
	"read": 1, "write": 2, "append": 2, "ls": 1, "stat": 1, "mkdir": 1, "rm": 1, "rename": 2,
	"symlink": 2, "link": 2, "readlink": 1, "truncate": 2, "chtimes": 1,
}

func do(op string, a []string) (string, error) {
	switch op {
	case "read":
		b, err := os.ReadFile(a[0])
		return strconv.Quote(string(b)), err
	case "write":
		return "", os.WriteFile(a[0], []byte(a[1]), 0o644)
	case "append":
		f, err := os.OpenFile(a[0], os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return "", err
		}
		if _, err := f.WriteString(a[1]); err != nil {
			return "", err
		}
		return "", f.Close()
	case "ls":
		list, err := os.ReadDir(a[0])
		var names []string
		for _, e := range list {
			names = append(names, e.Name())
		}
		return strings.Join(names, " "), err
	case "stat":
		fi, err := os.Stat(a[0])
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%v %d", fi.Mode().Type(), fi.Size()), nil
	case "mkdir":
		return "", os.Mkdir(a[0], 0o755)
	case "rm":
		return "", os.Remove(a[0])
	case "rename":
		return "", os.Rename(a[0], a[1])
	case "symlink":
		return "", os.Symlink(a[0], a[1])
	case "link":
		return "", os.Link(a[0], a[1])
	case "readlink":
		return os.Readlink(a[0])
	case "truncate":
		n, err := strconv.ParseInt(a[1], 10, 64)
		if err != nil {
			return "", err
		}
		return "", os.Truncate(a[0], n)
	default:
		return "", os.Chtimes(a[0], time.Unix(1, 0), time.Unix(2, 0))
	}
}

func main() {
	failed := false
	args := os.Args[1:]
	for len(args) > 0 {
		op := args[0]
		n, known := arity[op]
		if !known || len(args) <= n {
			fmt.Fprintf(os.Stderr, "fs: %q is no operation, or has too few arguments\n", op)
			os.Exit(2)
		}
		found, err := do(op, args[1:1+n])
		if err != nil {
			failed = true
			fmt.Println("error", op, err)
		} else {
			fmt.Println(strings.TrimSpace("ok " + op + " " + found))
		}
		args = args[1+n:]
	}
	if failed {
		os.Exit(1)
	}
}
