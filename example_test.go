package isolation_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/mem"
)

// The life of a sandbox, from the driver to the result. Every driver works like
// the one in memory that runs here.
func Example() {
	ctx := context.Background()
	driver := mem.New(mem.Config{})
	defer driver.Close()

	sb, err := driver.Create(ctx, "job-1", isolation.Spec{
		Requirement: isolation.Shell,
		Resources:   isolation.Resources{MemoryBytes: 64 << 20},
	})
	if err != nil {
		fmt.Println("the engine could not:", err)
		return
	}
	// Also when ctx is over, the sandbox has to go.
	defer sb.Delete(context.WithoutCancel(ctx))

	run := func(stdin string, args ...string) {
		p, err := sb.Exec(ctx, isolation.ProcessSpec{
			Args:   args,
			Limits: isolation.Limits{Wall: 50 * time.Millisecond},
		}, isolation.Stdio{Stdin: strings.NewReader(stdin), Stdout: os.Stdout})
		if err != nil {
			fmt.Println("not started:", isolation.OutcomeOf(err) == isolation.NotStarted)
			return
		}
		exit, err := p.Wait(ctx)
		if err != nil {
			fmt.Println("the outcome is unknown:", err)
			return
		}
		fmt.Printf("%v; success: %v\n", exit, exit.Success())
	}
	run("hello\n", "echo")
	run("", "exit", "7")
	run("", "hog", "1000000000")
	run("", "sleep", "60")
	run("", "no-such-program")
	// Output:
	// hello
	// exited with status 0; success: true
	// exited with status 7; success: false
	// oom: memory was refused, and the program failed; success: false
	// timeout_wall: wall time limit of 50ms; success: false
	// not started: true
}

// An ability that not every driver has is asked for, and found through
// wrappers.
func ExampleAs() {
	ctx := context.Background()
	driver := mem.New(mem.Config{})
	defer driver.Close()
	sb, err := driver.Create(ctx, "job-1", isolation.Spec{Requirement: isolation.Shell})
	if err != nil {
		fmt.Println(err)
		return
	}
	if pauser, ok := isolation.As[isolation.Pauser](sb); ok {
		if err := pauser.Pause(ctx); err != nil {
			fmt.Println(err)
		}
		state, _ := sb.State(ctx)
		fmt.Println("it is", state.Status)
	}
	if _, ok := isolation.As[isolation.Preparer](sb); !ok {
		fmt.Println("it starts no interpreters ahead")
	}
	// Output:
	// it is paused
	// it starts no interpreters ahead
}

// What would be chosen on hosts that have less and less.
func ExampleSelectAvailable() {
	for _, have := range [][]isolation.Tier{
		{isolation.TierOCI, isolation.TierMicroVM},
		{isolation.TierOCI},
		{isolation.TierMicroVM},
		nil,
	} {
		fmt.Println(
			isolation.SelectAvailable(isolation.Python, have),
			isolation.SelectAvailable(isolation.ContainerImage, have),
			isolation.SelectAvailable(isolation.WasmCompiled, have),
			isolation.SelectAvailable(isolation.NativeTrusted, have),
		)
	}
	// Output:
	// microvm oci wasm none
	// oci oci wasm none
	// microvm microvm wasm none
	// wasm wasm wasm none
}

// A failure of the engine has a class, and may say what is missing.
func ExampleUnsupportedError() {
	driver := mem.New(mem.Config{Name: "small", Features: func(f *isolation.Features) { f.Options = nil }})
	defer driver.Close()
	_, err := driver.Create(context.Background(), "job-1", isolation.Spec{Requirement: isolation.Shell, Hostname: "h"})
	fmt.Println(err)
	fmt.Println(errors.Is(err, isolation.ErrUnsupported))
	var missing *isolation.UnsupportedError
	if errors.As(err, &missing) {
		fmt.Println("missing:", missing.Feature)
	}
	// Output:
	// small: create job-1: hostname is not supported
	// true
	// missing: hostname
}
