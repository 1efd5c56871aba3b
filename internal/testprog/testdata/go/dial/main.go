// Command dial tries to reach the network. Where that is refused it says so
// and exits with status 3.
package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	addr := "127.0.0.1:1"
	if len(os.Args) > 1 {
		addr = os.Args[1]
	}
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		fmt.Println("refused:", err)
		os.Exit(3)
	}
	c.Close()
	fmt.Println("connected")
}
