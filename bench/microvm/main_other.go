//go:build !linux

// Command microvm measures virtual machines, on Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: virtual machines need Linux")
	os.Exit(1)
}
