package rest

import (
	"errors"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/engine"
)

// The JSON of types of the contract that write it themselves.
type (
	limitsJSON struct {
		WallMS      float64 `json:"wall_ms,omitempty" minimum:"0" doc:"From the start of the program"`
		CPUMS       float64 `json:"cpu_ms,omitempty" minimum:"0" doc:"User and system time"`
		Fuel        uint64  `json:"fuel,omitempty" doc:"WebAssembly: units of the engine, about one an instruction"`
		OutputBytes int64   `json:"output_bytes,omitempty" minimum:"0" doc:"Both streams together; more ends the program"`
		OpenFiles   int64   `json:"open_files,omitempty" minimum:"0"`
	}
	usageJSON struct {
		WallMS     float64         `json:"wall_ms"`
		CPUMS      float64         `json:"cpu_ms"`
		PeakMemory int64           `json:"peak_memory_bytes" doc:"-1 where it cannot be told"`
		Read       int64           `json:"read_bytes,omitempty"`
		Written    int64           `json:"written_bytes,omitempty"`
		Fuel       uint64          `json:"fuel,omitempty"`
		Now        *isolation.Load `json:"now,omitempty" doc:"What it takes at the moment; of a sandbox's stats"`
		Phases     phasesJSON      `json:"phases"`
	}
	phasesJSON struct {
		Select   float64 `json:"select_ms"`
		Create   float64 `json:"create_ms"`
		Start    float64 `json:"start_ms"`
		Run      float64 `json:"run_ms"`
		Teardown float64 `json:"teardown_ms"`
	}
)

// textJSON is the JSON of engine.Text.
type textJSON struct{}

// Schema implements huma.SchemaProvider.
func (textJSON) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{
		{Type: huma.TypeString},
		{Type: huma.TypeObject, Description: "Bytes that are no text", Properties: map[string]*huma.Schema{"base64": {Type: huma.TypeString, ContentEncoding: "base64"}}},
	}}
}

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// named gives a problem the id of its request, and has it told in the log if it is a
// fault of the daemon's.
func named(ctx huma.Context, _ string, v any) (any, error) {
	if p, ok := v.(*api.Problem); ok {
		told(telemetry.CallOf(ctx.Context()), p)
	}
	return v, nil
}

func told(c *telemetry.Call, p *api.Problem) {
	p.RequestID = c.ID()
	if p.Status == http.StatusInternalServerError {
		c.Fail(errors.New(p.Detail))
	} else if p.Class != "" {
		c.Fail(p.Err())
	}
}

// config is huma's, with the contract's types as their JSON has them.
func config(version string) huma.Config {
	c := huma.DefaultConfig("Axocoatl Isolation", version)
	c.CreateHooks = nil // no $schema in answers
	c.Transformers = []huma.Transformer{named}
	c.DocsPath = ""
	c.SchemasPath = ""
	c.Info.Description = "Runs code in the strongest isolation that this host has. Every request but /v1/health and /openapi.* needs a key: Authorization: Bearer KEY, or X-API-Key: KEY."
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"key":    {Type: "http", Scheme: "bearer"},
		"header": {Type: "apiKey", In: "header", Name: "X-API-Key"},
	}
	c.Security = []map[string][]string{{"key": {}}, {"header": {}}}
	s := c.Components.Schemas
	text := reflect.TypeFor[string]()
	s.RegisterTypeAlias(reflect.TypeFor[isolation.Tier](), text)
	s.RegisterTypeAlias(reflect.TypeFor[isolation.Requirement](), text)
	s.RegisterTypeAlias(reflect.TypeFor[isolation.Signal](), reflect.TypeFor[int]())
	s.RegisterTypeAlias(reflect.TypeFor[isolation.Limits](), reflect.TypeFor[limitsJSON]())
	s.RegisterTypeAlias(reflect.TypeFor[isolation.Usage](), reflect.TypeFor[usageJSON]())
	s.RegisterTypeAlias(reflect.TypeFor[engine.Text](), reflect.TypeFor[textJSON]())
	return c
}

// What huma itself refuses is told as everything else is.
func init() {
	huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
		class := ""
		switch status {
		case http.StatusUnprocessableEntity, http.StatusUnsupportedMediaType, http.StatusRequestEntityTooLarge:
			status, class = http.StatusBadRequest, "invalid_argument"
		case http.StatusBadRequest:
			class = "invalid_argument"
		case http.StatusNotFound:
			class = "not_found"
		}
		details := []string{message}
		for _, err := range errs {
			if err != nil {
				details = append(details, err.Error())
			}
		}
		return &api.Problem{Status: status, Title: http.StatusText(status), Detail: strings.Join(details, ": "), Class: class}
	}
}
