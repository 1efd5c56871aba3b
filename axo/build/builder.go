package build

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/base"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/guest/layer"
	"github.com/axocoatl/isolation/image"
)

// Engine makes sandboxes; *engine.Engine is one.
type Engine interface {
	Create(context.Context, engine.Request) (isolation.Sandbox, engine.Decision, error)
}

// Limits bound a build. Zero is a default.
type Limits struct {
	Memory int64         // bytes, of a step's sandbox; 3 GiB
	Disk   int64         // bytes that a step may write; they are in memory; 2 GiB
	Pids   int64         // 1024
	Step   time.Duration // of one step; 15 min
	Upload int64         // bytes of the files of one step; 1 GiB
	Cached int           // layers that are kept to be used again; 500
	Tenant int64         // bytes of a tenant's templates, each with all that it is made of; 100 GiB
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Memory: cmp.Or(l.Memory, 3<<30), Disk: cmp.Or(l.Disk, 2<<30), Pids: cmp.Or(l.Pids, 1024), Step: cmp.Or(l.Step, 15*time.Minute),
		Upload: cmp.Or(l.Upload, 1<<30), Cached: cmp.Or(l.Cached, 500), Tenant: cmp.Or(l.Tenant, 100<<30),
	}
}

// BuilderConfig makes a Builder.
type BuilderConfig struct {
	Engine Engine
	Images *image.Store
	// Guest is the program axo-guest.
	Guest func() ([]byte, error)
	// Egress is what steps may reach of the network; zero: nothing.
	Egress engine.Egress
	// Registries are those that images may be fetched from; "*" is any. What is here
	// needs none.
	Registries []string
	Limits     Limits
}

// Builder makes images. It is safe for concurrent use.
type Builder struct{ c BuilderConfig }

// New makes a builder.
func New(c BuilderConfig) *Builder {
	c.Limits = c.Limits.withDefaults()
	return &Builder{c}
}

// Entry is a line of what a build tells.
type Entry struct {
	Time    time.Time `json:"timestamp"`
	Level   string    `json:"level"` // debug, info, warn, error
	Message string    `json:"message"`
	Step    string    `json:"step,omitempty"`
}

// Input is one build.
type Input struct {
	Plan
	Tenant string
	// Name is that of the image.
	Name string
	// From finds what FromTemplate names; nil: there are no templates.
	From func(name string) (image.Image, error)
	// Files opens what was uploaded.
	Files func(hash string) (io.ReadCloser, error)
	// Keychain has the credentials for FromImage, and what is fetched with them is Tenant's
	// alone; nil: none.
	Keychain image.Keychain
	// Own is of who runs the program: what is fetched is with the credentials of docker login.
	Own bool
	// Log is called for what the build tells, one entry at a time.
	Log func(Entry)
}

// StepError is why a build failed, and where: "base" is what it begins with, "1" the
// first step.
type StepError struct {
	Step string
	Err  error
}

// Error implements error.
func (e *StepError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *StepError) Unwrap() error { return e.Err }

// state is what the next step begins with.
type state struct {
	img   image.Image // its programs are root's
	key   string      // of all that it was made of
	force bool
	env   []string
	user  string
	dir   string
}

// Labels of images that were built as templates: what it is called, and what runs in
// every sandbox of it from the beginning.
const (
	Label      = "io.axocoatl.template"
	StartLabel = "io.axocoatl.start"
	ReadyLabel = "io.axocoatl.ready"
)

// cacheName begins the names of layers that are kept.
const cacheName = "axo.local/build/cache:"

