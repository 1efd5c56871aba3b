package wasm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/cpu"

	"github.com/axocoatl/isolation/internal/failpoint"
)

// settings are what changes the artefact of a module.
type settings struct {
	fuel bool
}

// key names an artefact: module, settings, engine and machine.
type key [sha256.Size]byte

func (d *description) key(digest [sha256.Size]byte, s settings) key {
	h := sha256.New()
	fmt.Fprintf(h, "%d %s %s/%s %+v %+v fuel=%t ", d.format, d.version, runtime.GOOS, runtime.GOARCH, cpu.X86, cpu.ARM64, s.fuel)
	h.Write(digest[:])
	return key(h.Sum(nil))
}

func (k key) String() string { return hex.EncodeToString(k[:]) }

// meta is what the compile worker said of an artefact.
type meta struct {
	HasImage  bool   `json:"has_image"`
	ImageBase uint64 `json:"image_base"`
	MinMemory uint64 `json:"min_memory"`
	MaxMemory uint64 `json:"max_memory"`
	HasStart  bool   `json:"has_start"`
	Fuel      bool   `json:"fuel"`
}

// artefact is a compiled module that was verified. Its files stay open, so
// that what was verified is what workers get.
type artefact struct {
	key   key
	meta  meta
	dir   string
	files []*os.File // in the order of the layout
	bytes int64      // of native code, for the memory budget
}

// cache is a directory of artefacts:
//
//	secret            key of the MACs; never leaves this process
//	<key>/meta.json   with the MAC over everything else
//	<key>/...         what the engine's layout says
//	tmp-*             being made
type cache struct {
	dir    string
	limit  int64
	secret []byte
	layout layout

	mu   sync.Mutex
	open map[key]*artefact // guarded by mu
	used []key             // guarded by mu; least recently used first
}

// maxOpen bounds the artefacts, of up to three descriptors each, that stay
// open.
const maxOpen = 256

func openCache(dir string, limit int64, l layout) (*cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("module cache: %w", err)
	}
	if err := checkPrivate(dir); err != nil {
		return nil, fmt.Errorf("module cache: %w", err)
	}
	secret, err := loadSecret(filepath.Join(dir, "secret"))
	if err != nil {
		return nil, fmt.Errorf("module cache: %w", err)
	}
	return &cache{dir: dir, limit: limit, secret: secret, layout: l, open: map[key]*artefact{}}, nil
}

// loadSecret reads the secret or makes one. Two processes that make it at once
// agree on the one whose link came first.
func loadSecret(name string) ([]byte, error) {
	const size = 32
	for range 2 {
		b, err := os.ReadFile(name)
		if err == nil && len(b) == size {
			return b, nil
		}
		if err == nil {
			return nil, fmt.Errorf("%s has %d bytes, want %d: remove it and the compiled modules beside it", name, len(b), size)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		b = make([]byte, size)
		rand.Read(b)
		tmp, err := os.CreateTemp(filepath.Dir(name), "tmp-secret-")
		if err != nil {
			return nil, err
		}
		_, err = tmp.Write(b)
		if cerr := tmp.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = os.Link(tmp.Name(), name)
		}
		os.Remove(tmp.Name())
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s cannot be read back", name)
}

// get returns the artefact, or nil when it is not there or not as it was made.
func (c *cache) get(k key) *artefact {
	c.mu.Lock()
	a := c.open[k]
	if a != nil {
		c.touchLocked(k)
	}
	c.mu.Unlock()
	if a != nil {
		return a
	}
	a, err := c.load(k)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			// Damaged, or made under another secret: of no use to anybody.
			os.RemoveAll(filepath.Join(c.dir, k.String()))
		}
		return nil
	}
	now := time.Now()
	_ = os.Chtimes(a.dir, now, now) // best effort: it only orders eviction
	c.mu.Lock()
	defer c.mu.Unlock()
	if have := c.open[k]; have != nil {
		a.close()
		return have
	}
	c.open[k] = a
	c.touchLocked(k)
	return a
}

