// Command fork tries to start a program. Where that is refused it says so and
// exits with status 3.
package main

import (
	"fmt"
	"os"
)

func main() {
	p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	if err != nil {
		fmt.Println("refused:", err)
		os.Exit(3)
	}
	p.Wait()
	fmt.Println("started")
}
