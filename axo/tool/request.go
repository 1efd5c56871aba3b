package tool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// group reads an element of entrypoint.args.
func group(a any) ([]string, error) {
	switch v := a.(type) {
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, 0, len(v))
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil, errors.New("want a string, or a list of strings")
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, errors.New("want a string, or a list of strings")
}

// expand puts properties of an input in place of "{name}", and one brace in place of
// two. It reports whether the input has all that the text names.
func expand(text string, in map[string]any) (s string, whole bool, err error) {
	var b strings.Builder
	whole = true
	for text != "" {
		i := strings.IndexAny(text, "{}")
		if i < 0 {
			b.WriteString(text)
			break
		}
		b.WriteString(text[:i])
		switch rest := text[i:]; {
		case strings.HasPrefix(rest, "{{"), strings.HasPrefix(rest, "}}"):
			b.WriteByte(rest[0])
			text = rest[2:]
		case rest[0] == '}':
			return "", false, fmt.Errorf("%.200q: a } without a {", text)
		default:
			end := strings.IndexByte(rest, '}')
			if end < 0 {
				return "", false, fmt.Errorf("%.200q: a { without a }", text)
			}
			v, ok := in[rest[1:end]]
			if !ok {
				whole = false
			} else if str, ok := v.(string); ok {
				b.WriteString(str)
			} else {
				j, err := json.Marshal(v)
				if err != nil {
					return "", false, err
				}
				b.Write(j)
			}
			text = rest[end+1:]
		}
	}
	return b.String(), whole, nil
}

// arguments are the tool's own, for an input.
func (t Tool) arguments(in map[string]any) ([]string, error) {
	var out []string
	for _, a := range t.Manifest.Entrypoint.Args {
		list, err := group(a)
		if err != nil {
			return nil, err
		}
		if t.Manifest.Convention != ConventionArgs {
			out = append(out, list...)
			continue
		}
		_, optional := a.([]any)
		all := true
		for i, s := range list {
			var whole bool
			if list[i], whole, err = expand(s, in); err != nil {
				return nil, err
			}
			if !whole && !optional {
				return nil, fmt.Errorf("the input lacks a property of %.200q: %w", s, errInput)
			}
			all = all && whole
		}
		if all {
			out = append(out, list...)
		}
	}
	return out, nil
}

var errInput = errors.New("invalid input")

// Subject is what a policy judges a tool by, whatever its input.
func (t Tool) Subject(tenant, source string) engine.Request {
	m := t.Manifest
	r := engine.Request{Tool: t.Ref(), Signer: string(t.SignedBy), Source: source, Spec: isolation.Spec{Requirement: m.Requirement, Tenant: tenant, Mounts: t.mounts()}}
	if m.Entrypoint.Image != "" {
		r.Spec.Root.Image = t.image()
	}
	return r
}

// Request is a call's without an input: what would be asked of the engine.
func (t Tool) Request() (engine.Request, error) {
	r, err := t.base(nil)
	if err != nil {
		return r, err
	}
	if len(t.Manifest.Files.Out) > 0 {
		r.CopyOut = t.copyOut(".") // asked about, not made
	}
	if t.Manifest.Convention == ConventionBundle {
		r.CopyOut = append(r.CopyOut, engine.Copy{Guest: outputPath, Host: "output.json", Optional: true})
	}
	if len(r.Process.Args) == 0 {
		r.Process.Args = []string{t.Manifest.Name}
	}
	return r, nil
}

func (t Tool) mounts() (out []isolation.Mount) {
	for _, x := range t.Manifest.Mounts {
		out = append(out, isolation.Mount{Source: x.Source, Destination: x.Destination, ReadOnly: !x.Writable})
	}
	return out
}

// image is the entrypoint's: the name, by which rules go, and the content that it had
// when the tool was added.
func (t Tool) image() string {
	name, _, _ := strings.Cut(t.Manifest.Entrypoint.Image, "@")
	switch {
	case t.ImageDigest == "":
		return t.Manifest.Entrypoint.Image
	case strings.HasPrefix(name, "sha256:"):
		return t.ImageDigest
	}
	return name + "@" + t.ImageDigest
}

// base is what is alike in all calls: what runs, and what is around it.
func (t Tool) base(args []string) (r engine.Request, err error) {
	m := t.Manifest
	r.Tool, r.Signer = t.Ref(), string(t.SignedBy)
	r.Spec = isolation.Spec{Requirement: m.Requirement, Resources: m.Limits.resources()}
	r.Process.Limits = m.Limits.process()
	r.MinTier, r.Engine, r.AllowEmulated = m.MinTier, m.Engine, m.AllowEmulated
	r.Spec.Mounts = t.mounts()
	for i, x := range m.Files.In {
		r.CopyIn = append(r.CopyIn, engine.Copy{Host: filepath.Join(t.dir, fmt.Sprintf("in-%d", i)), Guest: x.Destination})
	}
	return r, t.program(&r, args)
}

// request is a call's. dir is a private directory, for what is copied.
func (t Tool) request(input []byte, in any, dir string, secret func(ref string) (string, error)) (r engine.Request, err error) {
	m := t.Manifest
	properties, _ := in.(map[string]any) // the schema says that it is one
	args, err := t.arguments(properties)
	if err != nil {
		return r, err
	}
	if r, err = t.base(args); err != nil {
		return r, err
	}
	for _, k := range slices.Sorted(maps.Keys(m.Env)) {
		v := m.Env[k]
		if m.Convention == ConventionArgs {
			var whole bool
			if v, whole, err = expand(v, properties); err != nil {
				return r, err
			} else if !whole {
				continue
			}
		}
		r.Process.Env = append(r.Process.Env, k+"="+v)
	}
	for _, k := range slices.Sorted(maps.Keys(m.Secrets)) {
		v, err := secret(m.Secrets[k])
		if err != nil {
			return r, fmt.Errorf("secret %s: %w", k, err)
		}
		r.Process.Env = append(r.Process.Env, k+"="+v)
	}
	switch m.Convention {
	case ConventionJSON:
		r.Stdin = bytes.NewReader(input)
	case ConventionBundle:
		host := filepath.Join(dir, "input.json")
		if err := os.WriteFile(host, input, 0o644); err != nil {
			return r, err
		}
		r.CopyIn = append(r.CopyIn, engine.Copy{Host: host, Guest: inputPath})
	}
	return r, nil
}

// program fills in what runs.
func (t Tool) program(r *engine.Request, args []string) (err error) {
	m := t.Manifest
	switch e := m.Entrypoint; {
	case e.Module != "":
		r.Spec.Module = isolation.Module{Path: filepath.Join(t.dir, moduleFile), Digest: t.ModuleDigest}
		r.Process.Args = append([]string{m.Name}, args...)
	case e.Source != "":
		code, err := readFile(filepath.Join(t.dir, "source"), maxSource)
		if err != nil {
			return err
		}
		if m.Requirement == isolation.Arbitrary {
			r.Spec.Language = e.Language
		}
		if r.Process.Args, err = isolation.ScriptArgs(e.Language, string(code), args...); err != nil {
			return err
		}
		if e.Language == "sh" && len(args) > 0 {
			// The first one is the program's name to a shell.
			r.Process.Args = slices.Insert(r.Process.Args, 3, m.Name)
		}
	case e.Image != "":
		r.Spec.Root.Image, r.Process.Args = t.image(), args
	case e.Bundle != "":
		if err := t.bundle(&r.Spec, &r.Process); err != nil {
			return err
		}
		r.Process.Args = append(r.Process.Args, args...)
	default:
		r.Process.Args = append(slices.Clone(e.Command), args...)
	}
	return nil
}
