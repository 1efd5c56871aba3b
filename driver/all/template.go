package all

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/image/disk"
	"github.com/axocoatl/isolation/image/kernel"
)

// Directories of a state directory.
const (
	KernelsDir   = "kernels"
	TemplatesDir = "templates"
)

// TemplateConfig describes a template of virtual machines.
type TemplateConfig struct {
	Name      string // "" is microvm.DefaultTemplate
	Kernel    string // release or digest; "": the one that was imported last
	MemoryMiB int
	CPUs      int
	Accel     string // "kvm", "tcg"; "": what works
	// Root is a directory that has the root file system. Empty: this host's
	// system, with Packages beside the essential ones.
	Root     string
	Packages []string
	Progress func(step string)
}

// BuildTemplate builds a template in a state directory.
func BuildTemplate(ctx context.Context, c Config, t TemplateConfig) (*microvm.Template, error) {
	if c.StateDir == "" {
		return nil, fmt.Errorf("a template needs a state directory: %w", isolation.ErrInvalidArgument)
	}
	guest, err := oci.GuestProgram(oci.Config{Guest: c.Guest})
	if err != nil {
		return nil, err
	}
	store, err := kernel.Open(filepath.Join(c.StateDir, KernelsDir), kernel.Limits{})
	if err != nil {
		return nil, err
	}
	k, err := store.Get(t.Kernel)
	if err != nil {
		return nil, err
	}
	if err := k.Verify(); err != nil {
		return nil, err
	}
	b := microvm.BuildConfig{
		Name: t.Name, MemoryMiB: t.MemoryMiB, CPUs: t.CPUs, Accel: t.Accel, Progress: t.Progress,
		Kernel: k.VMLinux(), KernelID: k.Release + " (" + k.Digest[:len("sha256:")+12] + ")", Guest: guest,
		WriteInitrd: func(w io.Writer, modules, dirs []string, files []microvm.InitFile) error {
			var list []kernel.InitrdFile
			for _, f := range files {
				list = append(list, kernel.InitrdFile{Name: f.Name, Mode: f.Mode, Data: bytes.NewReader(f.Data), Size: int64(len(f.Data))})
			}
			return k.WriteInitrd(w, modules, dirs, list...)
		},
		Source: "this host's system",
		Warm:   [][]string{{"/bin/sh", "-c", "exit 0"}},
	}
	if t.Root != "" {
		b.Source = t.Root
	} else {
		b.Warm = append(b.Warm, []string{"/bin/sh", "-c", "! command -v python3 >/dev/null || exec python3 -c 'import json, random, re, ssl, subprocess'"})
	}
	b.WriteDisk = func(f *os.File, temp string) error {
		d := disk.Create(f, temp, disk.Limits{})
		var err error
		if t.Root != "" {
			err = d.Tree(t.Root, "/", disk.Same, nil)
		} else {
			err = d.Host(ctx, t.Packages...)
		}
		return errors.Join(err, d.Close())
	}
	return microvm.Build(ctx, microvm.Config{Templates: filepath.Join(c.StateDir, TemplatesDir), QEMU: c.QEMU, Logger: c.Logger}, b)
}
