// Command sha256 prints the SHA-256 of generated data (argument: MiB, 16 by
// default), or of stdin (argument "-"). The data is that of the C program of
// the same name.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strconv"
)

func main() {
	h := sha256.New()
	if len(os.Args) > 1 && os.Args[1] == "-" {
		if _, err := io.Copy(h, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "sha256:", err)
			os.Exit(1)
		}
	} else {
		mib := 16
		if len(os.Args) > 1 {
			n, err := strconv.Atoi(os.Args[1])
			if err != nil || n < 0 {
				fmt.Fprintf(os.Stderr, "sha256: %q is not a number of MiB\n", os.Args[1])
				os.Exit(2)
			}
			mib = n
		}
		buf := make([]byte, 1<<20)
		x := uint32(1)
		for range mib {
			for i := range buf {
				x = x*1664525 + 1013904223
				buf[i] = byte(x >> 24)
			}
			h.Write(buf)
		}
	}
	fmt.Printf("%x\n", h.Sum(nil))
}