// touchLocked marks k as the most recently used, and forgets the least
// recently used past maxOpen. Sandboxes may still hold a forgotten one: its
// files close when the last lets go of it.
func (c *cache) touchLocked(k key) {
	if i := slices.Index(c.used, k); i >= 0 {
		c.used = slices.Delete(c.used, i, i+1)
	}
	c.used = append(c.used, k)
	for len(c.used) > maxOpen {
		delete(c.open, c.used[0])
		c.used = c.used[1:]
	}
}

func (a *artefact) close() {
	for _, f := range a.files {
		f.Close()
	}
	a.files = nil
}

// metaFile is meta with its MAC.
type metaFile struct {
	Meta  meta   `json:"meta"`
	Nonce string `json:"nonce"` // new for each artefact
	MAC   string `json:"mac"`
}

const maxMetaBytes = 4096

// load opens and verifies an artefact.
func (c *cache) load(k key) (_ *artefact, err error) {
	a := &artefact{key: k, dir: filepath.Join(c.dir, k.String())}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	f, err := os.Open(filepath.Join(a.dir, "meta.json"))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxMetaBytes))
	f.Close()
	if err != nil {
		return nil, err
	}
	var m metaFile
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	a.meta = m.Meta
	nonce, err := hex.DecodeString(m.Nonce)
	if err != nil || len(nonce) != nonceSize {
		return nil, errors.New("artefact without a nonce")
	}
	sum, err := c.mac(a, nonce)
	if err != nil {
		return nil, err
	}
	if want, err := hex.DecodeString(m.MAC); err != nil || !hmac.Equal(sum, want) {
		return nil, errors.New("artefact does not match its MAC")
	}
	return a, nil
}

// sealer computes the MAC of an artefact: HMAC-SHA256 over all that is short, and
// over the tags of the pieces of its files. Those are GMAC's (AES-GCM without a
// plaintext, NIST SP 800-38D), each under a nonce of its own: four times as fast
// as SHA-256, and the first run in a process waits for it.
type sealer struct {
	hash.Hash
	gcm   cipher.AEAD
	nonce []byte // of the artefact, and at its end the number of the piece
	piece []byte
	tag   []byte
}

const (
	nonceSize = 8
	pieceSize = 256 << 10
)

