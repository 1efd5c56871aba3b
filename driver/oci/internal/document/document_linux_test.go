package document

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci/internal/bundle"
)

// full is a bundle whose document sets all that is implemented.
func full(t *testing.T) *bundle.Bundle {
	t.Helper()
	maps := []specs.LinuxIDMapping{{HostID: 524288, Size: 65536}}
	b := bundle.New(isolation.Spec{
		Requirement: isolation.Shell, Profile: "session", Hostname: "box",
		Resources: isolation.Resources{MemoryBytes: 64 << 20, Pids: 32, CPUs: 1.5, DiskBytes: 1 << 20, IO: isolation.IO{ReadBytes: 1, WriteBytes: 2, ReadOps: 3, WriteOps: 4}},
		Mounts:    []isolation.Mount{{Source: "/srv/data", Destination: "/data", ReadOnly: true}, {Source: "/srv/out", Destination: "/out"}},
	}, bundle.Facts{
		System: []bundle.Entry{{Path: "/usr"}, {Path: "/bin", Link: "usr/bin"}, {Path: "/etc/localtime", File: true, NoExec: true}},
		User:   bundle.User{Name: "user", UID: 1000, GID: 1000, Home: "/home/user"},
		UIDs:   maps, GIDs: maps, Mounts: []bundle.Source{{Mapped: true, UID: 5, GID: 6}, {}},
		Disks:   []bundle.Disk{{Major: 8}, {Major: 8, Minor: 16}},
		Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}},
	})
	b.Config.Process.User.AdditionalGids = []uint32{7}
	return b
}

func text(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// leaf is a field of the specification that is no struct.
type leaf struct {
	name string
	set  func(*specs.Spec) reflect.Value // makes what is above it, and returns it
}

// leaves lists all fields, by reflection: also those of later versions.
func leaves(typ reflect.Type, name string, get func(*specs.Spec) reflect.Value) (list []leaf) {
	if implemented[name] {
		return []leaf{{name, get}}
	}
	switch typ.Kind() {
	case reflect.Pointer:
		if typ.Elem().Kind() == reflect.Struct {
			return leaves(typ.Elem(), name, func(s *specs.Spec) reflect.Value {
				v := get(s)
				if v.IsNil() {
					v.Set(reflect.New(typ.Elem()))
				}
				return v.Elem()
			})
		}
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.Struct {
			return leaves(typ.Elem(), name, func(s *specs.Spec) reflect.Value {
				v := get(s)
				if v.Len() == 0 {
					v.Set(reflect.MakeSlice(typ, 1, 1))
				}
				return v.Index(v.Len() - 1)
			})
		}
	case reflect.Struct:
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Anonymous {
				list = append(list, leaves(f.Type, name, func(s *specs.Spec) reflect.Value { return get(s).Field(i) })...)
				continue
			}
			list = append(list, leaves(f.Type, strings.TrimPrefix(name+"."+nameOf(f), "."), func(s *specs.Spec) reflect.Value { return get(s).Field(i) })...)
		}
		return list
	}
	return []leaf{{name, get}}
}

// other gives a value that differs from v, and is not zero.
func other(v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(v.Int() + 17)
	case reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint8:
		v.SetUint(v.Uint() + 17)
	case reflect.String:
		v.SetString("/other" + v.String())
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if !v.IsNil() {
			p.Elem().Set(v.Elem())
		}
		other(p.Elem())
		v.Set(p)
	case reflect.Slice:
		e := reflect.New(v.Type().Elem()).Elem()
		other(e)
		v.Set(reflect.Append(v, e))
	case reflect.Map:
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		other(k)
		other(e)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(k, e)
	case reflect.Struct:
		for i := range v.NumField() {
			other(v.Field(i))
		}
	}
}

// TestEveryFieldCounts sets every field of the specification to something else:
// either the container is another one, or the field is refused by its name.
func TestEveryFieldCounts(t *testing.T) {
	base, err := Read(full(t))
	if err != nil {
		t.Fatal(err)
	}
	all := leaves(reflect.TypeFor[specs.Spec](), "", func(s *specs.Spec) reflect.Value { return reflect.ValueOf(s).Elem() })
	refused, counted := 0, map[string]bool{}
	for _, l := range all {
		b := full(t)
		other(l.set(b.Config))
		got, err := Read(b)
		switch {
		case err != nil && !implemented[l.name]:
			refused++
			if !errors.Is(err, isolation.ErrUnsupported) || !strings.Contains(err.Error(), named(l.name)) {
				t.Errorf("%s: the error does not name it: %v", l.name, err)
			}
		case err != nil:
			counted[l.name] = true
		case text(t, got) == text(t, base):
			t.Errorf("%s is ignored", l.name)
		default:
			counted[l.name] = true
		}
	}
	for name := range implemented {
		if !counted[name] {
			t.Errorf("%s is in the list, and is no field", name)
		}
	}
	if refused < 100 {
		t.Errorf("only %d of %d fields were refused", refused, len(all))
	}
}

// named is as much of a field's name as its refusal tells: a part that nothing of
// is implemented is refused as a whole.
func named(name string) string {
	parts := strings.Split(name, ".")
	for i := range parts {
		if p := strings.Join(parts[:i+1], "."); !above[p] {
			return p
		}
	}
	return name
}

func TestValues(t *testing.T) {
	for _, c := range []struct {
		field string
		edit  func(*specs.Spec)
	}{
		{"ociVersion", func(s *specs.Spec) { s.Version = "2.0.0" }},
		{"root.path", func(s *specs.Spec) { s.Root.Path = "/" }},
		{"linux.namespaces", func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] }},
		{"linux.namespaces", func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/1/ns/user" }},
		{"linux.uidMappings", func(s *specs.Spec) { s.Linux.UIDMappings = nil }},
		{"linux.resources.memory", func(s *specs.Spec) { s.Linux.Resources.Memory.Swap = nil }},
		{"linux.resources.blockIO.throttleReadBpsDevice", func(s *specs.Spec) { s.Linux.Resources.BlockIO.ThrottleReadBpsDevice[0].Rate = 0 }},
		{"linux.resources.blockIO.throttleWriteIOPSDevice", func(s *specs.Spec) { s.Linux.Resources.BlockIO.ThrottleWriteIOPSDevice[1].Major = -1 }},
		{"process.capabilities.bounding", func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_NEW"} }},
		{"process.rlimits", func(s *specs.Spec) { s.Process.Rlimits[0].Type = "RLIMIT_RTTIME" }},
		{"mounts.type", func(s *specs.Spec) { s.Mounts[0].Type = "nfs" }},
		{"mounts.source", func(s *specs.Spec) { s.Mounts[0].Source = "relative" }},
		{"mounts.options", func(s *specs.Spec) { s.Mounts[0].Options = append(s.Mounts[0].Options, "exec") }},
		// The host's set-user-ID files are not to work inside.
		{"mounts.options", func(s *specs.Spec) { s.Mounts[0].Options = []string{"rbind", "rro", "rnodev"} }},
		{"linux.maskedPaths", func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"proc/kcore"} }},
		{"seccomp", func(s *specs.Spec) { s.Linux.Seccomp.Architectures = []specs.Arch{specs.ArchMIPS} }},
		{"seccomp", func(s *specs.Spec) { s.Linux.Seccomp.DefaultAction = specs.ActNotify }},
	} {
		b := full(t)
		c.edit(b.Config)
		if _, err := Read(b); err == nil || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%v, want an error that names %s", err, c.field)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	f := full(&testing.T{})
	for b.Loop() {
		if _, err := Read(f); err != nil {
			b.Fatal(err)
		}
	}
}
