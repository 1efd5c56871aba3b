package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/axo/policy"
)

func newPolicy() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Check the rules that say who may run what",
		Long: `A policy is a file of rules (--policy, AXO_POLICY, or engine.policy in the settings).
The first rule that matches a request decides; where none does, the strict default:
no directories of the host, no trusted programs, no network. axo explain, and each
result, names the rule. A daemon reads a file that has changed; a broken one leaves
the policy as it was.

A rule with signed_by matches registered tools that were signed by one of these keys
(axo tool sign --help) when they were added.`,
		Example: `  [[rule]]
  name = "tools of ours"
  tools = ["csv-*"]
  min_tier = "oci"
  directories = [{ path = "/srv/data" }]
  hosts = ["pypi.org"]
  max = { memory = "512M", timeout = "1m" }

  [[key]]
  name = "release"
  key = "ssh-ed25519 AAAA..."

  [[rule]]
  name = "our releases"
  signed_by = ["release"]
  hosts = ["*"]

  [[rule]]
  name = "other tools"
  tools = ["*"]
  deny = "nobody whom we know signed it"

  [[rule]]
  name = "strangers"
  sources = ["mcp"]
  min_tier = "microvm"`,
	}
	var asJSON bool
	check := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Read a policy, and tell what is wrong in it",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := settings(c)
			if err != nil {
				return err
			}
			name := l.Engine.Policy
			if len(args) > 0 {
				name = args[0]
			}
			if name == "" {
				return errors.New("there is no policy: name a file")
			}
			f, err := policy.Read(name)
			if err != nil {
				return failed(c, err, asJSON)
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), f)
			}
			for _, r := range f.Rules {
				fmt.Fprintln(c.OutOrStdout(), "rule", printable(r.Name))
			}
			fmt.Fprintf(c.OutOrStdout(), "%s is well: %d rules\n", name, len(f.Rules))
			return nil
		},
	}
	check.Flags().BoolVar(&asJSON, "json", false, "print the rules as JSON")
	c.AddCommand(check)
	return c
}
