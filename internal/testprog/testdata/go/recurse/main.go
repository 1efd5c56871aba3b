// Command recurse calls itself without end.
package main

import "fmt"

func down(n int) int {
	var pad [64]int
	pad[n%64] = n
	return down(n+1) + pad[(n+7)%64]
}

func main() {
	fmt.Println(down(0))
}
