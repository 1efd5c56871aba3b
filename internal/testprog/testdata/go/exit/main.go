// Command exit ends with the status that its argument says. Further arguments
// are printed first: the second to stdout, the third to stderr.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	code := 0
	if len(os.Args) > 1 {
		var err error
		if code, err = strconv.Atoi(os.Args[1]); err != nil {
			fmt.Fprintf(os.Stderr, "exit: %q is not a number\n", os.Args[1])
			os.Exit(2)
		}
	}
	if len(os.Args) > 2 {
		fmt.Fprintln(os.Stdout, os.Args[2])
	}
	if len(os.Args) > 3 {
		fmt.Fprintln(os.Stderr, os.Args[3])
	}
	os.Exit(code)
}
