package isolation

import "fmt"

// Registration is one engine of one tier.
type Registration struct {
	Tier   Tier
	Driver Driver
}

// Registry is an ordered list of engines: earlier ones of the same tier are
// preferred. It is a value that somebody builds (see driver/all) and hands to
// the engine; there is no global one. The zero value is empty and usable.
type Registry struct {
	list []Registration
}

// Add appends a driver. A second driver of the same name is a mistake in the
// program and panics.
func (r *Registry) Add(t Tier, d Driver) {
	for _, have := range r.list {
		if have.Driver.Name() == d.Name() {
			panic(fmt.Sprintf("isolation: driver %q registered twice", d.Name()))
		}
	}
	r.list = append(r.list, Registration{t, d})
}

// All returns the engines in order of preference within their tier.
func (r Registry) All() []Registration { return append([]Registration(nil), r.list...) }

// Of returns the engines of one tier, preferred first.
func (r Registry) Of(t Tier) []Registration {
	var out []Registration
	for _, e := range r.list {
		if e.Tier == t {
			out = append(out, e)
		}
	}
	return out
}
