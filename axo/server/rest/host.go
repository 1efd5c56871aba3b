package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/build"
	"github.com/axocoatl/isolation/image"
	"github.com/axocoatl/isolation/internal/form"
)

// Images is a store of images; *image.Store is one.
type Images interface {
	List() ([]image.Image, error)
	Get(ref string) (image.Image, error)
	Pull(ctx context.Context, ref string, o image.PullOptions) (image.Image, error)
	Remove(ctx context.Context, ref string) (image.Removed, error)
	GC(ctx context.Context, o image.GCOptions) (image.Freed, error)
}

// Templates are those of virtual machines.
type Templates interface {
	List() ([]api.Template, error)
	Build(ctx context.Context, b api.BuildTemplate) (api.Template, error)
	// Remove removes one of an engine, or of all if none is named.
	Remove(name, engine string) error
}

// registerHost has what is the host's, and no tenant's: users see what they can
// have, and admins change it.
func (s *Server) registerHost() {
	huma.Register(s.api, op("list-images", "GET", "/v1/images", "The images that are here, or with reference that one", "host"), s.images)
	huma.Register(s.api, op("pull-image", "POST", "/v1/images", "Fetch an image from a registry and unpack it; for admins. With events accepted, progress events and then image or problem", "host", admins, func(o *huma.Operation) {
		o.Responses = map[string]*huma.Response{"200": {Description: "The image", Content: map[string]*huma.MediaType{
			"application/json":  {Schema: s.api.OpenAPI().Components.Schemas.Schema(typeOf[api.Image](), true, "")},
			"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString, Description: "Events progress, image and problem, with JSON"}},
		}}}
	}), s.pullImage)
	huma.Register(s.api, op("remove-image", "DELETE", "/v1/images", "Remove a name of an image, and the image with its last name, or by its digest; for admins", "host", admins), s.removeImage)
	huma.Register(s.api, op("list-templates", "GET", "/v1/templates", "Templates of virtual machines that somebody gave a name", "host"), s.templates)
	huma.Register(s.api, op("build-template", "POST", "/v1/templates", "Boot a machine once, and keep it as a template; for admins", "host", created, admins), s.buildTemplate)
	huma.Register(s.api, op("remove-template", "DELETE", "/v1/templates", "Remove a template; for admins", "host", admins), s.removeTemplate)
	huma.Register(s.api, op("list-pools", "GET", "/v1/pools", "Sandboxes that are made before anybody asks; for admins", "host", admins), s.pools)
}

func missing(what string) error {
	return &isolation.UnsupportedError{Feature: what + " over the API", Need: "a daemon that has them"}
}

func imageOf(i image.Image) api.Image {
	out := api.Image{
		Digest: i.Digest, Names: i.Names, Platform: i.Platform, Created: i.Created, Added: i.Added, Size: i.Size, UnpackedSize: i.UnpackedSize,
		Layers: len(i.Layers), Entrypoint: i.Config.Entrypoint, Cmd: i.Config.Cmd, User: i.Config.User, WorkingDir: i.Config.WorkingDir,
	}
	if out.Names == nil {
		out.Names = []string{}
	}
	return out
}

func (s *Server) images(_ context.Context, in *struct {
	Reference string `query:"reference" doc:"A name or a digest"`
}) (*body[api.Images], error) {
	if s.config.Images == nil {
		return nil, problem(missing("images"))
	}
	var list []image.Image
	var err error
	if in.Reference != "" {
		var i image.Image
		i, err = s.config.Images.Get(in.Reference)
		list = append(list, i)
		if err == nil && build.Private(i) {
			err = fmt.Errorf("no image %.150q here: %w", in.Reference, isolation.ErrNotFound)
		}
	} else {
		list, err = s.config.Images.List()
	}
	if err != nil {
		return nil, problem(err)
	}
	out := api.Images{Images: []api.Image{}}
	for _, i := range list {
		if !build.Private(i) { // it is told by who has built it
			out.Images = append(out.Images, imageOf(i))
		}
	}
	return &body[api.Images]{out}, nil
}

