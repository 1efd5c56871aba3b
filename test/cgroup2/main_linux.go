package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/axocoatl/isolation/test/inside"
)

func main() {
	c := inside.Config{Name: "cgroup2", Programs: programs, OneThread: true}
	var only, run string
	flag.StringVar(&c.Package, "kernel", "", "Debian package with the kernel")
	flag.StringVar(&c.Log, "log", "build/cgroup2.log", "file for all that the tests say")
	flag.StringVar(&only, "only", "", "run only this job")
	flag.StringVar(&run, "run", "", "tests to run, instead of the job's own choice")
	flag.DurationVar(&c.Deadline, "deadline", 10*time.Minute, "bounds the machine's life")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if c.Jobs, err = jobs(only, run); err == nil {
		err = inside.Run(ctx, &c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cgroup2:", err)
		os.Exit(1)
	}
}
