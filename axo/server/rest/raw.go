package rest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/internal/form"
)

// raw registers a handler whose bodies are not JSON, and documents it.
func (s *Server) raw(o huma.Operation, h func(http.ResponseWriter, *http.Request) error) {
	s.document(&o)
	s.mux.HandleFunc(o.Method+" "+o.Path, func(w http.ResponseWriter, r *http.Request) {
		out := &once{ResponseWriter: w}
		if err := h(out, r); err != nil {
			if out.begun {
				// The answer is cut off, so that nobody takes it for whole.
				panic(http.ErrAbortHandler)
			}
			writeProblem(w, err)
		}
	})
}

func (s *Server) document(o *huma.Operation) {
	for _, name := range pathValue().FindAllStringSubmatch(o.Path, -1) {
		o.Parameters = append(o.Parameters, &huma.Param{Name: name[1], In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}})
	}
	if o.Responses == nil {
		o.Responses = map[string]*huma.Response{"204": {Description: "Done"}}
	}
	o.Responses["default"] = &huma.Response{
		Description: "Problem", Content: map[string]*huma.MediaType{api.ProblemType: {Schema: &huma.Schema{Ref: "#/components/schemas/Problem"}}},
	}
	s.api.OpenAPI().AddOperation(o)
}

var pathValue = form.Of(`\{(\w+)\}`)

// once remembers whether an answer has begun.
type once struct {
	http.ResponseWriter
	begun bool
}

func (o *once) WriteHeader(status int) {
	o.begun = true
	o.ResponseWriter.WriteHeader(status)
}

func (o *once) Write(p []byte) (int, error) {
	o.begun = true
	return o.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController be used.
func (o *once) Unwrap() http.ResponseWriter { return o.ResponseWriter }

func writeProblem(w http.ResponseWriter, err error) {
	p := api.ProblemOf(err)
	told(telemetry.CallFor(w), p)
	w.Header().Set("Content-Type", api.ProblemType)
	maps.Copy(w.Header(), p.GetHeaders())
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

// boolean reads a parameter that is not there for false.
func boolean(r *http.Request, name string) (bool, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("%s %.80q: want true or false: %w", name, v, isolation.ErrInvalidArgument)
	}
	return b, nil
}
