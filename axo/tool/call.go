package tool

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// maxInput and maxOutput bound what goes into a tool and comes out of it, in bytes.
const (
	maxInput  = 8 << 20
	maxOutput = 8 << 20
)

// FailureKind says why a call failed.
type FailureKind string

// Why a call failed. These are results: the tool was found and the engine did its
// work.
const (
	FailedInput    FailureKind = "invalid_input"  // nothing was run
	FailedExit     FailureKind = "exit"           // it ended with another status than 0, a signal or a trap
	FailedLimit    FailureKind = "limit"          // a limit ended it
	FailedCanceled FailureKind = "canceled"       // its caller gave up
	FailedOutput   FailureKind = "invalid_output" // not JSON, or not as its schema says
	FailedFile     FailureKind = "missing_file"   // a result file is not there, or may not be taken
)

var failureKinds = []FailureKind{FailedInput, FailedExit, FailedLimit, FailedCanceled, FailedOutput, FailedFile}

// Failure is why a call has no output.
type Failure struct {
	Kind    FailureKind `json:"kind"`
	Message string      `json:"message"`
}

// Call is a call of a tool.
type Call struct {
	Tool  string          // as Registry.Get takes it
	Input json.RawMessage // an object; empty: one without properties
	// Key names the call, in its tenant: a second call by the same key has the first
	// one's result and runs nothing. It is kept for a day, in this process. Empty: none.
	Key    string
	Tenant string
	Source string // by which way it came, for a policy
	// Progress is told what the tool says of it, in order, while it runs; nil: nobody.
	Progress func(Progress)
	// Dir is where result files go, and is there; empty: they are left in the sandbox.
	Dir string
}

// Progress is what a tool says on stderr, in a line with a JSON object that has
// "progress", a number.
type Progress struct {
	Progress float64 `json:"progress"`
	Total    float64 `json:"total,omitempty"`
	Message  string  `json:"message,omitempty"`
}

// Artifact is a result file.
type Artifact struct {
	Name      string `json:"name"`
	MediaType string `json:"media_type"`
	Bytes     int64  `json:"bytes"`
	Path      string `json:"path"` // on the host; it is the caller's to remove
}

// Result of a call.
type Result struct {
	Tool    string   `json:"tool"` // name@version
	Digest  string   `json:"digest"`
	Failure *Failure `json:"failure,omitempty"`
	// Output is JSON, as the tool's schema says.
	Output    json.RawMessage `json:"output,omitempty"`
	Artifacts []Artifact      `json:"artifacts,omitempty"`
	Replayed  bool            `json:"replayed,omitempty"` // of an earlier call by the same key
	// Run has the decision, usage and limits; nil: nothing was run.
	Run *engine.Result `json:"run,omitempty"`
}

// Engine runs programs in sandboxes of their own; *engine.Engine is one.
type Engine interface {
	Run(context.Context, engine.Request) (*engine.Result, error)
}

// Caller calls the tools of a registry. Its fields are set before its first call. It
// is safe for concurrent use.
type Caller struct {
	Registry *Registry
	Engine   Engine
	// Secret resolves a reference of a manifest; nil: Secret.
	Secret func(ref string) (string, error)

	mu      sync.Mutex
	places  map[string]chan struct{} // by digest; guarded by mu
	schemas map[string]schemas       // by digest; guarded by mu
	keys    keys                     // guarded by mu
}

type schemas struct{ in, out schema }

// Secret resolves "env:NAME" and "file:/path" of this process.
func Secret(ref string) (string, error) {
	if name, ok := strings.CutPrefix(ref, "env:"); ok {
		v, ok := os.LookupEnv(name)
		if !ok {
			return "", fmt.Errorf("the variable %s is not set: %w", name, isolation.ErrFailedPrecondition)
		}
		return v, nil
	}
	b, err := readFile(strings.TrimPrefix(ref, "file:"), 64<<10)
	return strings.TrimRight(string(b), "\r\n"), err
}

