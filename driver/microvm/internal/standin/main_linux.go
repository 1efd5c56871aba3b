package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// version is that of the Firecracker whose ways these are.
const version = "1.16.1"

func main() {
	socket := flag.String("api-sock", "/run/firecracker.socket", "")
	flag.String("id", "anonymous-instance", "")
	flag.String("level", "Info", "")
	asks := flag.Bool("version", false, "")
	flag.Parse()
	if *asks {
		fmt.Printf("Firecracker v%s\n", version)
		return
	}
	if err := serve(*socket); err != nil {
		fmt.Fprintln(os.Stderr, "standin:", err)
		os.Exit(1)
	}
}

func serve(socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	m := &machine{}
	s := &http.Server{Handler: &api{vmm: m}, ReadHeaderTimeout: time.Minute}
	m.gone = func() { os.Exit(0) } // as Firecracker does when its machine ends
	if err := s.Serve(l); err != nil {
		return err
	}
	return context.Canceled
}
