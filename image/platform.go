package image

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/axocoatl/isolation"
)

// HostPlatform is the platform that is chosen unless another is asked for. It is
// Linux's everywhere: elsewhere images run in a virtual machine.
func HostPlatform() string { return "linux/" + runtime.GOARCH }

// parsePlatform parses os/architecture[/variant], or an architecture alone.
func parsePlatform(s string) (v1.Platform, error) {
	if s == "" {
		s = HostPlatform()
	}
	if !strings.Contains(s, "/") {
		s = "linux/" + s
	}
	parts := strings.Split(s, "/")
	if len(parts) > 3 || slices.Contains(parts, "") {
		return v1.Platform{}, fmt.Errorf("platform %q: want os/architecture[/variant], such as linux/arm64: %w", s, isolation.ErrInvalidArgument)
	}
	p := v1.Platform{OS: parts[0], Architecture: alias(parts[1])}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// alias takes the names that uname has.
func alias(arch string) string {
	switch arch {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return arch
}

// fits reports whether an image for have is one that want asks for. How well is
// told by rank.
func fits(want, have v1.Platform) bool {
	if have.OS != want.OS || alias(have.Architecture) != want.Architecture {
		return false
	}
	return want.Variant == "" || variant(have) == variant(want)
}

// variant fills in what no variant means.
func variant(p v1.Platform) string {
	if p.Variant == "" {
		switch alias(p.Architecture) {
		case "arm64":
			return "v8"
		case "amd64":
			return "v1"
		}
	}
	return p.Variant
}

// rank orders variants, best first. Where none was asked for, the oldest runs on
// most machines; but arm without one means v7, as others have it.
func rank(p v1.Platform) int {
	v := variant(p)
	if p.Architecture == "arm" {
		switch v {
		case "v7", "":
			return 0
		case "v6":
			return 1
		case "v5":
			return 2
		}
		return 3
	}
	if len(v) == 2 && v[0] == 'v' {
		return int(v[1])
	}
	return 1 << 8
}

// choose picks the manifest of an index for a platform.
func choose(x *v1.IndexManifest, want v1.Platform) (v1.Descriptor, error) {
	var found []v1.Descriptor
	var there []string
	for _, d := range x.Manifests {
		switch {
		case d.Platform == nil:
			there = append(there, "one without a platform")
		case d.Platform.OS == "unknown":
			// Attestations; not an image.
		default:
			there = append(there, d.Platform.String())
			if fits(want, *d.Platform) {
				found = append(found, d)
			}
		}
	}
	if len(found) == 0 && len(x.Manifests) == 1 && x.Manifests[0].Platform == nil {
		return x.Manifests[0], nil // its config says for what it is
	}
	if len(found) == 0 {
		list := strings.Join(there, ", ")
		if list == "" {
			list = "no image at all"
		}
		return v1.Descriptor{}, fmt.Errorf("there is no image for %s; there is %.1000s: %w", want, list, isolation.ErrNotFound)
	}
	slices.SortStableFunc(found, func(a, b v1.Descriptor) int { return rank(*a.Platform) - rank(*b.Platform) })
	return found[0], nil
}

// checkPlatform refuses an image whose config is for another platform.
func checkPlatform(c *v1.ConfigFile, want v1.Platform) error {
	have := v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	if have.OS == "" && have.Architecture == "" || fits(want, have) {
		return nil
	}
	return fmt.Errorf("the image is for %s, not for %s; ask for that platform if you mean it: %w", have, want, isolation.ErrFailedPrecondition)
}
