// Command axo runs tool code in the strongest isolation that this host has.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/config"
	"github.com/axocoatl/isolation/axo/internal/startup"
)

func main() { os.Exit(Main()) }

// Main runs the command line and returns the exit status.
func Main() int {
	startup.Collect()
	ctx, stop := signals()
	defer stop()
	root := newRoot()
	err := root.ExecuteContext(ctx)
	var status *statusError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		if status.err != nil {
			fmt.Fprintln(os.Stderr, "axo:", errorText(status.err))
		}
		return status.code
	}
	fmt.Fprintln(os.Stderr, "axo:", errorText(err))
	return exitUsage
}

// errorText shows an error, which may quote what a sandbox, an image or a
// registry said, line by line.
func errorText(err error) string {
	lines := strings.Split(plain(err), "\n")
	for i, l := range lines {
		lines[i] = printable(l)
	}
	return strings.Join(lines, "\n")
}

// plain is an error's text without the wrappings of the engine. The ids in them
// were made here and say nothing to anybody; the name of an engine does.
func plain(err error) string {
	engine := ""
	for {
		e, ok := err.(*isolation.Error)
		if !ok || e.Err == nil {
			return engine + err.Error()
		}
		if err = e.Err; e.Driver != "" {
			engine = e.Driver + ": "
		}
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "axo",
		Short: "Run tool code in the strongest isolation that this host has",
		Long: `axo runs a WebAssembly module, a script, a command or a trusted program in the
strongest tier of isolation that this host really has and that can run it, holds
it to its limits, and tells the truth about how it ended.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w (see %s --help)", err, c.CommandPath())
	})
	root.PersistentFlags().String("config", "", "file of settings (default $AXO_CONFIG, else "+config.SystemFile+" if it is there)")
	config.Register(root.PersistentFlags(), "", "engine")
	root.AddCommand(newRun(), newExplain(), newDoctor(), newImage(), newRuntime(), newKernel(), newTemplate(), newSetup(), newVersion(),
		newConfig(), newServe(), newKey(), newTenant(), newCreate(), newPs(), newExec(), newShell(), newLogs(), newCp(), newKill(), newPause(), newResume(), newRm(),
		newPort(), newEgress(), newSnapshot(), newSnapshots(), newFork(), newTool(), newMCP(), newPolicy(), newAudit(), newDebug())
	for _, c := range root.Commands() {
		if c.HasSubCommands() && !c.Runnable() {
			// By itself cobra prints the help, as if all were well, also where a name is wrong.
			c.Args = cobra.NoArgs
			c.RunE = func(c *cobra.Command, _ []string) error { return fmt.Errorf("which? see %s --help", c.CommandPath()) }
		}
	}
	return root
}

// interrupted is why a run was canceled by a signal.
type interrupted struct{ sig syscall.Signal }

func (i interrupted) Error() string { return "interrupted by " + i.sig.String() }

// signals returns a context that the first SIGINT or SIGTERM ends, with the
// signal as its cause. A second one ends the program at once.
func signals() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case s := <-ch:
				sig, ok := s.(syscall.Signal)
				if !ok {
					sig = syscall.SIGINT
				}
				if n > 0 {
					os.Exit(128 + int(sig))
				}
				cancel(interrupted{sig})
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(done)
		cancel(nil)
	}
}
