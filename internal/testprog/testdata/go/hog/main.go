// Command hog takes and touches memory: as many MiB as its argument says, or
// all that it can get.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	limit := -1
	if len(os.Args) > 1 {
		var err error
		if limit, err = strconv.Atoi(os.Args[1]); err != nil {
			fmt.Fprintf(os.Stderr, "hog: %q is not a number of MiB\n", os.Args[1])
			os.Exit(2)
		}
	}
	var kept [][]byte
	for n := 0; limit < 0 || n < limit; n++ {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = byte(n + 1)
		}
		kept = append(kept, b)
	}
	fmt.Printf("took %d MiB\n", len(kept))
}
