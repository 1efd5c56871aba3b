package microvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
)

// want is the template that a sandbox is to be made of.
type want struct {
	name   string
	recipe Recipe
	inputs Inputs
	// built: somebody made it by its name; it is not made anew because what it
	// was made of has changed.
	built *Template
	// disk is that of another template, to be used again; "": none.
	disk string
}

// wanted finds out which template a spec needs: by its root, and large enough for
// its limits. A machine cannot grow, so there is one template for each size.
func (e *engine) wanted(ctx context.Context, spec isolation.Spec) (*want, error) {
	w := &want{}
	switch root := spec.Root; {
	case root.Image != "":
		w.recipe = e.usual(Recipe{Image: root.Image})
	case root.Path != "":
		w.recipe = e.usual(Recipe{Dir: root.Path})
	default:
		name := root.Template
		if name == "" {
			name = DefaultTemplate
		}
		t, err := ReadTemplate(e.cfg.Templates, name)
		if errors.Is(err, isolation.ErrNotFound) && name == DefaultTemplate {
			return nil, proc.Unsupported("a microVM without a template", setupFix)
		} else if err != nil {
			return nil, err
		}
		w.name, w.built, w.recipe = name, t, t.Recipe
	}
	suffix, err := w.recipe.grow(spec)
	if err != nil {
		return nil, err
	}
	switch {
	case e.cfg.Builder == nil && (w.built == nil || suffix != ""):
		return nil, proc.Unsupported("a microVM for which no template was built", "a program that can build some")
	case e.cfg.Builder == nil:
		w.inputs = Inputs{w.built.Key.Kernel, w.built.Key.Guest, w.built.Key.Source}
		return w, nil
	}
	if w.inputs, err = e.cfg.Builder.Inputs(ctx, w.recipe); err != nil {
		return nil, err
	}
	switch {
	case w.built != nil && suffix == "":
		w.inputs.Source = w.built.Key.Source
	case w.built != nil: // another size of it has the same disk
		w.inputs.Source, w.disk = "disk of "+w.built.Disk.Digest, w.built.path(fileDisk)
	case spec.Root.Image != "":
		w.recipe.Image, w.name = w.inputs.Source, "image-"+short(w.inputs.Source)
	default:
		w.name = "dir-" + short(digestOf(w.recipe.Dir))
	}
	w.name += suffix
	return w, nil
}

// short is a part of a digest that is enough to tell one from others.
func short(digest string) string {
	h := sha256.Sum256([]byte(digest))
	return hex.EncodeToString(h[:10])
}

// usual completes a recipe by what the default template has.
func (e *engine) usual(r Recipe) Recipe {
	r.MemoryMiB, r.CPUs = defaultMemoryMiB, 1
	if t, err := ReadTemplate(e.cfg.Templates, DefaultTemplate); err == nil {
		r.Kernel, r.Accel = t.Recipe.Kernel, t.Shape.Accel // whether KVM works is known
		r.MemoryMiB, r.CPUs = t.Shape.MemoryMiB, t.Shape.CPUs
	}
	return r
}

// reservedMiB is what kernel and guest have of a machine's memory, and leastMiB
// what programs need beside the files that they write, which are in memory.
const (
	reservedMiB = 64
	leastMiB    = 128
)

// grow makes the machine of a recipe large enough for a spec, and says how its
// template's name differs. Sizes are powers of two, so that templates are few.
func (r *Recipe) grow(spec isolation.Spec) (suffix string, err error) {
	res := spec.Resources
	need := max(res.MemoryBytes, res.DiskBytes+leastMiB<<20)
	if res.DiskBytes == 0 {
		need = res.MemoryBytes
	}
	if need > maxMachineMiB<<20 {
		return "", proc.Unsupported(fmt.Sprintf("a microVM for %d bytes of memory and files", need), fmt.Sprintf("at most %d MiB", maxMachineMiB))
	}
	if mib := int(need>>20) + 1 + reservedMiB; need > 0 && mib > r.MemoryMiB+1 {
		size := 1024
		for size < mib {
			size *= 2
		}
		if host := hostMiB(); size > host {
			return "", proc.Unsupported(fmt.Sprintf("a microVM of %d MiB on a host of %d", size, host), "a smaller limit of memory or disk, or another host")
		}
		r.MemoryMiB = size
		suffix += "-m" + strconv.Itoa(size)
	}
	if n := int(math.Ceil(res.CPUs)); n > r.CPUs {
		if n > maxMachineCPUs {
			return "", proc.Unsupported(fmt.Sprintf("%g cores in a microVM", res.CPUs), fmt.Sprintf("at most %d", maxMachineCPUs))
		}
		r.CPUs = n
		suffix += "-c" + strconv.Itoa(n)
	}
	if spec.Profile == "session" && !r.Session {
		r.Session = true
		suffix += "-session"
	}
	return suffix, nil
}