func (s *Server) pullImage(ctx context.Context, in *struct {
	Accept string `header:"Accept"`
	Body   api.Pull
}) (*answer, error) {
	err := s.open("pull")
	if s.config.Images == nil {
		err = missing("images")
	}
	if err != nil {
		return nil, problem(err)
	}
	o := image.PullOptions{Platform: in.Body.Platform, Insecure: in.Body.Insecure}
	if !wants(in.Accept, "text/event-stream") {
		i, err := s.config.Images.Pull(ctx, in.Body.Reference, o)
		if err != nil {
			return nil, problem(err)
		}
		return write(200, nil, imageOf(i)), nil
	}
	return &answer{func(c huma.Context) {
		c.SetHeader("Content-Type", "text/event-stream")
		c.SetStatus(200)
		var mu sync.Mutex // events of several layers
		send := func(name string, v any) {
			b, err := json.Marshal(v)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(c.BodyWriter(), "event: %s\ndata: %s\n\n", name, b)
			if f, ok := c.BodyWriter().(interface{ Flush() }); ok {
				f.Flush()
			}
		}
		o.Progress = func(e image.Event) {
			send("progress", api.PullProgress{Stage: string(e.Stage), Digest: e.Digest, Done: e.Done, Total: e.Total, Message: e.Message})
		}
		i, err := s.config.Images.Pull(ctx, in.Body.Reference, o)
		if err != nil {
			send("problem", api.ProblemOf(err))
			return
		}
		send("image", imageOf(i))
	}}, nil
}

func (s *Server) removeImage(ctx context.Context, in *struct {
	Reference string `query:"reference" required:"true" minLength:"1" doc:"A name or a digest"`
}) (*body[api.RemovedImage], error) {
	var err error
	if s.config.Images == nil {
		err = missing("images")
	}
	var rm image.Removed
	if err == nil {
		rm, err = s.config.Images.Remove(ctx, in.Reference)
	}
	if err == nil {
		_, err = s.config.Images.GC(ctx, image.GCOptions{KeepPartial: true})
	}
	if err != nil {
		return nil, problem(err)
	}
	out := api.RemovedImage{Digest: rm.Digest, Names: rm.Names, Image: rm.Image}
	if out.Names == nil {
		out.Names = []string{}
	}
	return &body[api.RemovedImage]{out}, nil
}

func (s *Server) templates(ctx context.Context, _ *none) (*body[api.Templates], error) {
	if s.config.Templates == nil {
		return nil, problem(missing("templates"))
	}
	list, err := s.config.Templates.List()
	if err != nil {
		return nil, problem(err)
	}
	out := api.Templates{Templates: []api.Template{}}
	for _, t := range list {
		// What was built because some sandbox wanted it tells of that.
		if admin(ctx, "") == nil || !wantedName().MatchString(t.Name) {
			out.Templates = append(out.Templates, t)
		}
	}
	return &body[api.Templates]{out}, nil
}

// wantedName is what templates are called that were built because a sandbox wanted
// them: of its image or directory, or of its size.
var wantedName = form.Of(`^(image|dir)-[0-9a-f]{20}|-[a-z][0-9]+$`)

func (s *Server) buildTemplate(ctx context.Context, in *body[api.BuildTemplate]) (*body[api.Template], error) {
	err := s.open("build template")
	if s.config.Templates == nil {
		err = missing("templates")
	}
	if err != nil {
		return nil, problem(err)
	}
	t, err := s.config.Templates.Build(ctx, in.Body)
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.Template]{t}, nil
}

func (s *Server) removeTemplate(ctx context.Context, in *struct {
	Name   string `query:"name" required:"true" minLength:"1"`
	Engine string `query:"engine" doc:"Of that engine alone"`
}) (*none, error) {
	if s.config.Templates == nil {
		return nil, problem(missing("templates"))
	}
	return nil, problem(s.config.Templates.Remove(in.Name, in.Engine))
}

func (s *Server) pools(context.Context, *none) (*body[api.Pools], error) {
	if s.config.Pools == nil {
		return nil, problem(missing("pools"))
	}
	out := api.Pools{Pools: s.config.Pools()}
	if out.Pools == nil {
		out.Pools = []api.Pool{}
	}
	return &body[api.Pools]{out}, nil
}
