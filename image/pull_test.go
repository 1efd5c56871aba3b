package image

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestPull(t *testing.T) {
	reg := newRegistry(t)
	base := mkTar(t, ent{name: "etc/"}, ent{name: "etc/a", body: "base"}, ent{name: "bin/"}, ent{name: "bin/x", body: "#!", mode: 0o755})
	top := mkTar(t, ent{name: "etc/b", body: "top"})
	third := mkTar(t, ent{name: "c", body: "c"})
	ref := reg.push(t, "some/image:1", mkImage(t, "", gzLayer(t, base), zstLayer(t, top), plainLayer(third)))
	s := newStore(t, Limits{})
	var events []Event
	img, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Progress: func(e Event) { events = append(events, e) }})
	if err != nil {
		t.Fatal(err)
	}
	if len(reg.blobGets()) != 4 {
		t.Error("not each blob was fetched once")
	}
	if !slices.Equal(img.Names, []string{ref}) || img.Platform != HostPlatform() || len(img.Layers) != 3 || img.UnpackedSize != 10 {
		t.Errorf("%+v", img)
	}
	c := img.Config
	if !slices.Equal(c.Entrypoint, []string{"/bin/sh", "-c"}) || !slices.Equal(c.ExposedPorts, []string{"53/udp", "80/tcp"}) || c.User != "1000:1000" ||
		c.WorkingDir != "/work" || c.StopSignal != "SIGINT" || c.Labels["k"] != "v" || !slices.Equal(c.Cmd, []string{"true"}) || !slices.Equal(c.Env, []string{"A=1", "PATH=/bin"}) {
		t.Errorf("%+v", c)
	}
	r := rootFS(t, s, img)
	want := []string{"etc/a", "etc/b", "c"}
	if len(r.Layers) != 3 {
		t.Fatal(r.Layers)
	}
	for i, n := range want {
		if _, err := os.Stat(filepath.Join(r.Layers[i], n)); err != nil {
			t.Error(err)
		}
	}
	count := map[Stage]int{}
	for _, e := range events {
		count[e.Stage]++
	}
	if count[StageResolved] != 1 || count[StageDownloaded] != 3 || count[StageUnpacked] != 3 {
		t.Errorf("%v", count)
	}
	// A second pull asks for the manifest and fetches nothing.
	if again := pull(t, s, ref); again.Digest != img.Digest {
		t.Error(again)
	}
	if gets := reg.blobGets(); len(gets) != 0 {
		t.Errorf("fetched again: %v", gets)
	}
	r.Release()
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
