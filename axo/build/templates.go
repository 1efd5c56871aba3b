package build

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/base"
	"github.com/axocoatl/isolation/image"
)

// How a build stands.
const (
	Waiting  = "waiting"
	Building = "building"
	Ready    = "ready"
	Failed   = "error"
)

// DefaultTag is that of a name without one.
const DefaultTag = "default"

// Template is a name of a tenant's, and what was built under it.
type Template struct {
	ID      string            `json:"id"`
	Tenant  string            `json:"tenant"`
	Name    string            `json:"name"`
	Tags    map[string]string `json:"tags"` // to ids of builds that are ready
	Tagged  map[string]time.Time
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	Builds  []Build   `json:"builds"` // the oldest first
}

// Build is one.
type Build struct {
	ID       string    `json:"id"`
	Status   string    `json:"status"`
	Started  bool      `json:"started"`
	Tags     []string  `json:"tags"` // that it gets when it is ready
	CPUs     int       `json:"cpus,omitempty"`
	MemoryMB int       `json:"memory_mb,omitempty"`
	Image    string    `json:"image,omitempty"` // digest
	Disk     int64     `json:"disk,omitempty"`  // bytes of its files
	Created  time.Time `json:"created"`
	Finished time.Time `json:"finished,omitzero"`
	Reason   *Reason   `json:"reason,omitempty"`
}

// Reason is why a build failed.
type Reason struct {
	Step    string `json:"step,omitempty"`
	Message string `json:"message"`
}

// Config makes Templates.
type Config struct {
	Builder *Builder
	Images  *image.Store
	// Dir keeps the records and what was uploaded; it is made.
	Dir string
	// Concurrent is how many builds run at once; 0: 2.
	Concurrent int
	Logger     *slog.Logger // nil: silent
}

// Templates are those of all tenants. It is safe for concurrent use.
type Templates struct {
	c      Config
	ctx    context.Context
	cancel context.CancelCauseFunc
	turns  chan struct{}
	wg     sync.WaitGroup

	mu      sync.Mutex
	all     map[string]*Template     // by id; guarded by mu
	run     map[string]*running      // by id of build; guarded by mu
	uploads map[string]chan struct{} // places for a tenant's uploads; guarded by mu
}

// running is a build that goes on, or has ended in this process.
type running struct {
	cancel context.CancelCauseFunc
	log    []Entry // guarded by Templates.mu
	size   int     // bytes of the log; guarded by Templates.mu
}

// imageName begins the names of what was built.
const imageName = "axo.local/template/"

// Private reports whether an image is a tenant's alone: a template, or a layer that is kept.
func Private(img image.Image) bool {
	return len(img.Names) > 0 && !slices.ContainsFunc(img.Names, func(n string) bool { return !strings.HasPrefix(n, imageName) && !strings.HasPrefix(n, cacheName) })
}

const (
	maxLog     = 20_000 // entries of a build
	maxLogSize = 4 << 20
	maxBuilds  = 50 // of a template, that are remembered
	maxMine    = 500
	maxTags    = 100
	maxWaiting = 20 // builds of a tenant that run or wait
	atOnce     = 4  // uploads of a tenant
	recordFile = ".json"
	logFile    = ".log"
	uploadsDir = "uploads"
)

