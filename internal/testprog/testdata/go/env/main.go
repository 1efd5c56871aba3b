// Command env prints its environment, sorted, one a line.
package main

import (
	"fmt"
	"os"
	"sort"
)

func main() {
	list := os.Environ()
	sort.Strings(list)
	for _, e := range list {
		fmt.Println(e)
	}
}
