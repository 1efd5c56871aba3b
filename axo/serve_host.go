package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/pool"
)

// poolsOf tells of the pools among an engine's drivers.
func poolsOf(e *engine.Engine) []api.Pool {
	out := []api.Pool{}
	for _, r := range e.Registry().All() {
		p, ok := isolation.As[interface{ Stats() pool.Stats }](r.Driver)
		if !ok {
			continue
		}
		st := p.Stats()
		x := api.Pool{
			Engine: r.Driver.Name(), Tier: r.Tier, Hits: st.Hits, Misses: st.Misses, Made: st.Made, Failures: st.Failures, Aged: st.Aged,
			Spoiled: st.Spoiled, Stuck: st.Stuck, Idle: st.Idle, Making: st.Making, Removing: st.Removing, Out: st.Out, Shelves: []api.Shelf{},
		}
		for _, s := range st.Shelves {
			s.Spec.Module.Data = nil
			x.Shelves = append(x.Shelves, api.Shelf{
				Spec: s.Spec, Learned: s.Learned, Size: s.Size, Idle: s.Idle, Making: s.Making, OldestMS: float64(s.Oldest.Microseconds()) / 1000, Error: s.Error,
			})
		}
		out = append(out, x)
	}
	return out
}

// templatesOf has the templates of a state directory for the daemon's callers.
type templatesOf struct {
	config all.Config
	logger *slog.Logger
}

func apiTemplate(t *microvm.Template) api.Template {
	return api.Template{
		Name: t.Name, Engine: t.Engine, Digest: t.Digest, Source: t.Source, Accel: t.Shape.Accel, MemoryMiB: t.Shape.MemoryMiB, CPUs: t.Shape.CPUs,
		Kernel: t.Key.Kernel, DiskBytes: t.Disk.Size, Built: t.Built,
	}
}

// List implements rest.Templates.
func (o templatesOf) List() (list []api.Template, err error) {
	for _, engine := range microvmEngines {
		of, terr := microvm.Templates(filepath.Join(o.config.StateDir, all.TemplatesOf(engine)))
		err = errors.Join(err, terr)
		for _, t := range of {
			list = append(list, apiTemplate(t))
		}
	}
	return list, err
}

// Build implements rest.Templates.
func (o templatesOf) Build(ctx context.Context, b api.BuildTemplate) (api.Template, error) {
	f := templateFlags{engine: b.Engine, Recipe: microvm.Recipe{
		Kernel: b.Kernel, Image: b.Image, Packages: b.Packages, Session: b.Session, MemoryMiB: b.MemoryMiB, CPUs: b.CPUs, Accel: b.Accel,
	}}
	if f.MemoryMiB == 0 {
		f.MemoryMiB = defaultTemplateMiB
	}
	if f.CPUs == 0 {
		f.CPUs = 1
	}
	if f.Image != "" && len(f.Packages) > 0 {
		return api.Template{}, fmt.Errorf("packages go with the host's system: %w", isolation.ErrInvalidArgument)
	}
	c, engine := o.config, f.engineFor(o.config)
	c.Progress = func(step string) { o.logger.Info("build template", "template", b.Name, "step", step) }
	if err := all.BuildTemplate(ctx, c, engine, b.Name, f.Recipe); err != nil {
		return api.Template{}, err
	}
	t, err := microvm.ReadTemplate(filepath.Join(c.StateDir, all.TemplatesOf(engine)), b.Name)
	if err != nil {
		return api.Template{}, err
	}
	return apiTemplate(t), nil
}

// Remove implements rest.Templates.
func (o templatesOf) Remove(name, engine string) error {
	return removeTemplate(o.config.StateDir, name, engine)
}
