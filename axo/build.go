package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/axocoatl/isolation/axo/build"
	"github.com/axocoatl/isolation/axo/config"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/image"
)

// builtDir is where templates that were built are written down, in the state directory.
const builtDir = "built"

// builderOf makes images as the settings say.
func builderOf(c config.Build, drivers all.Config, e *engine.Engine, images *image.Store) *build.Builder {
	return build.New(build.BuilderConfig{
		Engine: e, Images: images, Egress: engine.Egress{Allow: c.AllowHosts}, Registries: c.Registries,
		Guest: func() ([]byte, error) { return oci.GuestProgram(oci.Config{Guest: drivers.Guest}) },
		Limits: build.Limits{
			Memory: int64(c.Memory), Disk: int64(c.Disk), Step: time.Duration(c.Step), Upload: int64(c.Upload), Cached: c.Cached, Tenant: int64(c.Tenant),
		},
	})
}

func openBuilt(ctx context.Context, c config.Build, drivers all.Config, e *engine.Engine, images *image.Store, l *slog.Logger) (*build.Templates, error) {
	return build.Open(ctx, build.Config{
		Builder: builderOf(c, drivers, e, images), Images: images, Dir: filepath.Join(drivers.StateDir, builtDir), Concurrent: c.Concurrent, Logger: l,
	})
}
