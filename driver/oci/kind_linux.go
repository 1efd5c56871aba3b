package oci

import (
	"sync"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci/internal/document"
	"github.com/axocoatl/isolation/internal/spawn"
)

// kinds remembers how sandboxes are made that are alike: their document as it was
// read, and the steps to their root. To describe one takes as long as to fork.
type kinds struct {
	on bool

	mu    sync.Mutex
	age   uint64 // of the host, when these were described
	known map[kindKey]*kindOfSandbox
}

// kindKey is all that a document and its steps are made of, for a sandbox on the host's
// system directories and with nothing else of the host's, but for those directories,
// which have an age, the maps of ids, and the engine's configuration.
type kindKey struct {
	hostname, profile string
	resources         isolation.Resources
	staging           string
	single            bool // see idMap
	uid, gid          int  // of who makes the root, inside
}

// kindOfSandbox is what sandboxes that are alike have in common. Nothing in it is
// changed any more.
type kindOfSandbox struct {
	document document.Container // but for the maps of ids
	steps    *spawn.Script
}

// maxKinds bounds what is remembered. Most programs have a handful.
const maxKinds = 64

// describe returns the document of a container of a kind; nil: its kind is not
// remembered. It is not for what other processes find again by its document.
func (k *kinds) describe(e *builtin, c *container, spec isolation.Spec) (*document.Container, error) {
	if !k.on || c.root != nil || len(spec.Mounts) > 0 || !spec.Resources.IO.IsZero() || spec.Detached {
		return nil, nil
	}
	staging, age, err := system.staging()
	if err != nil {
		return nil, err
	}
	user := c.ids.credential()
	key := kindKey{spec.Hostname, spec.Profile, spec.Resources, staging, c.ids.single, int(user.UID), int(user.GID)}
	k.mu.Lock()
	found := k.known[key]
	if k.age != age {
		found = nil
	}
	k.mu.Unlock()
	if found == nil {
		_, d, err := e.describe(c, spec)
		if err != nil {
			return nil, err
		}
		found = &kindOfSandbox{document: *d, steps: makeRoot(&d.Plan, user)}
		if again, now, err := system.staging(); err == nil && now == age && again == staging && d.Plan.Staging == staging {
			k.put(key, age, found) // else it may be of both
		}
	}
	c.kind = found
	d := found.document
	d.UIDMap, d.GIDMap, err = document.Maps(c.ids.uids(), c.ids.gids())
	return &d, err
}

func (k *kinds) put(key kindKey, age uint64, x *kindOfSandbox) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.age != age || len(k.known) >= maxKinds {
		k.age, k.known = age, map[kindKey]*kindOfSandbox{}
	}
	if k.known == nil {
		k.known = map[kindKey]*kindOfSandbox{}
	}
	k.known[key] = x
}
