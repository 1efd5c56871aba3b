// Command flood writes as many bytes as its first argument says (0: without
// end) to stdout, or to stderr when the second argument is "stderr". The bytes
// count up, so that a reader can check them.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: flood BYTES [stderr]")
		os.Exit(2)
	}
	n, err := strconv.ParseInt(os.Args[1], 10, 64)
	if err != nil || n < 0 {
		fmt.Fprintf(os.Stderr, "flood: %q is not a number of bytes\n", os.Args[1])
		os.Exit(2)
	}
	out := os.Stdout
	if len(os.Args) > 2 && os.Args[2] == "stderr" {
		out = os.Stderr
	}
	// A multiple of 251, so that consecutive buffers join.
	buf := make([]byte, 251*261)
	for i := range buf {
		buf[i] = byte(i % 251)
	}
	endless := n == 0
	for endless || n > 0 {
		b := buf
		if !endless && n < int64(len(b)) {
			b = b[:n]
		}
		w, err := out.Write(b)
		n -= int64(w)
		if err != nil {
			fmt.Fprintln(os.Stderr, "flood:", err)
			os.Exit(1)
		}
	}
}
