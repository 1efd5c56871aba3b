package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/base"
	"github.com/axocoatl/isolation/axo/internal/wholefile"
	"github.com/axocoatl/isolation/image"
)

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
	*uploads

	mu  sync.Mutex
	all map[string]*Template // by id; guarded by mu
	run map[string]*running  // by id of build; guarded by mu
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
	recordFile = ".json"
	logFile    = ".log"
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
	t := &Templates{c: c, all: map[string]*Template{}, run: map[string]*running{}, uploads: newUploads(filepath.Join(c.Dir, uploadsDir), c.Builder.c.Limits.Upload), turns: make(chan struct{}, c.Concurrent)}
	if err := os.MkdirAll(t.uploadDir, 0o700); err != nil {
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
	parts, _ := filepath.Glob(filepath.Join(t.uploadDir, "*", tempUpload+"*"))
	temps, _ := filepath.Glob(filepath.Join(t.c.Dir, "*"+wholefile.Ending))
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
		err = wholefile.Write(filepath.Join(t.c.Dir, x.ID+recordFile), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write down template %s: %w", x.Name, err)
	}
	return nil
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
		if !tagName().MatchString(tag) {
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
	x, b, old, err := t.add(tenant, name, Build{ID: uuid.NewString(), Status: Waiting, Tags: tags, CPUs: w.CPUs, MemoryMB: w.MemoryMB, Created: time.Now()})
	if err != nil {
		return fail(err)
	}
	t.drop(old, x.ID)
	return x, b, nil
}

// add writes a build down, and returns those that are forgotten for it.
func (t *Templates) add(tenant, name string, b Build) (_ Template, _ Build, old []Build, err error) {
	fail := func(err error) (Template, Build, []Build, error) { return Template{}, Build{}, nil, err }
	t.mu.Lock()
	defer t.mu.Unlock()
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
		x = &Template{ID: newID(), Tenant: tenant, Name: name, Tags: map[string]string{}, Tagged: map[string]time.Time{}, Created: b.Created}
	}
	next := x.clone()
	next.Builds, next.Updated = append(next.Builds, b), b.Created
	old = next.forget()
	if err := t.save(next); err != nil {
		return fail(err)
	}
	t.all[x.ID] = next
	return *next.clone(), b, old, nil
}

// drop removes what builds have left that are written down no more.
func (t *Templates) drop(builds []Build, template string) {
	for _, b := range builds {
		t.mu.Lock()
		if r := t.run[b.ID]; r != nil {
			r.cancel(fmt.Errorf("the template was removed: %w", context.Canceled))
			delete(t.run, b.ID)
		}
		t.mu.Unlock()
		err := os.Remove(t.logName(template, b.ID))
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		if b.Status == Ready {
			_, rerr := t.c.Images.Remove(context.Background(), imageName+template+":"+b.ID)
			if !errors.Is(rerr, isolation.ErrNotFound) {
				err = errors.Join(err, rerr)
			}
		}
		if err != nil {
			t.c.Logger.Warn("remove what is left of a build; the next start does it", "build", b.ID, "error", err)
		}
	}
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
	x, err := t.remove(tenant, name)
	if err != nil {
		return err
	}
	// What is left after a crash from here on is swept.
	t.drop(x.Builds, x.ID)
	t.prune()
	return nil
}

// remove takes a template's record away.
func (t *Templates) remove(tenant, name string) (*Template, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.named(tenant, name)
	if x == nil {
		return nil, notFound("template", name)
	}
	if err := os.Remove(filepath.Join(t.c.Dir, x.ID+recordFile)); err != nil {
		return nil, fmt.Errorf("remove template %s: %w", x.Name, err)
	}
	delete(t.all, x.ID)
	return x, nil
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

// SetTags gives the build that target means further tags; RemoveTags takes some away.
func (t *Templates) SetTags(tenant, target string, tags []string) (Build, error) {
	x, b, err := t.Find(tenant, target)
	if err != nil {
		return b, err
	}
	for _, tag := range tags {
		if !tagName().MatchString(tag) {
			return b, invalid("tag %.150q", tag)
		}
	}
	return b, t.edit(x.ID, func(x *Template) error {
		for _, tag := range tags {
			x.Tags[tag], x.Tagged[tag] = b.ID, time.Now()
		}
		if len(x.Tags) > maxTags {
			return fmt.Errorf("more than %d tags: %w", maxTags, isolation.ErrResourceExhausted)
		}
		return nil
	})
}

// RemoveTags takes tags away; what was built stays.
func (t *Templates) RemoveTags(tenant, name string, tags []string) error {
	x, err := t.Get(tenant, name)
	if err != nil {
		return err
	}
	return t.edit(x.ID, func(x *Template) error {
		for _, tag := range tags {
			delete(x.Tags, tag)
			delete(x.Tagged, tag)
		}
		return nil
	})
}

// edit changes a template, on disk first.
func (t *Templates) edit(id string, change func(*Template) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.editLocked(id, change)
}

func (t *Templates) editLocked(id string, change func(*Template) error) error {
	x := t.all[id]
	if x == nil {
		return notFound("template", id)
	}
	next := x.clone()
	if err := change(next); err != nil {
		return err
	}
	next.Updated = time.Now()
	if err := t.save(next); err != nil {
		return err
	}
	t.all[id] = next
	return nil
}
