package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
)

type InFile struct {
	ID   string `path:"id" doc:"Of the sandbox"`
	Path string `query:"path" required:"true" doc:"Absolute, in the sandbox"`
}

func (s *Server) registerFiles() {
	path := query("path", "Absolute, in the sandbox", huma.TypeString)
	path.Required = true
	binary := map[string]*huma.MediaType{"application/octet-stream": {}}
	s.raw(op("read-file", "GET", "/v1/sandboxes/{id}/files", "A file's content", "files", func(o *huma.Operation) {
		o.Parameters = []*huma.Param{path}
		o.Responses = map[string]*huma.Response{"200": {Description: "The content", Content: binary}}
	}), s.readFile)
	s.raw(op("write-file", "PUT", "/v1/sandboxes/{id}/files", "Make a file, or put a new one in its place when all of it is there", "files", func(o *huma.Operation) {
		o.Parameters = []*huma.Param{path, query("mode", "Permission bits, octal; 0644 if it is not there", huma.TypeString), query("parents", "Make the directories above it", huma.TypeBoolean)}
		o.RequestBody = &huma.RequestBody{Content: binary}
	}), s.writeFile)
	huma.Register(s.api, op("remove-file", "DELETE", "/v1/sandboxes/{id}/files", "Remove a file or an empty directory, or with recursive a directory with all that is in it", "files"), s.removeFile)
	huma.Register(s.api, op("stat-file", "GET", "/v1/sandboxes/{id}/files/stat", "What is known of a file", "files"), s.statFile)
	huma.Register(s.api, op("list-files", "GET", "/v1/sandboxes/{id}/files/list", "What is in a directory", "files"), s.listFiles)
	huma.Register(s.api, op("make-directory", "POST", "/v1/sandboxes/{id}/files/mkdir", "Make a directory, with those above it", "files"), s.mkdir)
	huma.Register(s.api, op("rename-file", "POST", "/v1/sandboxes/{id}/files/rename", "Move a file or directory", "files"), s.rename)
	s.raw(op("watch-files", "GET", "/v1/sandboxes/{id}/files/watch", "What happens to a file or in a directory, as events", "files", func(o *huma.Operation) {
		o.Parameters = []*huma.Param{path, query("recursive", "In directories below it too", huma.TypeBoolean)}
		o.Responses = map[string]*huma.Response{"200": {Description: "Events file with JSON of a FileEvent", Content: map[string]*huma.MediaType{"text/event-stream": {}}}}
	}), s.watch)
}

type files interface {
	isolation.Files
	isolation.Directories
}

func (s *Server) files(ctx context.Context, id string) (files, error) {
	sn, err := s.session(ctx, id)
	if err != nil {
		return nil, err
	}
	return sn.Files(ctx)
}

func (s *Server) readFile(w http.ResponseWriter, r *http.Request) error {
	f, err := s.files(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	name := r.URL.Query().Get("path")
	content, err := f.ReadFile(r.Context(), name)
	if err != nil {
		return err
	}
	defer content.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, content, make([]byte, 256<<10))
	return err
}

func (s *Server) writeFile(w http.ResponseWriter, r *http.Request) error {
	f, err := s.files(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	mode := uint64(0o644)
	if m := r.URL.Query().Get("mode"); m != "" {
		if mode, err = strconv.ParseUint(m, 8, 12); err != nil {
			return fmt.Errorf("mode %.80q: want permission bits, octal: %w", m, isolation.ErrInvalidArgument)
		}
	}
	parents, err := boolean(r, "parents")
	if err != nil {
		return err
	}
	name := r.URL.Query().Get("path")
	if parents {
		if err := f.Mkdir(r.Context(), dirOf(name), 0o755); err != nil {
			return err
		}
	}
	if err := f.WriteFile(r.Context(), name, fs.FileMode(mode)&fs.ModePerm, r.Body); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// dirOf is the directory of a name in a sandbox.
func dirOf(name string) string {
	for i := len(name) - 1; i > 0; i-- {
		if name[i] == '/' {
			return name[:i]
		}
	}
	return "/"
}

func (s *Server) removeFile(ctx context.Context, in *struct {
	InFile
	Recursive bool `query:"recursive"`
}) (*none, error) {
	f, err := s.files(ctx, in.ID)
	switch {
	case err != nil:
	case in.Recursive:
		err = f.RemoveAll(ctx, in.Path)
	default:
		err = f.Remove(ctx, in.Path)
	}
	return nil, problem(err)
}

func fileOf(i fs.FileInfo) api.File {
	if f, ok := i.(isolation.FileInfo); ok {
		return f
	}
	return api.File{Base: i.Name(), Bytes: i.Size(), Bits: i.Mode(), Modified: i.ModTime()}
}

func (s *Server) statFile(ctx context.Context, in *InFile) (*body[api.File], error) {
	f, err := s.files(ctx, in.ID)
	if err != nil {
		return nil, problem(err)
	}
	i, err := f.Stat(ctx, in.Path)
	if err != nil {
		return nil, problem(err)
	}
	return &body[api.File]{fileOf(i)}, nil
}

func (s *Server) listFiles(ctx context.Context, in *InFile) (*body[api.Listing], error) {
	f, err := s.files(ctx, in.ID)
	if err != nil {
		return nil, problem(err)
	}
	list, err := f.ReadDir(ctx, in.Path)
	out := api.Listing{Files: []api.File{}}
	if errors.Is(err, isolation.ErrResourceExhausted) && len(list) > 0 {
		out.Truncated, err = true, nil
	}
	if err != nil {
		return nil, problem(err)
	}
	for _, i := range list {
		out.Files = append(out.Files, fileOf(i))
	}
	return &body[api.Listing]{out}, nil
}

func (s *Server) mkdir(ctx context.Context, in *struct {
	InBox
	Body api.Mkdir
}) (*none, error) {
	f, err := s.files(ctx, in.ID)
	if err == nil {
		mode := fs.FileMode(in.Body.Mode) & fs.ModePerm
		if mode == 0 {
			mode = 0o755
		}
		err = f.Mkdir(ctx, in.Body.Path, mode)
	}
	return nil, problem(err)
}

func (s *Server) rename(ctx context.Context, in *struct {
	InBox
	Body api.Rename
}) (*none, error) {
	f, err := s.files(ctx, in.ID)
	if err == nil {
		err = f.Rename(ctx, in.Body.From, in.Body.To)
	}
	return nil, problem(err)
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request) error {
	all, err := boolean(r, "recursive")
	if err != nil {
		return err
	}
	sn, err := s.session(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	wa, err := sn.Watcher(r.Context())
	if err != nil {
		return err
	}
	events, err := wa.Watch(r.Context(), r.URL.Query().Get("path"), all)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	if err := flush(); err != nil {
		return err
	}
	for e := range events {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "event: file\ndata: %s\n\n", b); err != nil {
			return err
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}
