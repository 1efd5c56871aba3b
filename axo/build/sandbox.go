package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// helperDir is guest/layer's HelperDir, in the sandbox.
const (
	helperDir = "/.axo-build"
	helper    = helperDir + "/axo-guest"
)

// box is the sandbox of one step.
type box struct {
	sb isolation.Sandbox
}

// open makes a sandbox of an image whose programs are root's.
func (b *Builder) open(ctx context.Context, in *Input, digest string) (_ *box, err error) {
	tier := isolation.TierOCI
	sb, _, err := b.c.Engine.Create(ctx, engine.Request{
		Spec: isolation.Spec{
			Requirement: isolation.Arbitrary, Root: isolation.Root{Image: digest}, Profile: "session", Tenant: in.Tenant + "/build",
			Resources: isolation.Resources{MemoryBytes: b.c.Limits.Memory, DiskBytes: b.c.Limits.Disk, Pids: b.c.Limits.Pids},
		},
		Tier: &tier, Source: "build", Egress: b.c.Egress,
	})
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	x := &box{sb}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.close(ctx))
		}
	}()
	files, ok1 := isolation.As[isolation.Files](sb)
	dirs, ok2 := isolation.As[isolation.Directories](sb)
	if !ok1 || !ok2 {
		return nil, &isolation.UnsupportedError{Feature: "building in this sandbox", Need: "an engine whose sandboxes have files"}
	}
	program, err := b.c.Guest()
	if err != nil {
		return nil, err
	}
	if err := dirs.Mkdir(ctx, helperDir, 0o700); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	if err := files.WriteFile(ctx, helper, 0o700, bytes.NewReader(program)); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	return x, nil
}

// close removes the sandbox, also when nobody waits for it any more.
func (x *box) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return x.sb.Delete(ctx)
}

// run runs a program to its end, or to that of ctx.
func (x *box) run(ctx context.Context, p isolation.ProcessSpec, io isolation.Stdio) (isolation.Exit, error) {
	proc, err := x.sb.Exec(ctx, p, io)
	if err != nil {
		return isolation.Exit{}, err
	}
	exit, err := proc.Wait(ctx)
	if ctx.Err() != nil {
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = proc.Kill(kill, isolation.SIGKILL) // the sandbox goes in any case
		return exit, context.Cause(ctx)
	}
	return exit, err
}

// helper runs one of the helper's commands.
func (x *box) helper(ctx context.Context, stdio isolation.Stdio, args ...string) error {
	var says tail
	stdio.Stderr = &says
	exit, err := x.run(ctx, isolation.ProcessSpec{Args: append([]string{helper, "layer"}, args...), User: "0", Cwd: "/"}, stdio)
	switch {
	case err != nil:
		return err
	case exit.Reason != isolation.ReasonExited || exit.Code != 0:
		return fmt.Errorf("%s: %w", strings.TrimPrefix(strings.TrimSpace(says.String()), "axo-guest: "), &ExitError{exit})
	case exit.Stdout.Cut:
		return fmt.Errorf("what the sandbox told of its files is not whole: %w", isolation.ErrUnavailable)
	}
	return nil
}

// pack has read get what the helper tells of the sandbox's files; a mark of 0 is none.
func (x *box) pack(ctx context.Context, since int64, read func(io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pr, pw := io.Pipe()
	done := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		err := read(pr)
		if err != nil {
			cancel(err)
		}
		pr.CloseWithError(errors.New("read by nobody"))
		close(done)
		result <- err
	}()
	mark := ""
	if since != 0 {
		mark = strconv.FormatInt(since, 10)
	}
	err := x.helper(ctx, isolation.Stdio{Stdin: after(done), Stdout: pw}, "pack", mark)
	pw.CloseWithError(io.ErrUnexpectedEOF)
	if rerr := <-result; rerr != nil && (err == nil || errors.Is(err, rerr)) {
		return rerr
	}
	return err
}

// after is an input that ends when a channel is closed.
type after chan struct{}

func (a after) Read([]byte) (int, error) { <-a; return 0, io.EOF }

// tree reads the names of the sandbox's files.
func (x *box) tree(ctx context.Context) (t tree, err error) {
	err = x.pack(ctx, 0, func(r io.Reader) (err error) { t, err = readTree(r, nil, nil); return err })
	return t, err
}

// put copies files into the sandbox: write gives the helper's records.
func (x *box) put(ctx context.Context, dest, owner string, into bool, write func(io.Writer) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pr, pw := io.Pipe()
	result := make(chan error, 1)
	go func() {
		err := write(pw)
		if err != nil && !errors.Is(err, errEnded) {
			cancel(err)
		}
		pw.CloseWithError(err)
		result <- err
	}()
	kind := "as"
	if into {
		kind = "into"
	}
	err := x.helper(ctx, isolation.Stdio{Stdin: pr}, "put", path.Clean("/"+dest), owner, kind)
	pr.CloseWithError(errEnded)
	if werr := <-result; werr != nil && !errors.Is(werr, errEnded) {
		return werr
	}
	return err
}

var errEnded = errors.New("the program has ended")

// ExitError is how a step's program ended.
type ExitError struct{ Exit isolation.Exit }

// Error implements error.
func (e *ExitError) Error() string {
	text := e.Exit.String()
	for _, l := range e.Exit.LimitsHit {
		text += fmt.Sprintf("; it ran into its limit of %s", l.Limit)
	}
	return text
}

// tail keeps the end of what is written. It is safe for concurrent use.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailBytes = 4096

// Write implements [io.Writer].
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	t.b = t.b[max(0, len(t.b)-tailBytes):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(string(t.b), "\uFFFD")
}