// Call calls a tool. An error is the engine's, or the registry's: such a tool is not
// there, or no tier may run it. That the tool failed is a Result.
func (c *Caller) Call(ctx context.Context, call Call) (*Result, error) {
	t, err := c.Registry.Get(call.Tool)
	if err != nil {
		return nil, err
	}
	if len(call.Input) == 0 {
		call.Input = json.RawMessage("{}")
	}
	if call.Key == "" {
		return c.run(ctx, t, call)
	}
	return c.once(ctx, t, call)
}

func (c *Caller) run(ctx context.Context, t Tool, call Call) (*Result, error) {
	res := &Result{Tool: t.Ref(), Digest: t.Digest}
	fail := func(kind FailureKind, format string, a ...any) *Result {
		res.Failure = &Failure{kind, fmt.Sprintf(format, a...)}
		return res
	}
	s, err := c.schemasOf(t)
	if err != nil {
		return nil, err
	}
	if len(call.Input) > maxInput {
		return fail(FailedInput, "the input has more than %d bytes", maxInput), nil
	}
	in, err := s.in.check(call.Input)
	if err != nil {
		return fail(FailedInput, "the input is not valid: %v", err), nil
	}
	leave, err := c.enter(ctx, t)
	if err != nil {
		return nil, err
	}
	defer leave()
	dir := ""
	if t.Manifest.Convention == ConventionBundle || len(t.Manifest.Files.Out) > 0 && call.Dir != "" {
		if dir, err = os.MkdirTemp("", "axo-call-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
	}
	secret := c.Secret
	if secret == nil {
		secret = Secret
	}
	r, err := t.request(call.Input, in, dir, secret)
	if errors.Is(err, errInput) {
		return fail(FailedInput, "%v", err), nil
	} else if err != nil {
		return nil, err
	}
	r.Source, r.Spec.Tenant = call.Source, call.Tenant
	r.Capture = engine.Capture{Head: maxOutput, Tail: 64 << 10}
	if call.Progress != nil {
		r.Stderr = &progress{tell: call.Progress}
	}
	if t.Manifest.Convention == ConventionBundle {
		r.CopyOut = append(r.CopyOut, engine.Copy{Guest: outputPath, Host: filepath.Join(dir, "output.json"), Optional: true})
	}
	if call.Dir != "" {
		r.CopyOut = append(r.CopyOut, t.copyOut(dir)...)
	}
	if r.CopyOutBytes = int64(t.Manifest.Files.MaxBytes); r.CopyOutBytes == 0 {
		r.CopyOutBytes = defaultFilesOut
	}
	res.Run, err = c.Engine.Run(ctx, r)
	switch {
	case err == nil:
	case copied(err) && res.Run != nil:
		// The program's own fault, or its making: a link, a device, too much.
		if f := ended(res.Run.Exit); f != nil {
			res.Failure = f
			return res, nil
		}
		return fail(FailedFile, "%v", err), nil
	default:
		return nil, err
	}
	if res.Failure = ended(res.Run.Exit); res.Failure != nil {
		return res, nil
	}
	if err := res.output(t, s.out, dir); err != nil {
		return fail(FailedOutput, "%v", err), nil
	}
	if call.Dir != "" {
		if err := res.keep(t, dir, call.Dir); err != nil {
			return fail(FailedFile, "%v", err), nil
		}
	}
	return res, nil
}

// copied reports whether an error is of what was to be copied out.
func copied(err error) bool {
	var e *isolation.Error
	return errors.As(err, &e) && e.Op == "copy out" && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// ended is the failure of a program that did not end well; nil: it did.
func ended(e isolation.Exit) *Failure {
	switch e.Reason {
	case isolation.ReasonExited:
		if e.Code == 0 && !e.Stdout.Cut {
			return nil
		}
		if e.Code == 0 {
			return &Failure{FailedOutput, "its output may not be whole"}
		}
	case isolation.ReasonTimeoutWall, isolation.ReasonTimeoutCPU, isolation.ReasonOOM, isolation.ReasonOutputLimit, isolation.ReasonFuelExhausted:
		return &Failure{FailedLimit, e.String()}
	case isolation.ReasonCanceled:
		return &Failure{FailedCanceled, e.String()}
	}
	return &Failure{FailedExit, e.String()}
}

// output takes the output from where the convention has it.
func (r *Result) output(t Tool, s schema, dir string) error {
	out := r.Run.Stdout.Head
	switch {
	case t.Manifest.Convention == ConventionBundle:
		b, err := readFile(filepath.Join(dir, "output.json"), maxOutput)
		if err != nil {
			return fmt.Errorf("%s: it has not been written, or is too large", outputPath)
		}
		out = b
	case r.Run.StdoutBytes > int64(len(out)):
		return fmt.Errorf("it wrote %d bytes, and at most %d are taken", r.Run.StdoutBytes, maxOutput)
	}
	if t.Manifest.Convention == ConventionArgs && t.Manifest.Output == nil {
		var err error
		r.Output, err = json.Marshal(strings.ToValidUTF8(string(out), "�"))
		return err
	}
	out = bytes.TrimSpace(out)
	if !utf8.Valid(out) {
		return errors.New("the output is not UTF-8")
	}
	if _, err := s.check(out); err != nil {
		return fmt.Errorf("the output is not valid: %w; it begins with %.200q", err, out)
	}
	r.Output = json.RawMessage(out)
	return nil
}

// copyOut is what is taken out of a sandbox, into a directory.
func (t Tool) copyOut(dir string) (list []engine.Copy) {
	for i, f := range t.Manifest.Files.Out {
		list = append(list, engine.Copy{Guest: f.Path, Host: filepath.Join(dir, fmt.Sprintf("out-%d", i)), Optional: f.Optional})
	}
	return list
}

// keep moves result files to where the caller wants them. What was copied is regular
// files and directories of this process's; only files are taken.
func (r *Result) keep(t Tool, from, to string) error {
	for i, f := range t.Manifest.Files.Out {
		temp := filepath.Join(from, fmt.Sprintf("out-%d", i))
		info, err := os.Lstat(temp)
		if errors.Is(err, os.ErrNotExist) && f.Optional {
			continue
		} else if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a file", f.Path)
		}
		final := filepath.Join(to, f.Name)
		if err := move(temp, final); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		r.Artifacts = append(r.Artifacts, Artifact{Name: f.Name, MediaType: f.MediaType, Bytes: info.Size(), Path: final})
	}
	return nil
}

// move renames, or copies to another file system.
func move(from, to string) error {
	if os.Rename(from, to) == nil {
		return nil
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, err := copyFile(to, from)
	return err
}

func (c *Caller) schemasOf(t Tool) (s schemas, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.schemas[t.Digest]; ok {
		return s, nil
	}
	if s.in, err = compileInput(t.InputSchema()); err != nil {
		return s, err
	}
	if b := t.OutputSchema(); b != nil {
		if s.out, err = compile(b); err != nil {
			return s, err
		}
	}
	if c.schemas == nil {
		c.schemas = map[string]schemas{}
	}
	c.schemas[t.Digest] = s
	return s, nil
}

// enter waits for a place among a tool's calls.
func (c *Caller) enter(ctx context.Context, t Tool) (leave func(), err error) {
	n := t.Manifest.Concurrency
	if n == 0 {
		return func() {}, nil
	}
	c.mu.Lock()
	p, ok := c.places[t.Digest]
	if !ok {
		if c.places == nil {
			c.places = map[string]chan struct{}{}
		}
		p = make(chan struct{}, n)
		c.places[t.Digest] = p
	}
	c.mu.Unlock()
	select {
	case p <- struct{}{}:
		return func() { <-p }, nil
	case <-ctx.Done():
		return nil, &isolation.Error{Op: "wait for a place", ID: t.Ref(), Outcome: isolation.NotStarted, Err: context.Cause(ctx)}
	}
}

// Bounds of the keys that are kept.
const (
	maxKeys = 4096
	keyLife = 24 * time.Hour
)

type keys map[string]*keyed

// keyed is a call by a key.
type keyed struct {
	input string // digest of tool and input
	began time.Time
	done  chan struct{} // closed when it has ended
	res   *Result
	err   error
}

// once runs a call by a key the first time, and waits for it after that.
func (c *Caller) once(ctx context.Context, t Tool, call Call) (*Result, error) {
	if len(call.Key) > 256 {
		return nil, fmt.Errorf("idempotency key has more than 256 bytes: %w", isolation.ErrInvalidArgument)
	}
	sum := sha256.Sum256(append([]byte(t.Digest), call.Input...))
	input := hex.EncodeToString(sum[:])
	id := fmt.Sprintf("%q %q", call.Tenant, call.Key)
	c.mu.Lock()
	k, ok := c.keys[id]
	if ok && time.Since(k.began) < keyLife {
		c.mu.Unlock()
		if k.input != input {
			return nil, fmt.Errorf("idempotency key %.80q is of another call: %w", call.Key, isolation.ErrFailedPrecondition)
		}
		select {
		case <-k.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if k.err != nil {
			return nil, k.err
		}
		res := *k.res
		res.Replayed = true
		return &res, nil
	}
	if c.keys == nil {
		c.keys = keys{}
	}
	if len(c.keys) >= maxKeys {
		c.keys.forget()
	}
	if len(c.keys) >= maxKeys {
		c.mu.Unlock()
		return nil, fmt.Errorf("more than %d calls with keys are under way: %w", maxKeys, isolation.ErrResourceExhausted)
	}
	k = &keyed{input: input, began: time.Now(), done: make(chan struct{})}
	c.keys[id] = k
	c.mu.Unlock()
	k.res, k.err = c.run(ctx, t, call)
	if k.err != nil && isolation.OutcomeOf(k.err) != isolation.OutcomeUnknown || k.res != nil && k.res.Failure != nil && k.res.Failure.Kind == FailedCanceled {
		// Nothing was run, or its caller gave up: the next one tries.
		c.mu.Lock()
		delete(c.keys, id)
		c.mu.Unlock()
	}
	close(k.done)
	return k.res, k.err
}

// forget drops the older half of the calls that have ended.
func (k keys) forget() {
	var ended []string
	for id, x := range k {
		select {
		case <-x.done:
			ended = append(ended, id)
		default:
		}
	}
	slices.SortFunc(ended, func(a, b string) int { return k[a].began.Compare(k[b].began) })
	for _, id := range ended[:(len(ended)+1)/2] {
		delete(k, id)
	}
}

// progress finds progress in what a tool writes to stderr. It is a stranger's: lines
// are bounded, and what is no progress is passed over.
type progress struct {
	tell func(Progress)
	line []byte
	skip bool // the line was too long
}

const maxProgress = 4 << 10

// Write implements io.Writer.
func (p *progress) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		part := b
		if i >= 0 {
			part = b[:i]
		}
		if len(p.line)+len(part) > maxProgress {
			p.line, p.skip = p.line[:0], true
		} else if !p.skip {
			p.line = append(p.line, part...)
		}
		if i < 0 {
			break
		}
		p.end()
		b = b[i+1:]
	}
	return n, nil
}

func (p *progress) end() {
	line := bytes.TrimSpace(p.line)
	if !p.skip && len(line) > 0 && line[0] == '{' {
		var v struct {
			Progress *float64 `json:"progress"`
			Total    float64  `json:"total"`
			Message  string   `json:"message"`
		}
		if json.Unmarshal(line, &v) == nil && v.Progress != nil {
			p.tell(Progress{*v.Progress, v.Total, v.Message})
		}
	}
	p.line, p.skip = p.line[:0], false
}
