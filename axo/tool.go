package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/signature"
	"github.com/axocoatl/isolation/axo/tool"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/image"
)

// toolsDir is the registry of tools in the state directory.
const toolsDir = "tools"

func newTool() *cobra.Command {
	c := &cobra.Command{
		Use:   "tool",
		Short: "Make, add, list, call and remove tools",
		Long: `Tools are declared once, in a manifest (tool.toml; axo tool schema prints its JSON
Schema), and called by name. What is called is what was added: a tool's digest is of
its manifest and its files. Each call runs in the tier that the tool and the policy
demand.`,
		Example: `  axo tool init words && axo tool add words && axo tool call words '{"text":"a b c"}'`,
	}
	c.AddCommand(newToolInit(), newToolAdd(), newToolLs(), newToolShow(), newToolCall(), newToolTest(), newToolRm(), newToolSchema(), newToolSign())
	return c
}

func openTools(c *cobra.Command) (*tool.Registry, error) {
	dir, err := stateDir(c)
	if err != nil {
		return nil, err
	}
	return tool.Open(filepath.Join(dir, toolsDir))
}

// withCaller runs a command on the registry and an engine, and reports its error as
// others are.
func withCaller(c *cobra.Command, asJSON bool, f func(*tool.Caller, *engine.Engine) error) error {
	reg, err := openTools(c)
	if err != nil {
		return failed(c, err, asJSON)
	}
	e, err := openEngine(c)
	if err != nil {
		return failed(c, err, asJSON)
	}
	defer e.Close()
	err = f(&tool.Caller{Registry: reg, Engine: e}, e)
	var status *statusError
	if err != nil && !errors.As(err, &status) {
		return failed(c, err, asJSON)
	}
	return err
}

func newToolInit() *cobra.Command {
	var kind, name string
	c := &cobra.Command{
		Use:   "init [flags] DIR",
		Short: "Write a tool that works, to begin with",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if name == "" {
				abs, err := filepath.Abs(args[0])
				if err != nil {
					return err
				}
				name = strings.ToLower(filepath.Base(abs))
			}
			files, err := tool.Init(args[0], name, kind)
			if err != nil {
				return failed(c, err, false)
			}
			for _, f := range files {
				fmt.Fprintln(c.OutOrStdout(), filepath.Join(args[0], f))
			}
			return nil
		},
	}
	c.Flags().StringVar(&kind, "kind", "python", strings.Join(tool.Kinds(), ", "))
	c.Flags().StringVar(&name, "name", "", "its name (default: the directory's)")
	return c
}