func newSealer(secret, nonce []byte) (*sealer, error) {
	key, err := hkdf.Expand(sha256.New, secret, "pieces of artefacts", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	s := &sealer{Hash: hmac.New(sha256.New, secret), gcm: gcm, piece: make([]byte, pieceSize)}
	s.nonce = append(append(s.nonce, nonce...), make([]byte, gcm.NonceSize()-nonceSize)...)
	s.Write(nonce)
	return s, nil
}

// pieces takes n bytes of a file.
func (s *sealer) pieces(f *os.File, n int64) error {
	for at := int64(0); at < n; {
		b := s.piece[:min(n-at, pieceSize)]
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		at += int64(len(b))
		number := s.nonce[nonceSize:]
		binary.BigEndian.PutUint32(number, binary.BigEndian.Uint32(number)+1)
		s.tag = s.gcm.Seal(s.tag[:0], s.nonce, nil, b)
		s.Write(s.tag)
	}
	return nil
}

// mac opens the files of a and computes the MAC over key, meta and files. It
// insists on the exact layout: a worker wrote it.
func (c *cache) mac(a *artefact, nonce []byte) ([]byte, error) {
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	h, err := newSealer(c.secret, nonce)
	if err != nil {
		return nil, err
	}
	metaJSON, err := json.Marshal(a.meta)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(h, "%s %s ", a.key, metaJSON)
	module, err := hashFile(h, root, c.layout.module)
	if err != nil {
		return nil, err
	}
	a.files = append(a.files, module)
	if c.layout.native == "" {
		a.bytes, err = size(module)
	} else {
		err = a.hashNative(h, root, c.layout.native)
	}
	if err != nil {
		return nil, err
	}
	if a.meta.HasImage {
		image, err := hashFile(h, root, c.layout.image)
		if err != nil {
			return nil, err
		}
		a.files = append(a.files, image)
	}
	return h.Sum(nil), nil
}

// hashNative hashes the one file of native code two directories down, and
// opens the directory.
func (a *artefact) hashNative(h *sealer, root *os.Root, native string) error {
	path := native
	for range 2 {
		entry, err := onlyEntry(root, path)
		if err != nil {
			return err
		}
		path = filepath.Join(path, entry)
	}
	code, err := hashFile(h, root, path)
	if err != nil {
		return err
	}
	defer code.Close()
	if a.bytes, err = size(code); err != nil {
		return err
	}
	dir, err := root.Open(native)
	if err != nil {
		return err
	}
	a.files = append(a.files, dir)
	return nil
}

func size(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// maxArtefactFile bounds what a compile worker may make the host read.
const maxArtefactFile = 1 << 30

func hashFile(h *sealer, root *os.Root, name string) (*os.File, error) {
	before, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() || before.Size() > maxArtefactFile {
		return nil, fmt.Errorf("artefact file %s: %v of %d bytes", name, before.Mode(), before.Size())
	}
	f, err := root.OpenFile(name, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !os.SameFile(before, info) {
		err = fmt.Errorf("artefact file %s changed while it was opened", name)
	}
	if err == nil {
		fmt.Fprintf(h, "%q %d ", name, info.Size())
		err = h.pieces(f, info.Size())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func onlyEntry(root *os.Root, dir string) (string, error) {
	f, err := root.Open(dir)
	if err != nil {
		return "", err
	}
	defer f.Close()
	names, err := f.Readdirnames(2)
	if err != nil && err != io.EOF {
		return "", err
	}
	if len(names) != 1 {
		return "", fmt.Errorf("artefact directory %s has %d entries, want 1", dir, len(names))
	}
	return names[0], nil
}

// put adopts a directory that a compile worker filled: it is sealed with the
// MAC and renamed into place. The directory is gone afterwards in any case.
func (c *cache) put(k key, tmp string, m meta) (*artefact, error) {
	defer os.RemoveAll(tmp)
	a := &artefact{key: k, dir: tmp, meta: m}
	defer a.close()
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	sum, err := c.mac(a, nonce)
	if err != nil {
		return nil, fmt.Errorf("compiled module: %w", err)
	}
	b, err := json.Marshal(metaFile{m, hex.EncodeToString(nonce), hex.EncodeToString(sum)})
	if err != nil {
		return nil, err
	}
	if err := writeNew(tmp, "meta.json", b); err != nil {
		return nil, fmt.Errorf("compiled module: %w", err)
	}
	failpoint.Hit(failpoint.Sealed)
	c.evict(a.bytes)
	dst := filepath.Join(c.dir, k.String())
	if err := os.Rename(tmp, dst); err != nil {
		// Another process was first, or a damaged one lies there: get tells.
		if _, serr := os.Lstat(dst); serr != nil {
			return nil, fmt.Errorf("module cache: %w", err)
		}
	}
	if a := c.get(k); a != nil {
		return a, nil
	}
	return nil, fmt.Errorf("module cache: artefact %s cannot be read back", k)
}

// writeNew writes a file that was not there into a directory that a worker filled:
// it may have laid a link where the file goes.
func writeNew(dir, name string, b []byte) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// temp names a private directory for a compile worker.
func (c *cache) temp() string { return filepath.Join(c.dir, "tmp-"+rand.Text()) }

// staleAfter is the age at which an unfinished artefact is surely abandoned.
const staleAfter = time.Hour

// evict makes room for n bytes: the least recently used artefacts go, and what
// crashed compilations left.
func (c *cache) evict(n int64) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	type item struct {
		path string
		time time.Time
		size int64
	}
	var items []item
	total := n
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() {
			continue
		}
		path := filepath.Join(c.dir, e.Name())
		if len(e.Name()) != 2*sha256.Size {
			if time.Since(info.ModTime()) > staleAfter {
				os.RemoveAll(path)
			}
			continue
		}
		it := item{path, info.ModTime(), 0}
		_ = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if info, err := d.Info(); err == nil {
					it.size += info.Size()
				}
			}
			return nil
		})
		total += it.size
		items = append(items, it)
	}
	slices.SortFunc(items, func(a, b item) int { return a.time.Compare(b.time) })
	for _, it := range items {
		if total <= c.limit {
			return
		}
		os.RemoveAll(it.path)
		total -= it.size
	}
}

func (c *cache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.open {
		a.close()
	}
	c.open, c.used = map[key]*artefact{}, nil
}
