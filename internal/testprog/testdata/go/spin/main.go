// Command spin computes for ever. With an argument it first prints it.
package main

import "os"

var sink uint64

func main() {
	if len(os.Args) > 1 {
		os.Stdout.WriteString(os.Args[1] + "\n")
	}
	for x := uint64(1); ; x = x*6364136223846793005 + 1 {
		sink = x
	}
}