// Build makes the image.
func (b *Builder) Build(ctx context.Context, in Input) (image.Image, error) {
	if err := in.Validate(); err != nil {
		return image.Image{}, err
	}
	if in.Shell == nil {
		in.Shell = []string{"/bin/bash", "-l", "-c"}
	}
	fail := func(step string, err error) (image.Image, error) {
		return image.Image{}, &StepError{step, err}
	}
	// Not only when all was done.
	if err := image.CheckName(in.Name); err != nil {
		return fail("base", err)
	}
	bctx, cancel := b.bounded(ctx)
	s, from, err := b.begin(bctx, &in)
	cancel()
	if err != nil {
		return fail("base", err)
	}
	for i, step := range in.Steps {
		name := fmt.Sprint(i + 1)
		in.log(name, "info", "[%d/%d] %s", i+1, len(in.Steps), step)
		if err := b.step(ctx, &in, s, step, name); err != nil {
			return fail(name, fmt.Errorf("%s: %w", step, err))
		}
	}
	c := from.Config
	c.Env, c.User, c.WorkingDir, c.Labels = s.env, s.user, s.dir, maps.Clone(c.Labels)
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	delete(c.Labels, base.Label)
	c.Labels[Label] = in.Name
	if in.Start != "" {
		c.Labels[StartLabel], c.Labels[ReadyLabel] = in.Start, in.Ready
	}
	c.Entrypoint, c.Cmd = pick(in.Entrypoint, in.Cmd, c.Entrypoint, c.Cmd)
	img, err := b.c.Images.Extend(ctx, s.img, image.ExtendOptions{Name: in.Name, Config: &c})
	if err != nil {
		return fail("finalize", err)
	}
	in.log("finalize", "info", "image %s, %d MiB", img.Digest, img.UnpackedSize>>20)
	return img, nil
}

// bounded is for one step.
func (b *Builder) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, b.c.Limits.Step, fmt.Errorf("the step took longer than %v: %w", b.c.Limits.Step, isolation.ErrResourceExhausted))
}

// pick has an entrypoint of its own, or a command, take the place of the image's; with
// the entrypoint the image's command goes.
func pick(entrypoint, cmd, theirs, theirCmd []string) ([]string, []string) {
	switch {
	case entrypoint != nil:
		return entrypoint, cmd
	case cmd != nil:
		return theirs, cmd
	}
	return theirs, theirCmd
}

func (in *Input) log(step, level, format string, args ...any) {
	in.Log(Entry{time.Now(), level, fmt.Sprintf(format, args...), step})
}

// begin finds what a build begins with.
func (b *Builder) begin(ctx context.Context, in *Input) (*state, image.Image, error) {
	var img image.Image
	var err error
	if in.FromTemplate != "" {
		in.log("base", "info", "FROM template %s", in.FromTemplate)
		if in.From == nil {
			return nil, img, fmt.Errorf("template %s: there are none: %w", in.FromTemplate, isolation.ErrNotFound)
		}
		img, err = in.From(in.FromTemplate)
	} else {
		in.log("base", "info", "FROM %s", in.FromImage)
		img, err = b.image(ctx, in)
	}
	if err != nil {
		return nil, img, err
	}
	s := &state{img: img, force: in.Force, env: img.Config.Env, user: img.Config.User, dir: img.Config.WorkingDir}
	s.key = keyOf("1", in.Tenant, img.Digest, fmt.Sprint(in.Plain))
	if !in.Plain && in.FromTemplate == "" {
		s.user, s.dir = "user", "/home/user"
	}
	if s.user == "" {
		s.user = "root"
	}
	if s.dir == "" {
		s.dir = "/"
	}
	if got, ok := b.cached(ctx, s); ok {
		s.img = got
		return s, img, nil
	}
	// Its programs are root's, whatever the image says of them.
	root := image.RunConfig{User: "0", WorkingDir: "/", Env: img.Config.Env}
	if s.img, err = b.c.Images.Extend(ctx, img, image.ExtendOptions{Config: &root, Name: cacheName + keyOf(s.key, "root")}); err != nil {
		return nil, img, err
	}
	if in.Plain || in.FromTemplate != "" || base.Of(img) {
		return s, img, b.c.Images.Name(ctx, s.img.Digest, cacheName+s.key)
	}
	if err := b.addUser(ctx, in, s); err != nil {
		return nil, img, fmt.Errorf("add the user \"user\": %w", err)
	}
	return s, img, nil
}

