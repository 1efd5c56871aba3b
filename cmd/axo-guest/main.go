// Command axo-guest is the first process of a container or a virtual machine. The
// engine starts it; see package guest.

// Who starts it sets GOMAXPROCS: it need not look at control groups.
//
//go:debug containermaxprocs=0
package main

import (
	"fmt"
	"os"

	"github.com/axocoatl/isolation/guest"
)

func main() {
	if err := guest.Main(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "axo-guest:", err)
		os.Exit(1)
	}
}
