package tool

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/google/jsonschema-go/jsonschema"
)

// ManifestSchema is the JSON Schema of a manifest.
//
//go:embed manifest.schema.json
var ManifestSchema []byte

// schema checks values.
type schema struct {
	*jsonschema.Resolved
}

// compile reads a schema. References to other documents are refused.
func compile(b []byte) (schema, error) {
	var s jsonschema.Schema
	if err := json.Unmarshal(b, &s); err != nil {
		return schema{}, fmt.Errorf("it is no JSON Schema: %w", err)
	}
	if s.Schema != "" && s.Schema != "https://json-schema.org/draft/2020-12/schema" {
		return schema{}, fmt.Errorf("its $schema is %.80q, and draft 2020-12 is what is known", s.Schema)
	}
	if err := sense(&s); err != nil {
		return schema{}, err
	}
	r, err := s.Resolve(nil)
	if err != nil {
		return schema{}, err
	}
	return schema{r}, nil
}

// kinds are the types of draft 2020-12.
var kinds = []string{"null", "boolean", "object", "array", "number", "string", "integer"}

// sense refuses types that there are not, and lengths below zero, which the package
// takes as they come: nothing is of such a type.
func sense(s *jsonschema.Schema) error {
	if s == nil {
		return nil
	}
	for _, t := range append(slices.Clone(s.Types), s.Type) {
		if t != "" && !slices.Contains(kinds, t) {
			return fmt.Errorf("its type %.40q is none of %v", t, kinds)
		}
	}
	v := reflect.ValueOf(s).Elem()
	var errs []error
	for i := range v.NumField() {
		if !v.Type().Field(i).IsExported() {
			continue
		}
		switch f := v.Field(i).Interface().(type) {
		case *int:
			if f != nil && *f < 0 {
				errs = append(errs, fmt.Errorf("its %s is negative", v.Type().Field(i).Name))
			}
		case *jsonschema.Schema:
			errs = append(errs, sense(f))
		case []*jsonschema.Schema:
			for _, x := range f {
				errs = append(errs, sense(x))
			}
		case map[string]*jsonschema.Schema:
			for _, x := range f {
				errs = append(errs, sense(x))
			}
		}
	}
	return errors.Join(errs...)
}

// compileInput reads the schema of an input, which must be an object.
func compileInput(b []byte) (schema, error) {
	s, err := compile(b)
	if err == nil && s.Schema().Type != "object" {
		err = errors.New(`an input is an object: its schema has type = "object"`)
	}
	return s, err
}

// check validates JSON, and returns it decoded.
func (s schema) check(b []byte) (any, error) {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("it is not JSON: %w", err)
	}
	if s.Resolved == nil {
		return v, nil
	}
	return v, s.Validate(v)
}
