package image

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/axocoatl/isolation"
)

// Config says where a store is, and what it accepts.
type Config struct {
	// Dir is the store's directory, an absolute path. It is made with mode 0700
	// if it is not there. Other users must not be able to read it: it holds
	// set-uid programs.
	Dir string
	// Limits bounds what an image may cost. Zero fields take their defaults.
	Limits Limits
	// Downloads is how many blobs one pull fetches at the same time; default 4.
	Downloads int
}

// Limits bounds one image. What exceeds a bound is refused.
type Limits struct {
	BlobBytes    int64 // size of one blob as it is stored; default 20 GiB
	ImageBytes   int64 // unpacked size of all layers together; default 64 GiB
	LayerBytes   int64 // unpacked size of one layer, and of its tar; default 32 GiB
	FileBytes    int64 // size of one file; default 16 GiB
	LayerEntries int64 // entries of one layer; default 1,000,000
	PathBytes    int   // length of a name and of a link's target; default 4095
	Depth        int   // directories within each other; default 256
	Layers       int   // layers of an image; default 127
	// ManifestBytes bounds each document that is read into memory: manifests,
	// indexes and configs; default 8 MiB.
	ManifestBytes int64
}

// DefaultLimits are meant to let every honest image pass.
func DefaultLimits() Limits {
	const gib = 1 << 30
	return Limits{
		BlobBytes: 20 * gib, ImageBytes: 64 * gib, LayerBytes: 32 * gib, FileBytes: 16 * gib,
		LayerEntries: 1_000_000, PathBytes: 4095, Depth: 256, Layers: 127, ManifestBytes: 8 << 20,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	return Limits{
		BlobBytes: cmp.Or(l.BlobBytes, d.BlobBytes), ImageBytes: cmp.Or(l.ImageBytes, d.ImageBytes),
		LayerBytes: cmp.Or(l.LayerBytes, d.LayerBytes), FileBytes: cmp.Or(l.FileBytes, d.FileBytes),
		LayerEntries: cmp.Or(l.LayerEntries, d.LayerEntries), PathBytes: cmp.Or(l.PathBytes, d.PathBytes),
		Depth: cmp.Or(l.Depth, d.Depth), Layers: cmp.Or(l.Layers, d.Layers), ManifestBytes: cmp.Or(l.ManifestBytes, d.ManifestBytes),
	}
}

// Validate reports what is wrong with a configuration, as
// [isolation.ErrInvalidArgument].
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.Dir) {
		errs = append(errs, fmt.Errorf("directory %q is not absolute", c.Dir))
	}
	if c.Downloads < 0 {
		errs = append(errs, fmt.Errorf("%d downloads", c.Downloads))
	}
	l := c.Limits
	for _, n := range []int64{l.BlobBytes, l.ImageBytes, l.LayerBytes, l.FileBytes, l.LayerEntries, int64(l.PathBytes), int64(l.Depth), int64(l.Layers), l.ManifestBytes} {
		if n < 0 {
			errs = append(errs, fmt.Errorf("limit %d is below zero", n))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("image store: %w: %w", isolation.ErrInvalidArgument, errors.Join(errs...))
	}
	return nil
}