var (
	templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,127}$`)
	tagName      = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// Open finds what was built before. Of builds that the process before this one did not
// end nothing is left but that they failed.
func Open(ctx context.Context, c Config) (*Templates, error) {
	if c.Concurrent == 0 {
		c.Concurrent = 2
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Templates{c: c, all: map[string]*Template{}, run: map[string]*running{}, uploads: map[string]chan struct{}{}, turns: make(chan struct{}, c.Concurrent)}
	if err := os.MkdirAll(filepath.Join(c.Dir, uploadsDir), 0o700); err != nil {
		return nil, fmt.Errorf("templates: %w", err)
	}
	list, err := filepath.Glob(filepath.Join(c.Dir, "*"+recordFile))
	if err != nil {
		return nil, fmt.Errorf("templates: %w", err)
	}
	for _, name := range list {
		b, err := os.ReadFile(name)
		x := &Template{}
		if err == nil {
			err = json.Unmarshal(b, x)
		}
		if err != nil || x.ID+recordFile != filepath.Base(name) {
			c.Logger.Error("template cannot be read; it is left alone", "file", name, "error", err)
			continue
		}
		t.all[x.ID] = x
		ended := false
		for i := range x.Builds {
			if b := &x.Builds[i]; b.goesOn() {
				b.Status, b.Finished, b.Reason, ended = Failed, time.Now(), &Reason{Message: "the daemon ended while it was built; build it again"}, true
			}
		}
		if ended {
			if err := t.save(x); err != nil {
				return nil, err
			}
		}
	}
	t.sweep(ctx)
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	return t, nil
}

// goesOn reports whether a build has begun, and not ended.
func (b *Build) goesOn() bool { return b.Started && (b.Status == Waiting || b.Status == Building) }

// sweep removes what nobody knows of: images of builds, logs, and files that came in part.
func (t *Templates) sweep(ctx context.Context) {
	known := map[string]bool{}
	for _, x := range t.all {
		for _, b := range x.Builds {
			known[imageName+x.ID+":"+b.ID], known[x.ID+"."+b.ID+logFile] = b.Status == Ready, true
		}
	}
	list, err := t.c.Images.List()
	for _, img := range list {
		for _, n := range img.Names {
			if strings.HasPrefix(n, imageName) && !known[n] {
				_, rerr := t.c.Images.Remove(ctx, n)
				err = errors.Join(err, rerr)
			}
		}
	}
	logs, _ := filepath.Glob(filepath.Join(t.c.Dir, "*"+logFile))
	for _, l := range logs {
		if !known[filepath.Base(l)] {
			err = errors.Join(err, os.Remove(l))
		}
	}
	parts, _ := filepath.Glob(filepath.Join(t.c.Dir, uploadsDir, "*", "tmp-*"))
	temps, _ := filepath.Glob(filepath.Join(t.c.Dir, "*.tmp"))
	for _, p := range append(parts, temps...) {
		err = errors.Join(err, os.Remove(p))
	}
	err = errors.Join(err, t.c.Builder.Prune(ctx))
	if err != nil {
		t.c.Logger.Warn("remove what is left of templates", "error", err)
	}
}

// Close ends what is being built.
func (t *Templates) Close() {
	t.mu.Lock() // nothing is begun from here on
	t.cancel(errors.New("the daemon ended"))
	t.mu.Unlock()
	t.wg.Wait()
}

// save writes a template down. The caller has mu, or nobody else does anything yet.
func (t *Templates) save(x *Template) error {
	b, err := json.MarshalIndent(x, "", " ")
	if err == nil {
		err = writeFile(filepath.Join(t.c.Dir, x.ID+recordFile), b)
	}
	if err != nil {
		return fmt.Errorf("write down template %s: %w", x.Name, err)
	}
	return nil
}

// writeFile writes a file whole or not at all.
func writeFile(name string, b []byte) error {
	f, err := os.OpenFile(name+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name+".tmp"))
	}
	return os.Rename(name+".tmp", name)
}

// ParseName splits NAME[:TAG].
func ParseName(ref string) (name, tag string, err error) {
	name, tag, ok := strings.Cut(ref, ":")
	if !ok {
		tag = DefaultTag
	}
	if !templateName.MatchString(name) {
		return "", "", invalid("template name %.150q: want lower-case letters, digits, dots, hyphens and underscores", name)
	}
	if !tagName.MatchString(tag) {
		return "", "", invalid("tag %.150q: want letters, digits, dots, hyphens and underscores", tag)
	}
	return name, tag, nil
}

func newID() string { return strings.ToLower(rand.Text()[:20]) }

// newUUID is a random UUID (RFC 9562, 5.4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Want is a build that a tenant wants.
type Want struct {
	Name     string // NAME[:TAG]
	Tags     []string
	CPUs     int
	MemoryMB int
}

// New begins a build, which then waits for [Templates.Start].
func (t *Templates) New(tenant string, w Want) (Template, Build, error) {
	fail := func(err error) (Template, Build, error) { return Template{}, Build{}, err }
	name, tag, err := ParseName(w.Name)
	if err != nil {
		return fail(err)
	}
	if name == base.Name {
		return fail(invalid("the template %q is the server's", name))
	}
	tags := []string{}
	if strings.Contains(w.Name, ":") || len(w.Tags) == 0 {
		tags = append(tags, tag)
	}
	for _, tag := range w.Tags {
		if !tagName.MatchString(tag) {
			return fail(invalid("tag %.150q", tag))
		}
		if !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
	}
	if len(tags) > maxTags {
		return fail(invalid("%d tags: at most %d", len(tags), maxTags))
	}
	if w.CPUs < 0 || w.CPUs > 1024 || w.MemoryMB < 0 || w.MemoryMB > 1<<24 {
		return fail(invalid("%d processors, %d MiB", w.CPUs, w.MemoryMB))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	x, mine, size := t.named(tenant, name), 0, int64(0)
	for _, y := range t.all {
		if y.Tenant == tenant {
			mine++
			for _, b := range y.Builds {
				size += b.Disk
			}
		}
	}
	if most := t.c.Builder.c.Limits.Tenant; size > most {
		return fail(fmt.Errorf("the tenant's templates have %d MiB, of %d MiB (build.tenant); remove some: %w", size>>20, most>>20, isolation.ErrResourceExhausted))
	}
	if x == nil {
		if mine >= maxMine {
			return fail(fmt.Errorf("the tenant has %d templates; remove one: %w", mine, isolation.ErrResourceExhausted))
		}
		x = &Template{ID: newID(), Tenant: tenant, Name: name, Tags: map[string]string{}, Tagged: map[string]time.Time{}, Created: now}
	}
	next := x.clone()
	b := Build{ID: newUUID(), Status: Waiting, Tags: tags, CPUs: w.CPUs, MemoryMB: w.MemoryMB, Created: now}
	next.Builds, next.Updated = append(next.Builds, b), now
	old := next.forget()
	if err := t.save(next); err != nil {
		return fail(err)
	}
	t.all[x.ID] = next
	t.drop(old, next)
	return *next.clone(), b, nil
}

func (x *Template) clone() *Template {
	y := *x
	y.Tags, y.Tagged, y.Builds = map[string]string{}, map[string]time.Time{}, slices.Clone(x.Builds)
	for k, v := range x.Tags {
		y.Tags[k], y.Tagged[k] = v, x.Tagged[k]
	}
	return &y
}

// forget takes the oldest builds that have no tag, and do not run, from a template that
// has many.
func (x *Template) forget() (old []Build) {
	for i := 0; len(x.Builds) > maxBuilds && i < len(x.Builds)-1; {
		b := x.Builds[i]
		tagged := false
		for _, id := range x.Tags {
			tagged = tagged || id == b.ID
		}
		if tagged || b.goesOn() {
			i++
			continue
		}
		old, x.Builds = append(old, b), slices.Delete(x.Builds, i, i+1)
	}
	return old
}

// drop removes what builds have left. The caller has mu.
func (t *Templates) drop(builds []Build, x *Template) {
	for _, b := range builds {
		if r := t.run[b.ID]; r != nil {
			r.cancel(fmt.Errorf("the template was removed: %w", context.Canceled))
			delete(t.run, b.ID)
		}
		err := os.Remove(t.logName(x.ID, b.ID))
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		if b.Status == Ready {
			_, rerr := t.c.Images.Remove(context.Background(), imageName+x.ID+":"+b.ID)
			if !errors.Is(rerr, isolation.ErrNotFound) {
				err = errors.Join(err, rerr)
			}
		}
		if err != nil {
			t.c.Logger.Warn("remove what is left of a build; the next start does it", "build", b.ID, "error", err)
		}
	}
}

func (t *Templates) logName(template, build string) string {
	return filepath.Join(t.c.Dir, template+"."+build+logFile)
}

// named finds a tenant's template. The caller has mu.
func (t *Templates) named(tenant, name string) *Template {
	for _, x := range t.all {
		if x.Tenant == tenant && (x.Name == name || x.ID == name) {
			return x
		}
	}
	return nil
}

func notFound(what, name string) error {
	return fmt.Errorf("%s %.150q: %w", what, name, isolation.ErrNotFound)
}

// Get returns a tenant's template by its id or name.
func (t *Templates) Get(tenant, name string) (Template, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if x := t.named(tenant, name); x != nil {
		return *x.clone(), nil
	}
	return Template{}, notFound("template", name)
}

// List returns a tenant's templates, by name.
func (t *Templates) List(tenant string) []Template {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []Template{}
	for _, x := range t.all {
		if x.Tenant == tenant {
			out = append(out, *x.clone())
		}
	}
	slices.SortFunc(out, func(a, b Template) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Delete removes a template and ends what is being built of it. Sandboxes of it go on.
func (t *Templates) Delete(tenant, name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.prune()
	x := t.named(tenant, name)
	if x == nil {
		return notFound("template", name)
	}
	// What is left after a crash from here on is swept.
	if err := os.Remove(filepath.Join(t.c.Dir, x.ID+recordFile)); err != nil {
		return fmt.Errorf("remove template %s: %w", x.Name, err)
	}
	delete(t.all, x.ID)
	t.drop(x.Builds, x)
	return nil
}

// Find returns the build that NAME[:TAG], an id of a template, or one of a build means:
// one that is ready.
func (t *Templates) Find(tenant, ref string) (Template, Build, error) {
	name, tag, ok := strings.Cut(ref, ":")
	if !ok {
		tag = DefaultTag
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.named(tenant, name)
	if x == nil {
		return Template{}, Build{}, notFound("template", ref)
	}
	id := x.Tags[tag]
	if id == "" && !ok && len(x.Tags) > 0 {
		return Template{}, Build{}, fmt.Errorf("template %s has nothing under the tag %q: name one of its tags: %w", x.Name, tag, isolation.ErrNotFound)
	}
	for _, b := range x.Builds {
		if b.ID == id || ok && b.ID == tag && b.Status == Ready {
			return *x.clone(), b, nil
		}
	}
	return Template{}, Build{}, fmt.Errorf("template %.150q is not built yet: %w", ref, isolation.ErrNotFound)
}

// SetTags gives the build that target means further tags; RemoveTags takes some away.
func (t *Templates) SetTags(tenant, target string, tags []string) (Build, error) {
	x, b, err := t.Find(tenant, target)
	if err != nil {
		return b, err
	}
	for _, tag := range tags {
		if !tagName.MatchString(tag) {
			return b, invalid("tag %.150q", tag)
		}
	}
	if len(x.Tags)+len(tags) > maxTags {
		return b, fmt.Errorf("more than %d tags: %w", maxTags, isolation.ErrResourceExhausted)
	}
	return b, t.edit(x.ID, func(x *Template) {
		for _, tag := range tags {
			x.Tags[tag], x.Tagged[tag] = b.ID, time.Now()
		}
	})
}

// RemoveTags takes tags away; what was built stays.
func (t *Templates) RemoveTags(tenant, name string, tags []string) error {
	x, err := t.Get(tenant, name)
	if err != nil {
		return err
	}
	return t.edit(x.ID, func(x *Template) {
		for _, tag := range tags {
			delete(x.Tags, tag)
			delete(x.Tagged, tag)
		}
	})
}

// edit changes a template, on disk first.
func (t *Templates) edit(id string, change func(*Template)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.editLocked(id, change)
}

func (t *Templates) editLocked(id string, change func(*Template)) error {
	x := t.all[id]
	if x == nil {
		return notFound("template", id)
	}
	next := x.clone()
	change(next)
	next.Updated = time.Now()
	if err := t.save(next); err != nil {
		return err
	}
	t.all[id] = next
	return nil
}

// Start begins to build. It returns at once; Status tells how it goes.
func (t *Templates) Start(tenant, template, build string, p Plan, k image.Keychain) error {
	if err := p.Validate(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.named(tenant, template)
	if x == nil {
		return notFound("template", template)
	}
	at := slices.IndexFunc(x.Builds, func(b Build) bool { return b.ID == build })
	if at < 0 {
		return notFound("build", build)
	}
	if t.ctx.Err() != nil {
		return fmt.Errorf("the daemon is about to end: %w", isolation.ErrUnavailable)
	}
	if x.Builds[at].Started {
		return fmt.Errorf("build %s has begun already: %w", build, isolation.ErrFailedPrecondition)
	}
	waiting := 0
	for _, y := range t.all {
		for i := range y.Builds {
			if y.Tenant == tenant && y.Builds[i].goesOn() {
				waiting++
			}
		}
	}
	if waiting >= maxWaiting {
		return fmt.Errorf("%d builds of the tenant's run or wait; wait for one of them: %w", waiting, isolation.ErrResourceExhausted)
	}
	for i, s := range p.Steps {
		if s.Type == Copy && !t.Uploaded(tenant, s.FilesHash) {
			return fmt.Errorf("step %d: the files %s were not uploaded: %w", i+1, s.FilesHash, isolation.ErrFailedPrecondition)
		}
	}
	if err := t.editLocked(x.ID, func(x *Template) {
		x.Builds[at].Started = true
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(t.ctx)
	r := &running{cancel: cancel}
	t.run[build] = r
	t.wg.Go(func() {
		defer cancel(nil)
		t.build(ctx, tenant, *x.clone(), build, r, p, k)
	})
	return nil
}

// set changes a build that may be gone by now.
func (t *Templates) set(template, build string, change func(*Template, *Build)) error {
	return t.edit(template, func(x *Template) {
		for i := range x.Builds {
			if x.Builds[i].ID == build {
				change(x, &x.Builds[i])
			}
		}
	})
}

func (t *Templates) build(ctx context.Context, tenant string, x Template, build string, r *running, p Plan, k image.Keychain) {
	log := func(e Entry) {
		t.mu.Lock()
		defer t.mu.Unlock()
		switch {
		case len(r.log) < maxLog && r.size < maxLogSize || e.Level == "error":
		case e.Step != "" && r.size < 2*maxLogSize: // once
			e, r.size = Entry{e.Time, "warn", "... and more, which is not told", e.Step}, 2*maxLogSize
		default:
			return
		}
		r.log, r.size = append(r.log, e), r.size+len(e.Message)
	}
	img, err := func() (image.Image, error) {
		select {
		case t.turns <- struct{}{}:
			defer func() { <-t.turns }()
		case <-ctx.Done():
			return image.Image{}, context.Cause(ctx)
		}
		if err := t.set(x.ID, build, func(_ *Template, b *Build) { b.Status = Building }); err != nil {
			return image.Image{}, err
		}
		return t.c.Builder.Build(ctx, Input{
			Plan: p, Tenant: tenant, Name: imageName + x.ID + ":" + build, Keychain: k, Log: log,
			From: func(name string) (image.Image, error) {
				_, b, err := t.Find(tenant, name)
				if errors.Is(err, isolation.ErrNotFound) {
					img, ierr := t.c.Images.Get(name)
					if ierr == nil && !Private(img) && (base.Of(img) || img.Config.Labels[Label] != "") {
						return img, nil
					}
				}
				if err != nil {
					return image.Image{}, err
				}
				return t.c.Images.Get(b.Image)
			},
			Files: func(hash string) (io.ReadCloser, error) {
				f, err := os.Open(t.upload(tenant, hash))
				if errors.Is(err, os.ErrNotExist) {
					return nil, fmt.Errorf("%s are not here any more; send them again: %w", hash, isolation.ErrFailedPrecondition)
				}
				return f, err
			},
		})
	}()
	var reason *Reason
	if err != nil {
		reason = &Reason{Message: err.Error()}
		if cause := context.Cause(ctx); cause != nil {
			reason.Message = "canceled: " + cause.Error()
		}
		var at *StepError
		if errors.As(err, &at) {
			reason.Step = at.Step
		}
		log(Entry{time.Now(), "error", reason.Message, reason.Step})
	}
	t.mu.Lock()
	lines := r.log
	t.mu.Unlock()
	lerr := t.writeLog(x.ID, build, lines)
	if lerr != nil {
		t.c.Logger.Warn("write a build's log", "build", build, "error", lerr)
	}
	serr := t.set(x.ID, build, func(x *Template, b *Build) {
		b.Finished, b.Reason = time.Now(), reason
		if reason != nil {
			b.Status = Failed
			return
		}
		b.Status, b.Image, b.Disk = Ready, img.Digest, img.UnpackedSize
		at := slices.IndexFunc(x.Builds, func(o Build) bool { return o.ID == b.ID })
		for _, tag := range b.Tags {
			// What was asked for later stays.
			if had := x.Tags[tag]; slices.IndexFunc(x.Builds, func(o Build) bool { return o.ID == had }) <= at {
				x.Tags[tag], x.Tagged[tag] = b.ID, time.Now()
			}
		}
	})
	switch {
	case serr != nil && err == nil: // the template is gone, or the disk is full
		t.failed(x.ID, build, serr)
	case serr != nil:
		t.failed(x.ID, build, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if lerr == nil {
		delete(t.run, build) // what it said is in the file
	}
	t.prune()
}

// prune removes what is not used any more, in the background. The caller has mu.
func (t *Templates) prune() {
	if t.ctx.Err() != nil {
		return // the next start does it
	}
	t.wg.Go(func() {
		if err := t.c.Builder.Prune(t.ctx); err != nil && t.ctx.Err() == nil {
			t.c.Logger.Warn("remove layers that are not used any more", "error", err)
		}
	})
}

// Owns reports whether an image is one that a tenant has built.
func (t *Templates) Owns(tenant, digest string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range t.all {
		if x.Tenant == tenant && slices.ContainsFunc(x.Builds, func(b Build) bool { return b.Status == Ready && b.Image == digest }) {
			return true
		}
	}
	return false
}

// failed has a build be failed of which that could not be written down: it is as after
// the daemon's end.
func (t *Templates) failed(template, build string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = t.c.Images.Remove(context.Background(), imageName+template+":"+build) // if not, the next start does
	x := t.all[template]
	if x == nil {
		return
	}
	for i := range x.Builds {
		if b := &x.Builds[i]; b.ID == build {
			b.Status, b.Finished, b.Reason = Failed, time.Now(), &Reason{Message: err.Error()}
		}
	}
}

func (t *Templates) writeLog(template, build string, lines []Entry) error {
	b, err := json.Marshal(lines)
	if err != nil {
		return err
	}
	return writeFile(t.logName(template, build), b)
}

// Status tells how a build stands, and what it has said from an entry on.
func (t *Templates) Status(tenant, template, build string) (Build, []Entry, error) {
	id, b, lines, err := t.status(tenant, template, build)
	if err != nil || lines != nil {
		return b, lines, err
	}
	text, err := os.ReadFile(t.logName(id, build))
	if err == nil {
		err = json.Unmarshal(text, &lines)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return b, nil, fmt.Errorf("log of build %s: %w", build, err)
	}
	return b, lines, nil
}

// status has the log too, unless that is in its file.
func (t *Templates) status(tenant, template, build string) (id string, b Build, lines []Entry, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.named(tenant, template)
	if x == nil {
		return "", b, nil, notFound("template", template)
	}
	at := slices.IndexFunc(x.Builds, func(b Build) bool { return b.ID == build })
	if at < 0 {
		return "", b, nil, notFound("build", build)
	}
	if r := t.run[build]; r != nil {
		lines = r.log[:len(r.log):len(r.log)]
	}
	return x.ID, x.Builds[at], lines, nil
}

// upload is the file of what a tenant has uploaded. The hash was checked.
func (t *Templates) upload(tenant, hash string) string {
	sum := sha256.Sum256([]byte(tenant))
	return filepath.Join(t.c.Dir, uploadsDir, hex.EncodeToString(sum[:10]), hash)
}

// Uploaded reports whether a tenant has uploaded files of a hash.
func (t *Templates) Uploaded(tenant, hash string) bool {
	if !filesHash.MatchString(hash) {
		return false
	}
	_, err := os.Stat(t.upload(tenant, hash))
	return err == nil
}

// maxUploads is how many times the bytes of one upload a tenant's may have together.
const maxUploads = 4

// Upload keeps files for a Copy: a tar, which may be compressed by gzip. What is wrong with
// it is said now. Of a tenant's at once some wait for others.
func (t *Templates) Upload(ctx context.Context, tenant, hash string, r io.Reader) (err error) {
	if !filesHash.MatchString(hash) {
		return invalid("files %.80q: want 64 hexadecimal digits", hash)
	}
	t.mu.Lock()
	places := t.uploads[tenant]
	if places == nil {
		places = make(chan struct{}, atOnce)
		t.uploads[tenant] = places
	}
	t.mu.Unlock()
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	name := t.upload(tenant, hash)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), "tmp-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	defer f.Close()
	most := t.c.Builder.c.Limits.Upload
	if _, err := io.Copy(f, &bound{r: r, left: most, of: most}); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := CheckArchive(f, most); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return t.pruneUploads(filepath.Dir(name), hash)
}

// pruneUploads removes the oldest of a tenant's uploads where they are too many together.
func (t *Templates) pruneUploads(dir, keep string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type file struct {
		name string
		size int64
		at   time.Time
	}
	var all []file
	total := int64(0)
	for _, e := range list {
		if i, err := e.Info(); err == nil && filesHash.MatchString(e.Name()) {
			all, total = append(all, file{e.Name(), i.Size(), i.ModTime()}), total+i.Size()
		}
	}
	slices.SortFunc(all, func(a, b file) int { return a.at.Compare(b.at) })
	for _, f := range all {
		if total <= maxUploads*t.c.Builder.c.Limits.Upload {
			break
		}
		if f.name == keep {
			continue
		}
		if err := os.Remove(filepath.Join(dir, f.name)); err != nil {
			return err
		}
		total -= f.size
	}
	return nil
}
