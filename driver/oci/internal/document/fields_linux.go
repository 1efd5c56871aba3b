package document

import (
	"reflect"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/axocoatl/isolation"
)

// implemented are the fields that this package reads, by their names in JSON; of a
// list, each element's.
var implemented = map[string]bool{
	"ociVersion": true,
	"hostname":   true,

	"process.user.uid":              true,
	"process.user.gid":              true,
	"process.user.additionalGids":   true,
	"process.cwd":                   true,
	"process.capabilities.bounding": true,
	"process.rlimits":               true,
	"process.noNewPrivileges":       true,
	"process.oomScoreAdj":           true,

	"root.path":     true,
	"root.readonly": true,

	"mounts.destination": true,
	"mounts.type":        true,
	"mounts.source":      true,
	"mounts.options":     true,
	"mounts.uidMappings": true,
	"mounts.gidMappings": true,

	"linux.uidMappings":            true,
	"linux.gidMappings":            true,
	"linux.namespaces":             true,
	"linux.maskedPaths":            true,
	"linux.readonlyPaths":          true,
	"linux.seccomp":                true, // all of it: see package seccomp
	"linux.resources.memory.limit": true,
	"linux.resources.memory.swap":  true,
	"linux.resources.cpu.quota":    true,
	"linux.resources.cpu.period":   true,
	"linux.resources.pids.limit":   true,

	// Of each element all.
	"linux.resources.blockIO.throttleReadBpsDevice":   true,
	"linux.resources.blockIO.throttleWriteBpsDevice":  true,
	"linux.resources.blockIO.throttleReadIOPSDevice":  true,
	"linux.resources.blockIO.throttleWriteIOPSDevice": true,
}

// above are the fields that have implemented ones below them.
var above = func() map[string]bool {
	out := map[string]bool{}
	for name := range implemented {
		for i := strings.LastIndexByte(name, '.'); i > 0; i = strings.LastIndexByte(name[:i], '.') {
			out[name[:i]] = true
		}
	}
	return out
}()

// unimplemented returns the name of a field that is set and not implemented;
// "": there is none.
func unimplemented(v reflect.Value, name string) string {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return ""
		}
		return unimplemented(v.Elem(), name)
	case reflect.Slice:
		for i := range v.Len() {
			if bad := unimplemented(v.Index(i), name); bad != "" {
				return bad
			}
		}
		return ""
	case reflect.Struct:
	default:
		return name
	}
	t := v.Type()
	for i := range t.NumField() {
		if unset(v.Field(i)) {
			continue
		}
		field := nameOf(t.Field(i))
		if name != "" {
			field = name + "." + field
		}
		switch {
		case implemented[field]:
		case !above[field]:
			return field
		default:
			if bad := unimplemented(v.Field(i), field); bad != "" {
				return bad
			}
		}
	}
	return ""
}

// unset reports whether a field says nothing.
func unset(v reflect.Value) bool {
	if k := v.Kind(); k == reflect.Slice || k == reflect.Map {
		return v.Len() == 0
	}
	return v.IsZero()
}

// nameOf is a field's name in JSON.
func nameOf(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// check refuses a document with a field that is not implemented.
func check(c *specs.Spec) error {
	if name := unimplemented(reflect.ValueOf(c), ""); name != "" {
		return &isolation.UnsupportedError{Feature: "the field " + name + " of a container's configuration", Need: "an engine that implements it"}
	}
	return nil
}