// image finds an image here, or fetches it, if that is allowed.
func (b *Builder) image(ctx context.Context, in *Input) (image.Image, error) {
	ref := in.FromImage
	if name, ok := strings.CutPrefix(strings.TrimSuffix(ref, ":latest"), "e2bdev/"); ok {
		ref = name // of those there are our own
	}
	var img image.Image
	o := image.PullOptions{Keychain: in.Keychain}
	switch {
	case in.Keychain != nil:
		// The registry says who may have it, each time. What others may not fetch they
		// must not find here.
		o.Name = cacheName + keyOf("fetched", in.Tenant, ref)
	default:
		var err error
		if img, err = b.c.Images.Get(ref); err == nil && Private(img) {
			return image.Image{}, notFound("image", ref)
		} else if !errors.Is(err, isolation.ErrNotFound) {
			return img, err
		}
		if !in.Own {
			o.Keychain = image.Anonymous()
		}
	}
	registry := image.Registry(ref)
	if !slices.Contains(b.c.Registries, "*") && !slices.Contains(b.c.Registries, registry) {
		return img, fmt.Errorf("image %s is not on this host, and builds may not fetch from %s: axo image pull %s, or the setting build.registries: %w", ref, registry, ref, isolation.ErrNotFound)
	}
	in.log("base", "info", "fetching %s", ref)
	return b.c.Images.Pull(ctx, ref, o)
}

// addUser makes the user that E2B's templates have, if the image has none.
func (b *Builder) addUser(ctx context.Context, in *Input, s *state) error {
	const script = `set -e
if ! grep -q '^user:' /etc/passwd; then
	id=1000
	while grep -q "^[^:]*:[^:]*:$id:" /etc/passwd /etc/group; do id=$((id + 1)); done
	shell=/bin/bash; [ -x $shell ] || shell=/bin/sh
	echo "user:x:$id:$id::/home/user:$shell" >>/etc/passwd
	echo "user:x:$id:" >>/etc/group
	[ ! -f /etc/shadow ] || echo 'user:!:19000:0:99999:7:::' >>/etc/shadow
fi
mkdir -p /home/user
chown user:user /home/user
if [ -d /etc/sudoers.d ]; then
	echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/user
	chmod 440 /etc/sudoers.d/user
fi`
	x, err := b.open(ctx, in, s.img.Digest)
	if err != nil {
		return err
	}
	defer func() { _ = x.close(ctx) }()
	return b.commit(ctx, s, x, "user", func() error {
		return b.command(ctx, in, x, "base", isolation.ProcessSpec{Args: []string{"/bin/sh", "-c", script}, User: "0", Cwd: "/"})
	})
}

