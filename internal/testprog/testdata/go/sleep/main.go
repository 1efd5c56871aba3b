// Command sleep sleeps for a time ("1.5s"), then prints how long it was.
package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: sleep DURATION")
		os.Exit(2)
	}
	d, err := time.ParseDuration(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "sleep:", err)
		os.Exit(2)
	}
	start := time.Now()
	time.Sleep(d)
	fmt.Println(time.Since(start).Round(time.Millisecond))
}
