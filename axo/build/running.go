package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/base"
	"github.com/axocoatl/isolation/axo/internal/wholefile"
	"github.com/axocoatl/isolation/image"
)

// running is a build that goes on, or has ended in this process.
type running struct {
	cancel context.CancelCauseFunc
	log    []Entry // guarded by Templates.mu
	size   int     // bytes of the log; guarded by Templates.mu
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
	if err := t.editLocked(x.ID, func(x *Template) error {
		x.Builds[at].Started = true
		return nil
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
	return t.edit(template, func(x *Template) error {
		for i := range x.Builds {
			if x.Builds[i].ID == build {
				change(x, &x.Builds[i])
			}
		}
		return nil
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
			Files: func(hash string) (io.ReadCloser, error) { return t.openUpload(tenant, hash) },
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
	if lerr == nil {
		t.mu.Lock()
		delete(t.run, build) // what it said is in the file
		t.mu.Unlock()
	}
	t.prune()
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

// prune removes what is not used any more, in the background.
func (t *Templates) prune() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return // the next start does it
	}
	t.wg.Go(func() {
		if err := t.c.Builder.Prune(t.ctx); err != nil && t.ctx.Err() == nil {
			t.c.Logger.Warn("remove layers that are not used any more", "error", err)
		}
	})
}

func (t *Templates) logName(template, build string) string {
	return filepath.Join(t.c.Dir, template+"."+build+logFile)
}

func (t *Templates) writeLog(template, build string, lines []Entry) error {
	b, err := json.Marshal(lines)
	if err != nil {
		return err
	}
	return wholefile.Write(t.logName(template, build), b, 0o600)
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
