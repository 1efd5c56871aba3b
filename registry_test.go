package isolation

import "testing"

// named is a driver that has a name and nothing else.
type named struct {
	Driver
	name string
}

func (n named) Name() string { return n.name }

func names(list []Registration) string {
	s := ""
	for _, r := range list {
		s += r.Driver.Name() + " "
	}
	return s
}

func TestRegistry(t *testing.T) {
	var r Registry
	if len(r.All()) != 0 || len(r.Of(TierWASM)) != 0 {
		t.Error("an empty registry has something")
	}
	r.Add(TierWASM, named{name: "a"})
	r.Add(TierOCI, named{name: "b"})
	r.Add(TierWASM, named{name: "c"})
	if got := names(r.All()); got != "a b c " {
		t.Errorf("all are %s", got)
	}
	if got := names(r.Of(TierWASM)); got != "a c " {
		t.Errorf("of WASM are %s", got)
	}
	if got := names(r.Of(TierMicroVM)); got != "" {
		t.Errorf("of microVM are %s", got)
	}
	// What it gives is the caller's.
	r.All()[0] = Registration{}
	r.Of(TierWASM)[0] = Registration{}
	if got := names(r.All()); got != "a b c " {
		t.Errorf("after a caller changed its list, all are %s", got)
	}
	// A copy stays as it is.
	before := r
	r.Add(TierNone, named{name: "d"})
	if got := names(before.All()); got != "a b c " {
		t.Errorf("a copy changed to %s", got)
	}
}

func TestRegistryTwice(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a second driver of one name was taken")
		}
	}()
	var r Registry
	r.Add(TierWASM, named{name: "a"})
	r.Add(TierOCI, named{name: "a"})
}