func newToolAdd() *cobra.Command {
	var asJSON, replace bool
	c := &cobra.Command{
		Use:   "add [flags] DIR|tool.toml...",
		Short: "Take tools into the registry, and try what they need",
		Long: `Take tools into the registry. A module is compiled, an image pulled and pinned, an
interpreter or program started or looked for, in the tier that a call would run in.
What is wrong is told with its line, and then nothing of the tool is taken. A signature
that is there (tool.toml.sig) has to be good; whose tools may do what is the policy's.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withCaller(c, asJSON, func(caller *tool.Caller, e *engine.Engine) error {
				p := tool.Preparer{Engine: e, Image: func(ctx context.Context, ref string) (string, error) { return pinImage(c, ctx, ref) }}
				added := []tool.Tool{}
				for _, dir := range args {
					t, err := caller.Registry.Add(c.Context(), dir, tool.AddOptions{Replace: replace, Prepare: p.Prepare})
					if err != nil {
						return err
					}
					if added = append(added, t); !asJSON {
						fmt.Fprintf(c.OutOrStdout(), "%s, would run in %s\n%s\n", t.Ref(), t.RanIn, t.Digest)
						if t.SignedBy != "" {
							fmt.Fprintf(c.OutOrStdout(), "signed by %s\n", t.SignedBy.Fingerprint())
						}
					}
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), added)
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&replace, "replace", false, "put other content in a version's place")
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of the tools")
	return c
}

// pinImage finds an image, or pulls it.
func pinImage(c *cobra.Command, ctx context.Context, ref string) (digest string, err error) {
	dir, err := stateDir(c)
	if err != nil {
		return "", err
	}
	s, err := image.Open(image.Config{Dir: filepath.Join(dir, all.ImagesDir)})
	if err != nil {
		return "", err
	}
	defer s.Close()
	img, err := s.Get(ref)
	if errors.Is(err, isolation.ErrNotFound) {
		p := newProgress(c.ErrOrStderr(), false)
		img, err = s.Pull(ctx, ref, image.PullOptions{Progress: p.event})
		p.done()
	}
	return img.Digest, err
}

func newToolLs() *cobra.Command {
	var asJSON, every bool
	c := &cobra.Command{
		Use:   "ls",
		Short: "List tools",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			reg, err := openTools(c)
			if err != nil {
				return err
			}
			list, err := reg.List(every)
			if err != nil {
				return failed(c, err, asJSON)
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), append([]tool.Tool{}, list...))
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tVERSION\tREQUIREMENT\tADDED\tDESCRIPTION")
			for _, t := range list {
				m := t.Manifest
				first, _, _ := strings.Cut(m.Description, "\n")
				fmt.Fprintf(w, "%s\t%s\t%v\t%s\t%.60s\n", m.Name, m.Version, m.Requirement, t.Added.Local().Format(time.DateTime), printable(first))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVarP(&every, "all", "a", false, "list every version, not the last of each")
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of tools")
	return c
}

func newToolShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME[@VERSION]",
		Short: "Print what is known of a tool, as JSON",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			reg, err := openTools(c)
			if err != nil {
				return err
			}
			t, err := reg.Get(args[0])
			if err != nil {
				return failed(c, err, false)
			}
			return printJSON(c.OutOrStdout(), t)
		},
	}
}

func newToolCall() *cobra.Command {
	var asJSON bool
	var call tool.Call
	c := &cobra.Command{
		Use:   "call [flags] NAME[@VERSION] [JSON|@FILE|-]",
		Short: "Call a tool",
		Long: `Call a tool with a JSON object, given as it is, in a file, or on stdin (-), and print
its output. What the tool says of its progress goes to stderr.

Exit status: 0; 1 if its output, or a result file, is not what its manifest says;
126 if the input is not; else as of axo run.`,
		Example: `  axo tool call words '{"text":"one two"}'
  axo tool call --json --out results chart @numbers.json`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			call.Tool, call.Source = args[0], "cli"
			if len(args) == 2 {
				if call.Input, err = readInput(args[1]); err != nil {
					return misused(c, err, asJSON)
				}
			}
			if call.Dir != "" {
				if err := os.MkdirAll(call.Dir, 0o755); err != nil {
					return &statusError{exitEngine, err}
				}
			}
			call.Progress = func(p tool.Progress) {
				of := ""
				if p.Total > 0 {
					of = fmt.Sprintf(" of %g", p.Total)
				}
				fmt.Fprintf(c.ErrOrStderr(), "%g%s %s\n", p.Progress, of, printable(p.Message))
			}
			return withCaller(c, asJSON, func(caller *tool.Caller, _ *engine.Engine) error {
				res, err := caller.Call(c.Context(), call)
				if err != nil {
					return err
				}
				return printCall(c, res, asJSON)
			})
		},
	}
	c.Flags().StringVar(&call.Dir, "out", "", "put result files into this directory")
	c.Flags().StringVar(&call.Tenant, "tenant", "", "whose call it is")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object with the result")
	return c
}

func readInput(arg string) ([]byte, error) {
	const most = 8 << 20
	var r io.Reader = strings.NewReader(arg)
	if arg == "-" {
		r = os.Stdin
	} else if name, ok := strings.CutPrefix(arg, "@"); ok {
		f, err := os.Open(name)
		if err != nil {
			return nil, &statusError{exitNotFound, err}
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("the input has more than %d bytes", most)
	}
	return b, err
}

func printCall(c *cobra.Command, res *tool.Result, asJSON bool) error {
	if asJSON {
		if err := printJSON(c.OutOrStdout(), res); err != nil {
			return &statusError{exitEngine, err}
		}
	}
	if res.Failure == nil {
		if asJSON {
			return nil
		}
		var text string
		if json.Unmarshal(res.Output, &text) != nil {
			text = string(res.Output)
		}
		fmt.Fprintln(c.OutOrStdout(), strings.TrimRight(text, "\n"))
		for _, a := range res.Artifacts {
			fmt.Fprintf(c.ErrOrStderr(), "%s, %s, %s\n", a.Path, a.MediaType, bytesOf(a.Bytes))
		}
		return nil
	}
	status := &statusError{code: 1}
	switch {
	case res.Run == nil:
		status.code = exitRefused
	case res.Failure.Kind != tool.FailedOutput && res.Failure.Kind != tool.FailedFile:
		if status.code = statusOf(res.Run.Exit, context.Cause(c.Context())); status.code == 0 {
			status.code = 1
		}
	}
	if !asJSON {
		status.err = fmt.Errorf("%s: %s: %s", res.Tool, res.Failure.Kind, res.Failure.Message)
		if res.Run != nil {
			_, _ = io.Copy(c.ErrOrStderr(), bytes.NewReader([]byte(res.Run.Stderr.String())))
		}
	}
	return status
}

func newToolTest() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "test [flags] NAME[@VERSION]...",
		Short: "Call tools as their manifests' tests say",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withCaller(c, asJSON, func(caller *tool.Caller, _ *engine.Engine) error {
				out := []tool.TestResult{}
				bad := 0
				for _, ref := range args {
					list, err := caller.Test(c.Context(), ref)
					if err != nil {
						return err
					}
					if len(list) == 0 && !asJSON {
						fmt.Fprintf(c.OutOrStdout(), "%s: it has no tests\n", ref)
					}
					for _, x := range list {
						what := "ok"
						if x.Problem != "" {
							what, bad = "FAILED: "+printable(x.Problem), bad+1
						}
						if !asJSON {
							fmt.Fprintf(c.OutOrStdout(), "%s: %s: %s\n", ref, x.Name, what)
						}
					}
					out = append(out, list...)
				}
				if asJSON {
					if err := printJSON(c.OutOrStdout(), out); err != nil {
						return err
					}
				}
				if bad > 0 {
					return &statusError{code: 1}
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of results")
	return c
}

func newToolRm() *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME|NAME@VERSION|DIGEST...",
		Short: "Remove tools",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			reg, err := openTools(c)
			if err != nil {
				return err
			}
			var errs []error
			for _, ref := range args {
				gone, err := reg.Remove(ref)
				for _, g := range gone {
					fmt.Fprintln(c.OutOrStdout(), "removed", g)
				}
				errs = append(errs, err)
			}
			if err := errors.Join(errs...); err != nil {
				return failed(c, err, false)
			}
			return nil
		},
	}
}

func newToolSchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of tool.toml",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write(tool.ManifestSchema)
			return err
		},
	}
}

func newToolSign() *cobra.Command {
	var key string
	var show bool
	c := &cobra.Command{
		Use:   "sign (--key FILE | --print) DIR|tool.toml",
		Short: "Sign a tool with a key of SSH's",
		Long: `Sign a tool that is to be added: write tool.toml.sig beside its manifest. What is
signed are the digests of the manifest and of each file that it names, as sha256sum
prints them. The policy says whose tools may do what (signed_by; axo policy --help).

A key with a passphrase, in an agent or on a security key signs by ssh-keygen.`,
		Example: `  axo tool sign --key ~/.ssh/id_ed25519 words
  axo tool sign --print words | ssh-keygen -Y sign -n axo-tool -f ~/.ssh/id_ed25519_sk > words/tool.toml.sig`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if show == (key != "") {
				return errors.New("want --key FILE, or --print")
			}
			message, file, err := tool.Signable(args[0])
			if err != nil {
				return failed(c, err, false)
			}
			if show {
				_, err := c.OutOrStdout().Write(message)
				return err
			}
			private, err := os.ReadFile(key)
			if err != nil {
				return &statusError{exitNotFound, err}
			}
			sig, err := signature.Sign(private, message, tool.SignatureNamespace)
			if errors.Is(err, signature.ErrPassphrase) {
				err = fmt.Errorf("%w; axo tool sign --print %s | ssh-keygen -Y sign -n %s -f %s > %s", err, args[0], tool.SignatureNamespace, key, file)
			}
			if err == nil {
				err = os.WriteFile(file, sig, 0o644)
			}
			if err != nil {
				return failed(c, err, false)
			}
			fmt.Fprintln(c.OutOrStdout(), file)
			return nil
		},
	}
	c.Flags().StringVar(&key, "key", "", "the private key")
	c.Flags().BoolVar(&show, "print", false, "print what would be signed, and sign nothing")
	return c
}