func hostMiB() int {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return maxMachineMiB
	}
	return int(si.Totalram * uint64(si.Unit) >> 20)
}

// key is what a wanted template's is.
func (w *want) key(v vmm) Key {
	return Key{
		Layout: layout, Binary: v.caps().id, CPU: hostCPU(), Kernel: w.inputs.Kernel, Guest: w.inputs.Guest, Source: w.inputs.Source,
		MemoryMiB: w.recipe.MemoryMiB, CPUs: w.recipe.CPUs, Session: w.recipe.Session,
	}
}

// template returns the template for a sandbox, verified and in memory. One that
// is not there, or does not fit any more, is made.
func (e *engine) template(ctx context.Context, spec isolation.Spec) (*loaded, error) {
	v, err := e.vmm()
	if err != nil {
		return nil, err
	}
	w, err := e.wanted(ctx, spec)
	if err != nil {
		return nil, err
	}
	t, err := e.usable(ctx, w, v)
	if err != nil {
		return nil, err
	}
	return e.load(t, v)
}

// usable returns a template whose files need only be read.
func (e *engine) usable(ctx context.Context, w *want, v vmm) (*Template, error) {
	t, why, err := w.look(e.cfg.Templates, v)
	if why == "" || err != nil {
		return t, err
	}
	if w.name == DefaultTemplate || e.cfg.Builder == nil {
		return nil, errStale(w.name, why)
	}
	// One at a time builds, and who waited for it may find what he wants.
	e.building.Lock()
	defer e.building.Unlock()
	if t, why, err = w.look(e.cfg.Templates, v); why == "" || err != nil {
		return t, err
	}
	if err := e.cfg.Builder.Build(ctx, w.name, w.recipe, w.inputs, w.disk); err != nil {
		return nil, err
	}
	t, why, err = w.look(e.cfg.Templates, v)
	if err == nil && why != "" {
		err = fmt.Errorf("template %s has just been built, and differs (%s): %w", w.name, why, isolation.ErrFailedPrecondition)
	}
	return t, err
}

// look reads a wanted template, and says why it must be made; "": it need not.
func (w *want) look(dir string, v vmm) (t *Template, why string, err error) {
	t, err = ReadTemplate(dir, w.name)
	switch {
	case errors.Is(err, isolation.ErrNotFound):
		return nil, "nothing", nil
	case err != nil && w.built == nil:
		return nil, "what is damaged", nil
	case err != nil:
		return nil, "", err
	}
	return t, t.Key.differs(w.key(v)), nil
}

// maxLoaded is how many templates are kept in memory.
const maxLoaded = 4

// load returns a template in memory. The caller releases it.
func (e *engine) load(t *Template, v vmm) (*loaded, error) {
	e.loading.Lock()
	defer e.loading.Unlock()
	if l, err := e.hold(t); l != nil || err != nil {
		return l, err
	}
	l, err := load(t, v)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		l.close()
		return nil, errClosed
	}
	l.users = 1
	e.ready = append(e.ready, l)
	for i := 0; len(e.ready) > maxLoaded && i < len(e.ready)-1; {
		if e.ready[i].users > 0 {
			i++
			continue
		}
		e.ready[i].close()
		e.ready = append(e.ready[:i], e.ready[i+1:]...)
	}
	return l, nil
}

var errClosed = fmt.Errorf("the driver is closed: %w", isolation.ErrFailedPrecondition)

// hold finds a template that is in memory, and makes it the one used last.
func (e *engine) hold(t *Template) (*loaded, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	for i, l := range e.ready {
		if l.Digest == t.Digest {
			l.users++
			e.ready = append(append(e.ready[:i], e.ready[i+1:]...), l)
			return l, nil
		}
	}
	return nil, nil
}

// release says that no more machines are made of it by who held it. A snapshot is
// kept in memory only while somebody does.
func (e *engine) release(l *loaded) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l.users--; l.users > 0 || !e.closed && l.Live == nil {
		return
	}
	l.close()
	e.ready = slices.DeleteFunc(e.ready, func(r *loaded) bool { return r == l })
}
