package tool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// Preparer tries tools, and makes ready what their first calls need.
type Preparer struct {
	Engine *engine.Engine
	// Image returns the digest of an image of this host's; one that is not here it
	// fetches. nil: tools with an image are refused.
	Image func(ctx context.Context, ref string) (digest string, err error)
}

// Prepare finds the engine that would run a tool, and has it compile the module, start the
// interpreter, or look for the program. What fails there would fail in each call.
func (p Preparer) Prepare(ctx context.Context, t *Tool) error {
	e := t.Manifest.Entrypoint
	if e.Image != "" {
		if p.Image == nil {
			return &isolation.UnsupportedError{Feature: "a tool with an image", Need: "a store of images"}
		}
		var err error
		if t.ImageDigest, err = p.Image(ctx, e.Image); err != nil {
			return err
		}
	}
	r, err := t.Request()
	if err != nil {
		return err
	}
	d, err := p.Engine.Explain(ctx, r)
	if err != nil {
		return err
	}
	t.RanIn = d.Got.String() + "/" + d.Engine
	r.CopyOut = nil
	switch {
	case e.Source != "":
		if r.Process.Args, err = isolation.ScriptArgs(e.Language, map[string]string{"python": "pass", "sh": ":", "js": "0"}[e.Language]); err != nil {
			return err
		}
		return p.try(ctx, r, "the interpreter of "+e.Language)
	case len(e.Command) > 0 && t.Manifest.Requirement != isolation.NativeTrusted && !path.IsAbs(e.Command[0]):
		r.Process.Args = []string{"sh", "-c", `command -v -- "$1" >/dev/null`, "sh", e.Command[0]}
		return p.try(ctx, r, "the program "+e.Command[0])
	}
	// To make its sandbox is to compile it, or to make its root.
	sb, _, err := p.Engine.Create(ctx, r)
	if err != nil {
		return err
	}
	err = engine.CopyIn(ctx, sb, r.CopyIn...)
	return errors.Join(err, sb.Delete(context.WithoutCancel(ctx)))
}

// try runs something for the sake of its status.
func (p Preparer) try(ctx context.Context, r engine.Request, what string) error {
	r.Process.Limits = isolation.Limits{Wall: time.Minute}
	r.Capture = engine.Capture{Tail: 2 << 10}
	res, err := p.Engine.Run(ctx, r)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if !res.Exit.Success() {
		return fmt.Errorf("%s does not run in %v/%s: %v %s: %w", what, res.Tier, res.Engine, res.Exit, bytes.TrimSpace([]byte(res.Stderr.String())), isolation.ErrUnsupported)
	}
	return nil
}
