// Command conform does what the conformance suite of drivers asks for: its
// first argument names the program.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail("no program named")
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "exit0":
	case "exit7":
		os.Exit(7)
	case "echo":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			fail(err)
		}
	case "sleep":
		sleep(args)
	case "ready":
		fmt.Println("ready")
		sleep(args)
	case "flood":
		flood(os.Stdout, number(args))
	case "flooderr":
		flood(os.Stderr, number(args))
	case "both":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err")
	case "args":
		for _, a := range args {
			fmt.Print(a, "\x00")
		}
	case "env":
		for _, e := range os.Environ() {
			fmt.Print(e, "\x00")
		}
	case "spin":
		for n := uint64(1); n != 0; n += 2 {
		}
	case "hog":
		hog(number(args))
	case "crash":
		var p *int
		*p = 1
	case "fill":
		fill(number(args))
	case "files":
		files(int(number(args)))
	default:
		fail("unknown program", os.Args[1])
	}
}

func fail(a ...any) {
	fmt.Fprintln(os.Stderr, append([]any{"conform:"}, a...)...)
	os.Exit(1)
}

func number(args []string) int64 {
	if len(args) == 0 {
		fail("a number is missing")
	}
	n, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		fail(err)
	}
	return n
}

func sleep(args []string) {
	s, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		fail(err)
	}
	time.Sleep(time.Duration(s * float64(time.Second)))
}

func flood(w io.Writer, n int64) {
	block := make([]byte, 64<<10)
	for n > 0 {
		m, err := w.Write(block[:min(n, int64(len(block)))])
		if err != nil {
			fail(err)
		}
		n -= int64(m)
	}
}

var kept [][]byte

func hog(n int64) {
	const piece = 1 << 20
	for ; n > 0; n -= piece {
		b := make([]byte, piece)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
}

// dir is where the suite's driver mounts a directory that may be written.
const dir = "/data"

func fill(n int64) {
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		fail(err)
	}
	flood(f, n)
	if err := f.Close(); err != nil {
		fail(err)
	}
}

func files(n int) {
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint("f", i)))
		if err != nil {
			fail(err)
		}
		defer f.Close()
	}
}