// keyOf is made of the key of what was there, and of what is done.
func keyOf(parts ...string) string {
	b, _ := json.Marshal(parts) // strings are always written
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// cached finds what a state's key was made before. Who uses it keeps it.
func (b *Builder) cached(ctx context.Context, s *state) (image.Image, bool) {
	if s.force {
		return image.Image{}, false
	}
	img, err := b.c.Images.Get(cacheName + s.key)
	if err != nil {
		return img, false
	}
	return img, b.c.Images.Name(ctx, img.Digest, cacheName+s.key) == nil
}

// commit makes a layer of what do changes in a sandbox, and keeps it.
func (b *Builder) commit(ctx context.Context, s *state, x *box, by string, do func() error) error {
	before, err := x.tree(ctx)
	if err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	pr, pw := io.Pipe()
	result := make(chan error, 1)
	go func() {
		err := layerOf(ctx, pw, before, x.pack)
		pw.CloseWithError(err)
		result <- err
	}()
	img, err := b.c.Images.Extend(ctx, s.img, image.ExtendOptions{Layer: pr, Name: cacheName + s.key, By: by})
	pr.CloseWithError(errEnded)
	if lerr := <-result; lerr != nil && !errors.Is(lerr, errEnded) && err == nil {
		err = lerr
	}
	if err != nil {
		return err
	}
	s.img = img
	return nil
}

// step does one step.
func (b *Builder) step(ctx context.Context, in *Input, s *state, step Step, name string) error {
	s.force = s.force || step.Force
	switch step.Type {
	case Env:
		for i := 0; i+1 < len(step.Args); i += 2 {
			s.env = setEnv(s.env, step.Args[i], step.Args[i+1])
		}
		return nil
	case User:
		if err := b.hasUser(ctx, s, step.Args[0]); err != nil {
			return err
		}
		s.user = step.Args[0]
		return nil
	case Workdir:
		s.dir = s.abs(step.Args[0])
	}
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	s.key = keyOf(append([]string{s.key, step.Type, step.FilesHash, s.user, s.dir, strings.Join(s.env, "\x00"), strings.Join(in.Shell, "\x00")}, step.Args...)...)
	if img, ok := b.cached(ctx, s); ok {
		in.log(name, "info", "CACHED")
		s.img = img
		return nil
	}
	x, err := b.open(ctx, in, s.img.Digest)
	if err != nil {
		return err
	}
	defer func() { _ = x.close(ctx) }()
	return b.commit(ctx, s, x, step.String(), func() error {
		switch step.Type {
		case Copy:
			return b.copy(ctx, in, s, x, step)
		case Workdir:
			return x.put(ctx, s.dir, s.user, true, func(w io.Writer) error {
				return errors.Join(layer.Write(w, layer.Record{Type: layer.Dir, Mode: 0o755}), layer.Write(w, layer.Record{Type: layer.End}))
			})
		}
		user := step.arg(1)
		if user == "" {
			user = s.user
		}
		return b.command(ctx, in, x, name, isolation.ProcessSpec{Args: append(slices.Clone(in.Shell), step.Args[0]), Env: s.env, User: user, Cwd: s.dir})
	})
}

// abs is a directory as a step names it.
func (s *state) abs(name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(s.dir, name)
}

func setEnv(env []string, name, value string) []string {
	out := slices.DeleteFunc(slices.Clone(env), func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	return append(out, name+"="+value)
}

func (b *Builder) hasUser(ctx context.Context, s *state, name string) error {
	r, err := b.c.Images.RootFS(ctx, s.img)
	if err != nil {
		return err
	}
	defer r.Release()
	if _, _, ok := r.User(name); !ok {
		return invalid("the image has no user %.80q", name)
	}
	return nil
}

func (b *Builder) copy(ctx context.Context, in *Input, s *state, x *box, step Step) error {
	open := func() (io.ReadCloser, error) {
		f, err := in.Files(step.FilesHash)
		if err != nil {
			return nil, fmt.Errorf("files: %w", err)
		}
		return f, nil
	}
	f, err := open()
	if err != nil {
		return err
	}
	single, err := step.single(f, b.c.Limits.Upload)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if f, err = open(); err != nil {
		return err
	}
	defer f.Close()
	owner, dest := step.arg(2), s.abs(step.Args[1])
	if owner == "" {
		owner = s.user
	}
	into := !single || strings.HasSuffix(step.Args[1], "/") || step.Args[1] == "."
	return x.put(ctx, dest, owner, into, func(w io.Writer) error { return step.records(w, f, b.c.Limits.Upload) })
}

// command runs a step's program, and tells what it writes.
func (b *Builder) command(ctx context.Context, in *Input, x *box, step string, p isolation.ProcessSpec) error {
	l := &lines{in: in, step: step}
	out, errs := &stream{l: l, level: "info"}, &stream{l: l, level: "warn"}
	exit, err := x.run(ctx, p, isolation.Stdio{Stdout: out, Stderr: errs})
	out.end()
	errs.end()
	switch {
	case err != nil:
		return err
	case exit.Reason == isolation.ReasonExited && exit.Code == 0:
		return nil
	}
	if b.c.Egress.IsZero() && exit.Reason == isolation.ReasonExited {
		in.log(step, "warn", "steps have no network here; the setting build.allow_hosts gives them some")
	}
	return &ExitError{exit}
}

// Prune removes the layers that were not used for the longest time, if there are more
// than are kept, and what failed builds and removed templates have left.
func (b *Builder) Prune(ctx context.Context) error {
	list, err := b.c.Images.List()
	if err != nil && list == nil {
		return err
	}
	type kept struct {
		name string
		used time.Time
	}
	var all []kept
	for _, img := range list {
		for _, n := range img.Names {
			if strings.HasPrefix(n, cacheName) {
				all = append(all, kept{n, img.Added})
			}
		}
	}
	slices.SortFunc(all, func(x, y kept) int { return x.used.Compare(y.used) })
	var errs []error
	for _, k := range all[:max(0, len(all)-b.c.Limits.Cached)] {
		if _, err := b.c.Images.Remove(ctx, k.name); err != nil && !errors.Is(err, isolation.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	_, err = b.c.Images.GC(ctx, image.GCOptions{KeepPartial: true})
	return errors.Join(append(errs, err)...)
}
