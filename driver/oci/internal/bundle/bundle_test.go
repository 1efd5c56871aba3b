package bundle

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/axocoatl/isolation"
)

var update = flag.Bool("update", false, "write the golden files")

// facts are those of a small host.
func facts() Facts {
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 524288, Size: 65536}}
	return Facts{
		System: []Entry{
			{Path: "/usr"}, {Path: "/bin", Link: "usr/bin"}, {Path: "/etc/ssl/certs", NoExec: true}, {Path: "/etc/localtime", File: true, NoExec: true},
			{Path: "/etc/os-release", File: true, NoExec: true, Text: "ID=small\n"},
		},
		User: User{Name: "user", UID: 1000, GID: 1000, Home: "/home/user"},
		UIDs: maps, GIDs: maps, DiskBytes: 1 << 30,
		Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
	}
}

func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name string
		spec isolation.Spec
		edit func(*Facts)
	}{
		{name: "plain", spec: isolation.Spec{Requirement: isolation.Shell}},
		{
			name: "all", spec: isolation.Spec{
				Requirement: isolation.Arbitrary, Hostname: "box",
				Resources: isolation.Resources{MemoryBytes: 64 << 20, Pids: 32, CPUs: 1.5, DiskBytes: 1 << 20, IO: isolation.IO{ReadBytes: 1 << 20, WriteOps: 100}},
				Mounts: []isolation.Mount{
					{Source: "/srv/data", Destination: "/data/", ReadOnly: true}, {Source: "/srv/out", Destination: "/out"},
					{Source: "/srv/file", Destination: "/file"},
				},
			},
			edit: func(f *Facts) {
				f.Disks = []Disk{{8, 0}, {254, 16}}
				f.Mounts = []Source{{}, {Mapped: true, UID: 1001, GID: 100}, {File: true}}
			},
		},
		{
			name: "session", spec: isolation.Spec{Requirement: isolation.ContainerImage, Profile: "session"},
			edit: func(f *Facts) { f.Layers, f.User = []string{"/l/1", "/l/2"}, User{} },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := facts()
			if c.edit != nil {
				c.edit(&f)
			}
			b := New(c.spec, f)
			got, err := json.MarshalIndent(struct {
				*Bundle
				Hosted *specs.Spec
			}{b, b.Hosted("guest")}, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", c.name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the document differs from %s; go test -update writes it:\n%s", file, got)
			}
		})
	}
}

// What a program has must not depend on whether a runtime or the builtin
// launcher makes the container: the documents differ in the first process only.
func TestHostedKeepsTheContainer(t *testing.T) {
	b := New(isolation.Spec{Requirement: isolation.Shell}, facts())
	before, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	h := b.Hosted("guest")
	h.Mounts[0].Destination = "/changed" // what Hosted returns is not the bundle's
	if after, err := json.Marshal(b); err != nil || !bytes.Equal(before, after) {
		t.Errorf("Hosted changed the bundle, or shares its mounts: %v", err)
	}
	for _, ns := range []specs.LinuxNamespaceType{specs.UserNamespace, specs.PIDNamespace, specs.MountNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
		found := false
		for _, n := range h.Linux.Namespaces {
			found = found || n.Type == ns && n.Path == ""
		}
		if !found {
			t.Errorf("no new %s namespace", ns)
		}
	}
}

func TestMappedOwnerOutsideTheRange(t *testing.T) {
	f := facts()
	f.User.UID = 70000
	f.Mounts = []Source{{Mapped: true}}
	b := New(isolation.Spec{Requirement: isolation.Shell, Mounts: []isolation.Mount{{Source: "/a", Destination: "/a"}}}, f)
	for _, m := range b.Config.Mounts {
		if m.Destination == "/a" && m.UIDMappings[0].HostID != 1<<32-1 {
			t.Errorf("mapped to %d", m.UIDMappings[0].HostID)
		}
	}
}
