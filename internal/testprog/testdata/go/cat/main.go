// Command cat copies stdin to stdout, and to stderr too when its argument is
// "both".
package main

import (
	"fmt"
	"io"
	"os"
)

func main() {
	var out io.Writer = os.Stdout
	if len(os.Args) > 1 && os.Args[1] == "both" {
		out = io.MultiWriter(os.Stdout, os.Stderr)
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := os.Stdin.Read(buf)
		if n > 0 {
			if _, werr := out.Write(buf[:n]); werr != nil {
				fmt.Fprintln(os.Stderr, "cat:", werr)
				os.Exit(1)
			}
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "cat:", err)
			os.Exit(1)
		}
	}
}
