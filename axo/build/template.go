package build

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/form"
)

// How a build stands.
const (
	Waiting  = "waiting"
	Building = "building"
	Ready    = "ready"
	Failed   = "error"
)

// DefaultTag is that of a name without one.
const DefaultTag = "default"

// Template is a name of a tenant's, and what was built under it.
type Template struct {
	ID      string            `json:"id"`
	Tenant  string            `json:"tenant"`
	Name    string            `json:"name"`
	Tags    map[string]string `json:"tags"` // to ids of builds that are ready
	Tagged  map[string]time.Time
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	Builds  []Build   `json:"builds"` // the oldest first
}

// Build is one.
type Build struct {
	ID       string    `json:"id"`
	Status   string    `json:"status"`
	Started  bool      `json:"started"`
	Tags     []string  `json:"tags"` // that it gets when it is ready
	CPUs     int       `json:"cpus,omitempty"`
	MemoryMB int       `json:"memory_mb,omitempty"`
	Image    string    `json:"image,omitempty"` // digest
	Disk     int64     `json:"disk,omitempty"`  // bytes of its files
	Created  time.Time `json:"created"`
	Finished time.Time `json:"finished,omitzero"`
	Reason   *Reason   `json:"reason,omitempty"`
}

// Reason is why a build failed.
type Reason struct {
	Step    string `json:"step,omitempty"`
	Message string `json:"message"`
}

// goesOn reports whether a build has begun, and not ended.
func (b *Build) goesOn() bool { return b.Started && (b.Status == Waiting || b.Status == Building) }

func (x *Template) clone() *Template {
	y := *x
	y.Tags, y.Tagged, y.Builds = map[string]string{}, map[string]time.Time{}, slices.Clone(x.Builds)
	for k, v := range x.Tags {
		y.Tags[k], y.Tagged[k] = v, x.Tagged[k]
	}
	return &y
}

// forget takes the oldest builds that have no tag, and do not run, from a template that
// has many.
func (x *Template) forget() (old []Build) {
	for i := 0; len(x.Builds) > maxBuilds && i < len(x.Builds)-1; {
		b := x.Builds[i]
		tagged := false
		for _, id := range x.Tags {
			tagged = tagged || id == b.ID
		}
		if tagged || b.goesOn() {
			i++
			continue
		}
		old, x.Builds = append(old, b), slices.Delete(x.Builds, i, i+1)
	}
	return old
}

var (
	templateName = form.Of(`^[a-z0-9][a-z0-9_.-]{0,127}$`)
	tagName      = form.Of(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// ParseName splits NAME[:TAG].
func ParseName(ref string) (name, tag string, err error) {
	name, tag, ok := strings.Cut(ref, ":")
	if !ok {
		tag = DefaultTag
	}
	if !templateName().MatchString(name) {
		return "", "", invalid("template name %.150q: want lower-case letters, digits, dots, hyphens and underscores", name)
	}
	if !tagName().MatchString(tag) {
		return "", "", invalid("tag %.150q: want letters, digits, dots, hyphens and underscores", tag)
	}
	return name, tag, nil
}

func newID() string { return strings.ToLower(rand.Text()[:20]) }

func notFound(what, name string) error {
	return fmt.Errorf("%s %.150q: %w", what, name, isolation.ErrNotFound)
}
