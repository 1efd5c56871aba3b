package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/layer"
	"github.com/axocoatl/isolation/image"
)

func archive(t testing.TB, list ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, 4
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte("data")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestHostileArchives(t *testing.T) {
	for name, h := range map[string]tar.Header{
		"absolute":         {Name: "/etc/passwd"},
		"above":            {Name: "a/../../x"},
		"a device":         {Name: "d", Typeflag: tar.TypeChar},
		"a pipe":           {Name: "p", Typeflag: tar.TypeFifo},
		"a link out of it": {Name: "l", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"},
		"an absolute link": {Name: "l", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"},
	} {
		for _, b := range [][]byte{archive(t, h), zipped(t, archive(t, h))} {
			if err := CheckArchive(bytes.NewReader(b), 1<<20); !errors.Is(err, isolation.ErrInvalidArgument) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	good := archive(t, tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "a/f"}, tar.Header{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "/anywhere"})
	if err := CheckArchive(bytes.NewReader(zipped(t, good)), 1<<20); err != nil {
		t.Error(err)
	}
	for what, b := range map[string][]byte{"nothing like it": []byte(strings.Repeat("x", 600)), "half": good[:700], "half of a gzip": zipped(t, good)[:60]} {
		if err := CheckArchive(bytes.NewReader(b), 1<<20); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A bomb: much of nothing.
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(tw, zeros{}, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tw.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := CheckArchive(&z, 1<<20); !errors.Is(err, isolation.ErrResourceExhausted) {
		t.Errorf("a bomb: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestCopyTakes(t *testing.T) {
	b := archive(t, tar.Header{Name: "app/", Typeflag: tar.TypeDir}, tar.Header{Name: "app/main.py"}, tar.Header{Name: "app/sub/x.txt"}, tar.Header{Name: "other"}, tar.Header{Name: "app/h", Typeflag: tar.TypeLink, Linkname: "app/main.py"})
	for src, want := range map[string][]string{
		"app":          {"main.py", "sub/x.txt", "h"},
		"./app/":       {"main.py", "sub/x.txt", "h"},
		"app/main.py":  {"main.py"},
		"app/sub/*.tx": {"x.txt"}, // what matches was chosen by who sent it
		".":            {"app", "app/main.py", "app/sub/x.txt", "other", "app/h"},
		"*":            {"app", "app/main.py", "app/sub/x.txt", "other", "app/h"},
	} {
		var out bytes.Buffer
		if err := (Step{Type: Copy, Args: []string{src, "/x"}}).records(&out, bytes.NewReader(b), 1<<20); err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		var got []string
		for {
			r, err := layer.Read(&out)
			if err != nil {
				t.Fatal(err)
			}
			if r.Type == layer.End {
				break
			}
			got = append(got, r.Name)
			if _, err := io.CopyN(io.Discard, &out, r.Size); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", src, got, want)
		}
	}
	if err := (Step{Type: Copy, Args: []string{"nothing", "/x"}}).records(io.Discard, bytes.NewReader(b), 1<<20); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("what is not there: %v", err)
	}
	if err := (Step{Type: Copy, Args: []string{"app/h", "/x"}}).records(io.Discard, bytes.NewReader(b), 1<<20); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("a link to what is not copied: %v", err)
	}
}

// told is what a sandbox tells.
func told(t testing.TB, list ...layer.Record) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, r := range list {
		if err := layer.Write(&b, r); err != nil {
			t.Fatal(err)
		}
		b.WriteString(strings.Repeat("x", int(r.Size)))
	}
	return b.Bytes()
}

func TestTree(t *testing.T) {
	names := func(list ...string) (out []layer.Record) {
		for _, n := range list {
			out = append(out, layer.Record{Type: layer.Name, Name: n})
		}
		return append(out, layer.Record{Type: layer.End})
	}
	before, err := readTree(bytes.NewReader(told(t, names("a", "a/b", "a/b/c", "d", "d/e", "f", "g", "g/h")...)), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	// a/b is gone with all below it, f is gone, and g has become a file.
	now := append([]layer.Record{{Type: layer.Mark, MTime: 5}, {Type: layer.File, Name: "g", Size: 3}, {Type: layer.Dir, Name: "d", Mode: 0o755}}, names("a", "d/e")...)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	after, err := readTree(bytes.NewReader(told(t, now...)), nil, w)
	if err != nil || after.mark != 5 {
		t.Fatal(err, after.mark)
	}
	if got := gone(before, after); !slices.Equal(got, []string{"a/b", "f"}) {
		t.Errorf("gone: %q", got)
	}
	for what, bad := range map[string][]layer.Record{
		"absolute": {{Type: layer.File, Name: "/etc/x"}}, "above": {{Type: layer.File, Name: "../x"}}, "not clean": {{Type: layer.Dir, Name: "a//b"}},
		"no name": {{Type: layer.File}}, "a whiteout": {{Type: layer.File, Name: "a/.wh.b"}}, "an opaque one": {{Type: layer.File, Name: ".wh..wh..opq"}},
	} {
		if _, err := readTree(bytes.NewReader(told(t, append(bad, layer.Record{Type: layer.End})...)), nil, w); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := readTree(bytes.NewReader(told(t, layer.Record{Type: layer.Name, Name: "a"})), nil, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("without its end: %v", err)
	}
}

// What was moved with its directory has not changed, and is not told: a layer without it
// would be wrong.
func TestTreeMoved(t *testing.T) {
	before, err := readTree(bytes.NewReader(told(t, layer.Record{Type: layer.Name, Name: "a"}, layer.Record{Type: layer.Name, Name: "a/b"}, layer.Record{Type: layer.End})), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := told(t, layer.Record{Type: layer.Dir, Name: "c", Mode: 0o755}, layer.Record{Type: layer.Name, Name: "c/b"}, layer.Record{Type: layer.End})
	if _, err := readTree(bytes.NewReader(now), &before, tar.NewWriter(io.Discard)); !errors.Is(err, isolation.ErrUnsupported) || !strings.Contains(err.Error(), "c/b") {
		t.Error(err)
	}
}

// manyNames is a sandbox without end, of long names.
type manyNames struct {
	n    int
	rest []byte
}

func (m *manyNames) Read(b []byte) (int, error) {
	if len(m.rest) == 0 {
		var out bytes.Buffer
		m.n++
		if err := layer.Write(&out, layer.Record{Type: layer.Name, Name: fmt.Sprintf("%04000d", m.n)}); err != nil {
			return 0, err
		}
		m.rest = out.Bytes()
	}
	n := copy(b, m.rest)
	m.rest = m.rest[n:]
	return n, nil
}

func TestTreeIsBounded(t *testing.T) {
	if _, err := readTree(&manyNames{}, nil, nil); !errors.Is(err, isolation.ErrResourceExhausted) {
		t.Error(err)
	}
}

func TestStream(t *testing.T) {
	var got []string
	l := &lines{in: &Input{Log: func(e Entry) { got = append(got, e.Message) }}, step: "1"}
	s := &stream{l: l, level: "info"}
	for _, b := range []string{"a", "b\r\n\nc\n", strings.Repeat("d", maxLine+100), "e\nlast"} {
		if n, err := s.Write([]byte(b)); n != len(b) || err != nil {
			t.Fatal(n, err)
		}
	}
	s.end()
	if want := []string{"ab", "c", strings.Repeat("d", maxLine), "e", "last"}; !slices.Equal(got, want) {
		t.Errorf("%.60q", got)
	}
	got = nil
	if _, err := s.Write([]byte(strings.Repeat("x\n", 2*maxLines))); err != nil || len(got) != maxLines-5+1 {
		t.Errorf("%d lines, %v", len(got), err)
	}
}

// What is fetched with a tenant's credentials is not there for who has none.
func TestFetchedIsPrivate(t *testing.T) {
	img, err := random.Image(512, 1)
	if err != nil {
		t.Fatal(err)
	}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "right" && strings.Contains(r.URL.Path, "/secret/") {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	ref := host + "/secret/x:1"
	right, err := image.BasicAuth(ref, "me", "right")
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{ref, host + "/open/x:1"} {
		r, err := name.ParseReference(to)
		if err == nil {
			img, err = random.Image(512, 1)
		}
		if err == nil {
			err = remote.Write(r, img, remote.WithAuthFromKeychain(right))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := image.Open(image.Config{Dir: filepath.Join(t.TempDir(), "images")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := New(BuilderConfig{Images: s, Registries: []string{host}})
	from := func(tenant, ref string, k image.Keychain) error {
		_, err := b.Build(t.Context(), Input{Plan: Plan{FromImage: ref, Plain: true}, Tenant: tenant, Name: imageName + tenant + ":b", Keychain: k, Log: func(Entry) {}})
		return err
	}
	if err := from("one", ref, right); err != nil {
		t.Fatal(err)
	}
	wrong, err := image.BasicAuth(ref, "me", "wrong")
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"without credentials": from("two", ref, nil), "with wrong ones": from("two", ref, wrong), "of the same tenant, without": from("one", ref, nil)} {
		if !errors.Is(err, isolation.ErrUnauthenticated) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := from("two", host+"/open/x:1", nil); err != nil {
		t.Error(err)
	}
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	open := 0
	for _, i := range list {
		if !Private(i) {
			open++
			if !slices.Equal(i.Names, []string{host + "/open/x:1"}) {
				t.Errorf("it is there for all: %q", i.Names)
			}
		}
	}
	if open != 1 {
		t.Errorf("%d images are there for all", open)
	}
}

func FuzzTree(f *testing.F) {
	f.Add(told(f, layer.Record{Type: layer.Mark}, layer.Record{Type: layer.File, Name: "a", Size: 3}, layer.Record{Type: layer.End}))
	f.Fuzz(func(_ *testing.T, in []byte) { _, _ = readTree(bytes.NewReader(in), nil, tar.NewWriter(io.Discard)) })
}

func FuzzArchive(f *testing.F) {
	f.Add(archive(f, tar.Header{Name: "a"}, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}))
	f.Fuzz(func(_ *testing.T, in []byte) {
		_ = CheckArchive(bytes.NewReader(in), 1<<20)
		_ = Step{Type: Copy, Args: []string{"a", "b", "", "0644"}}.records(io.Discard, bytes.NewReader(in), 1<<20)
	})
}

func FuzzDockerfile(f *testing.F) {
	f.Add("FROM a\nENV A=\"${B}\" C='$D'\nRUN [\"x\"]\nCOPY --chown=u a b/\n")
	f.Fuzz(func(t *testing.T, in string) {
		d, err := ParseDockerfile(strings.NewReader(in))
		if err == nil && d.FromImage == "" {
			t.Error("from nothing")
		}
	})
}

func TestPlanValidate(t *testing.T) {
	hash := strings.Repeat("a", 64)
	good := Plan{FromImage: "x", Steps: []Step{{Type: Run, Args: []string{"true"}}, {Type: Copy, Args: []string{"a", "b", "", "0755"}, FilesHash: hash}, {Type: Env, Args: []string{"A", "1"}}, {Type: Workdir, Args: []string{"x"}}, {Type: User, Args: []string{"root"}}}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for what, p := range map[string]Plan{
		"from nothing":       {},
		"from both":          {FromImage: "a", FromTemplate: "b"},
		"ready alone":        {FromImage: "a", Ready: "x"},
		"another step":       {FromImage: "a", Steps: []Step{{Type: "ADD", Args: []string{"a"}}}},
		"run nothing":        {FromImage: "a", Steps: []Step{{Type: Run}}},
		"a copy of nothing":  {FromImage: "a", Steps: []Step{{Type: Copy, Args: []string{"a", "b"}}}},
		"a copy from above":  {FromImage: "a", Steps: []Step{{Type: Copy, Args: []string{"../a", "b"}, FilesHash: hash}}},
		"a hash that is one": {FromImage: "a", Steps: []Step{{Type: Copy, Args: []string{"a", "b"}, FilesHash: "../../x"}}},
		"a mode":             {FromImage: "a", Steps: []Step{{Type: Copy, Args: []string{"a", "b", "", "9"}, FilesHash: hash}}},
		"half of a variable": {FromImage: "a", Steps: []Step{{Type: Env, Args: []string{"A"}}}},
		"a bad name":         {FromImage: "a", Steps: []Step{{Type: Env, Args: []string{"A=B", "1"}}}},
		"a zero byte":        {FromImage: "a", Steps: []Step{{Type: Run, Args: []string{"a\x00b"}}}},
		"many steps":         {FromImage: "a", Steps: make([]Step, maxSteps+1)},
	} {
		if err := p.Validate(); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDockerfile(t *testing.T) {
	d, err := ParseDockerfile(strings.NewReader(`# syntax of no concern
FROM base:1
ENV A=1 B="two words" \
    # in between
    C='$A'
ENV OLD the old form
WORKDIR /srv/${A}
COPY --chown=user:user --chmod=755 a b $A/
COPY ["with space", "x"]
RUN echo "$A" && \
    echo "<<EOF"
RUN ["/bin/x", "it's"]
USER user
ENTRYPOINT ["a", "b"]
CMD run it
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range d.Steps {
		got = append(got, fmt.Sprintf("%s%q", s.Type, s.Args))
	}
	want := []string{
		`ENV["A" "1" "B" "two words" "C" "$A"]`, `ENV["OLD" "the old form"]`, `WORKDIR["/srv/1"]`,
		`COPY["a" "1/" "user:user" "755"]`, `COPY["b" "1/" "user:user" "755"]`, `COPY["with space" "x" "root" ""]`,
		`RUN["echo \"$A\" && echo \"<<EOF\""]`, `RUN["exec '/bin/x' 'it'\\''s'"]`, `USER["user"]`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if d.FromImage != "base:1" || !slices.Equal(d.Entrypoint, []string{"a", "b"}) || !slices.Equal(d.Cmd, []string{"/bin/sh", "-c", "run it"}) || d.Sources[4] != "b" {
		t.Errorf("%+v", d)
	}
	for text, want := range map[string]string{
		"FROM a\nADD x y":               "line 2: ADD is not done here",
		"FROM a\n\n# x\nHEALTHCHECK x":  "line 4: HEALTHCHECK is not done here",
		"FROM a AS b":                   "line 1: FROM ... AS is not done here",
		"FROM a\nFROM b":                "line 2: a further FROM",
		"ARG A=1\nFROM $A":              "line 1: ARG is not done here",
		"FROM a\nCOPY --from=x a b":     "line 2: COPY --from is not done here",
		"FROM a\nRUN --mount=x y":       "line 2: RUN --mount is not done here",
		"FROM a\nRUN <<EOF\nx\nEOF":     "line 2: a here-document is not done here",
		"# escape=`\nFROM a":            "line 1: the directive escape is not done here",
		"RUN x":                         "line 1: RUN before FROM",
		"FROM a\nENV A=${B:-x}":         "line 2: ENV: ${B:-x}",
		"FROM a\nENV \"A":               "line 2: ENV: a quote is not closed",
		"FROM a\nCOPY a":                "line 2: COPY wants",
		"FROM a\nCOPY a b c":            "line 2: the destination of several",
		"FROM a\nRUN x \\":              "line 2: the file ends",
		"FROM a\nRUN":                   "line 2: RUN of nothing",
		"# nothing":                     "the file has no FROM",
		"FROM a\nCOPY --chmod=rwx a b/": "line 2: --chmod=rwx",
	} {
		if _, err := ParseDockerfile(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	long := "FROM a\n" + strings.Repeat("RUN x\n", maxDockerfile/6)
	if _, err := ParseDockerfile(strings.NewReader(long)); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("a file of %d bytes: %v", len(long), err)
	}
}

func TestPackContext(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write(secret, "secret")
	write(dir+"/app/main.py", "main")
	write(dir+"/app/skip.pyc", "x")
	write(dir+"/b.txt", "b")
	write(dir+"/.dockerignore", "**/*.pyc\n")
	if err := errors.Join(os.Symlink(secret, dir+"/app/link"), os.Symlink(filepath.Dir(secret), dir+"/out")); err != nil {
		t.Fatal(err)
	}
	hashes := func() []string {
		d, err := ParseDockerfile(strings.NewReader("FROM a\nCOPY app /x/\nCOPY *.txt /y/\n"))
		if err != nil {
			t.Fatal(err)
		}
		files, err := d.Pack(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer files.Close()
		f, err := files.Open(d.Steps[0].FilesHash)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var names []string
		err = readArchive(f, 1<<20, func(e entry) error { names = append(names, e.name+e.Linkname); return nil })
		if err != nil || !slices.Equal(names, []string{"app", "app/link" + secret, "app/main.py"}) {
			t.Errorf("%q, %v", names, err)
		}
		return []string{d.Steps[0].FilesHash, d.Steps[1].FilesHash}
	}
	first := hashes()
	if second := hashes(); !slices.Equal(first, second) {
		t.Error("the same files have another hash")
	}
	write(dir+"/b.txt", "c")
	if second := hashes(); second[0] != first[0] || second[1] == first[1] {
		t.Error("other files have the same hash, or the same another")
	}
	write(dir+"/.dockerignore", strings.Repeat("x\n", maxDockerfile/2+1))
	if _, err := (&Dockerfile{Plan: Plan{Steps: []Step{{Type: Copy}}}, Sources: map[int]string{0: "b.txt"}}).Pack(dir); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("with a long .dockerignore: %v", err)
	}
	if err := os.Remove(dir + "/.dockerignore"); err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{"../x", "out/secret", "nothing", "no*thing"} {
		d := &Dockerfile{Plan: Plan{Steps: []Step{{Type: Copy}}}, Sources: map[int]string{0: src}}
		if _, err := d.Pack(dir); err == nil {
			t.Errorf("COPY %s is packed", src)
		}
	}
}
