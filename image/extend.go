package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/axocoatl/isolation"
)

// ExtendOptions are options of [Store.Extend].
type ExtendOptions struct {
	// Name names the result; empty: it has none, and is found by its digest.
	Name string
	// Layer is a tar of a layer, in OCI's form, which comes on top; nil: no further one.
	// One without entries is none.
	Layer io.Reader
	// Config takes the place of the image's own; nil: that stays.
	Config *RunConfig
	// By says what made the layer, for the image's history.
	By string
}

// Extend makes an image of another one of the store, with a layer more, another config,
// or both. The other stays as it is. The same of the same is the same image. Errors are
// as those of [Store.Import].
func (s *Store) Extend(ctx context.Context, parent Image, o ExtendOptions) (Image, error) {
	img, err := s.extend(ctx, parent, o)
	if err != nil {
		return Image{}, &isolation.Error{Op: "extend image", ID: parent.Digest, Err: err}
	}
	return img, nil
}

func (s *Store) extend(ctx context.Context, parent Image, o ExtendOptions) (Image, error) {
	i := &importer{s: s, ev: newEvents(nil)}
	var err error
	if o.Name != "" {
		r, err := parseName(o.Name)
		if err != nil {
			return Image{}, err
		}
		i.name = fullName(r)
	}
	if i.want, err = parsePlatform(parent.Platform); err != nil {
		return Image{}, err
	}
	// Before the look, so that what is seen stays.
	if i.lease, err = s.newLease(ctx, content{Blobs: parent.blobs, Layers: parent.Layers}); err != nil {
		return Image{}, err
	}
	defer i.lease.release()
	if parent, err = s.Get(parent.Digest); err != nil {
		return Image{}, err
	}
	raw, err := s.readBlob(parent.Digest)
	if err != nil {
		return Image{}, damaged("the manifest", err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return Image{}, fmt.Errorf("manifest: %w", err)
	}
	if raw, err = s.readBlob(m.Config.Digest.String()); err != nil {
		return Image{}, damaged("the config", err)
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return Image{}, fmt.Errorf("config: %w", err)
	}
	layers := m.Layers
	if o.Layer != nil {
		d, id, err := i.newLayer(ctx, o.Layer)
		if err != nil {
			return Image{}, fmt.Errorf("layer: %w", err)
		}
		if id != (v1.Hash{}) {
			layers = append(layers[:len(layers):len(layers)], d)
			c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, id)
			if len(c.History) > 0 {
				c.History = append(c.History, v1.History{CreatedBy: o.By})
			}
		}
	}
	if o.Config != nil {
		c.Config = configOf(*o.Config)
	}
	if raw, err = json.Marshal(c); err != nil {
		return Image{}, err
	}
	return i.assemble(ctx, raw, layers)
}

// newLayer stores and unpacks a layer. The id of one without entries is zero.
func (i *importer) newLayer(ctx context.Context, r io.Reader) (d v1.Descriptor, id v1.Hash, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	if d, err = i.s.putStream(ctx, i.lease, br); err != nil {
		return d, id, err
	}
	d.MediaType = plain.mediaType()
	var got DiffID
	lease := func(id DiffID) error { got = id; return i.lease.add(ctx, content{Layers: []DiffID{id}}) }
	info, err := i.s.unpackBlob(ctx, d.Digest.String(), lease, i.s.limits.ImageBytes, i.ev)
	if err != nil || info.Entries == 0 {
		return d, id, err // nobody has it: it goes with the garbage
	}
	id, err = v1.NewHash(string(got))
	return d, id, err
}

// configOf is what an image says of how it is to be run, as it is written down.
func configOf(o RunConfig) v1.Config {
	set := func(list []string) map[string]struct{} {
		if len(list) == 0 {
			return nil
		}
		m := map[string]struct{}{}
		for _, k := range list {
			m[k] = struct{}{}
		}
		return m
	}
	return v1.Config{
		Entrypoint: o.Entrypoint, Cmd: o.Cmd, Env: o.Env, User: o.User, WorkingDir: o.WorkingDir, Labels: o.Labels,
		StopSignal: o.StopSignal, ExposedPorts: set(o.ExposedPorts), Volumes: set(o.Volumes),
	}
}

// Name gives an image a further name; an image that had it loses it.
func (s *Store) Name(ctx context.Context, digest, name string) error {
	r, err := parseName(name)
	if err != nil {
		return err
	}
	return s.change(ctx, func(x *index) error {
		rec, ok := x.Images[digest]
		if !ok {
			return fmt.Errorf("no image %q here: %w", digest, isolation.ErrNotFound)
		}
		rec.Added = time.Now().UTC().Truncate(time.Second)
		x.Images[digest] = rec
		x.Names[fullName(r)] = digest
		return nil
	})
}
