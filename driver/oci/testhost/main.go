// Command testhost lives a detached sandbox's life for a test that kills it on the
// way: it makes one, runs programs in it and deletes it, and says on its standard
// output what is done. Its arguments are an oci.Config as JSON, a sandbox id, and
// whether memory is to be limited.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
)

func main() {
	if err := life(); err != nil {
		fmt.Fprintln(os.Stderr, "testhost:", err)
		os.Exit(1)
	}
}

// short is how many programs run to their end: some are forgotten by then.
const short = 18

func life() error {
	var c oci.Config
	if err := json.Unmarshal([]byte(os.Args[1]), &c); err != nil {
		return err
	}
	d, err := oci.New(c)
	if err != nil {
		return err
	}
	ctx := context.Background()
	spec := isolation.Spec{Requirement: isolation.Shell, Detached: true}
	if os.Args[3] == "true" {
		spec.Resources.MemoryBytes = 64 << 20
	}
	sb, err := d.Create(ctx, os.Args[2], spec)
	if err != nil {
		return err
	}
	fmt.Println("created")
	run := func(id, script string) (isolation.Process, error) {
		return sb.Exec(ctx, isolation.ProcessSpec{ExecID: id, Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}, isolation.Stdio{Stdout: io.Discard})
	}
	if _, err := run("long", "echo long; sleep 86398 & sleep 86398"); err != nil {
		return err
	}
	fmt.Println("long")
	for i := range short {
		id := fmt.Sprintf("short-%d", i)
		p, err := run(id, fmt.Sprintf("echo %s; exit %d", id, i))
		if err != nil {
			return err
		}
		fmt.Println(id)
		if _, err := p.Wait(ctx); err != nil {
			return err
		}
	}
	fmt.Println("deleting")
	if err := sb.Delete(ctx); err != nil {
		return err
	}
	fmt.Println("deleted")
	return d.Close()
}
