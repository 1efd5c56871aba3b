package image

import (
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// DiffID is the digest of a layer's uncompressed tar, "sha256:" and 64
// hexadecimal digits.
type DiffID string

// Image is one image for one platform, as a store has it.
type Image struct {
	// Digest is that of the manifest, and identifies the image.
	Digest string `json:"digest"`
	// Names are the references that the image is found by, in full, such as
	// "docker.io/library/alpine:3". It may have none.
	Names []string `json:"names"`
	// Index is the digest of the multi-platform index that the image was taken
	// from, if it was.
	Index string `json:"index,omitempty"`
	// Platform is os/architecture, or os/architecture/variant.
	Platform string `json:"platform"`
	// Created is when the image says it was built; zero if it does not say.
	Created time.Time `json:"created,omitzero"`
	// Added is when the store got it.
	Added time.Time `json:"added"`
	// Size is that of its blobs, in bytes; UnpackedSize that of its files.
	// Images that share layers count them each.
	Size         int64 `json:"size"`
	UnpackedSize int64 `json:"unpacked_size"`
	// Layers are ordered base first.
	Layers []DiffID  `json:"layers"`
	Config RunConfig `json:"config"`

	blobs []string
}

// RunConfig is what an image says about how to run it. It is the image's word:
// nothing here has been checked against the root filesystem.
type RunConfig struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"`  // KEY=VALUE
	User         string            `json:"user,omitempty"` // name or uid, and :group or :gid
	WorkingDir   string            `json:"working_dir,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "8080/tcp", sorted
	Volumes      []string          `json:"volumes,omitempty"`       // sorted
	StopSignal   string            `json:"stop_signal,omitempty"`   // name or number
	Labels       map[string]string `json:"labels,omitempty"`
}

func runConfig(c v1.Config) RunConfig {
	keys := func(m map[string]struct{}) (list []string) {
		for k := range m {
			list = append(list, k)
		}
		slices.Sort(list)
		return list
	}
	return RunConfig{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir,
		ExposedPorts: keys(c.ExposedPorts), Volumes: keys(c.Volumes), StopSignal: c.StopSignal, Labels: c.Labels,
	}
}
