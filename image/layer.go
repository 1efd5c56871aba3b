package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// The files of an unpacked layer.
const (
	layerRoot = "fs"
	layerFile = "layer.json"
)

// layerInfo is what is known of an unpacked layer.
type layerInfo struct {
	DiffID  DiffID `json:"diff_id,omitempty"`
	Bytes   int64  `json:"bytes"` // of its files
	Entries int64  `json:"entries"`
	// OwnersMapped: every file belongs to the user that unpacked it.
	OwnersMapped bool `json:"owners_mapped,omitempty"`
	// OpaqueRoot: the layer hides all that is below it.
	OpaqueRoot bool `json:"opaque_root,omitempty"`
	// Implied are directories without an entry of their own, in the order in
	// which they were made.
	Implied []string `json:"implied,omitempty"`
	Skipped skipped  `json:"skipped"`
}

// skipped counts what was left out.
type skipped struct {
	Devices int64 `json:"devices,omitempty"`
	Xattrs  int64 `json:"xattrs,omitempty"`
	AUFS    int64 `json:"aufs,omitempty"` // .wh..wh. files other than .wh..wh..opq
}

func (s *Store) layerPath(id DiffID) string {
	return s.path(dirLayers, strings.TrimPrefix(string(id), "sha256:"))
}

func readLayerInfo(dir string) (layerInfo, error) {
	var info layerInfo
	b, err := os.ReadFile(filepath.Join(dir, layerFile))
	if err != nil {
		return info, err
	}
	return info, json.Unmarshal(b, &info)
}

// layer returns what is known of a layer, and unpacks its blob first if it is
// not there. Another process that unpacks it is waited for. At most budget bytes
// of files are accepted.
func (s *Store) layer(ctx context.Context, blob string, id DiffID, budget int64, ev *events) (layerInfo, error) {
	hexDigits, err := checkDigest(string(id))
	if err != nil {
		return layerInfo{}, err
	}
	done := func(info layerInfo) (layerInfo, error) {
		if info.Bytes > budget {
			return info, tooBig("the image", s.limits.ImageBytes)
		}
		ev.send(Event{Stage: StageUnpacked, Digest: blob})
		return info, nil
	}
	if info, err := readLayerInfo(s.layerPath(id)); err == nil {
		return done(info)
	}
	l, err := waitLock(ctx, s.path(dirLocks, "layer-"+hexDigits))
	if err != nil {
		return layerInfo{}, fmt.Errorf("wait for another process to unpack layer %s: %w", id, err)
	}
	defer l.remove()
	if info, err := readLayerInfo(s.layerPath(id)); err == nil {
		return done(info)
	}
	known := func(got DiffID) error {
		if got != id {
			return fmt.Errorf("the config says %s, unpacked it is %s: %w", id, got, ErrDigest)
		}
		return nil
	}
	info, err := s.unpackBlob(ctx, blob, known, budget, ev)
	if err != nil {
		return info, fmt.Errorf("unpack layer %s: %w", blob, err)
	}
	return done(info)
}

// unpackBlob unpacks a blob to a temporary directory and, if check takes its
// diff id, gives the directory its name.
func (s *Store) unpackBlob(ctx context.Context, blob string, check func(DiffID) error, budget int64, ev *events) (layerInfo, error) {
	f, err := os.Open(s.blobPath(blob))
	if err != nil {
		return layerInfo{}, damaged("blob "+blob, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return layerInfo{}, err
	}
	temp, err := s.mkTemp("layer-")
	if err != nil {
		return layerInfo{}, err
	}
	defer func() { _ = removeTree(temp) }() // gone from here if it was renamed
	limits := s.limits
	limits.LayerBytes = min(limits.LayerBytes, budget)
	counted := &countReader{r: f, ev: ev, e: Event{Stage: StageUnpack, Digest: blob, Total: st.Size()}}
	info, err := unpackStream(ctx, counted, filepath.Join(temp, layerRoot), limits)
	if err != nil {
		if limits.LayerBytes < s.limits.LayerBytes && errors.Is(err, isolation.ErrResourceExhausted) {
			err = fmt.Errorf("%w (%d bytes are left of the image's %d)", err, budget, s.limits.ImageBytes)
		}
		return info, err
	}
	if err := check(info.DiffID); err != nil {
		return info, err
	}
	b, err := json.Marshal(info)
	if err != nil {
		return info, err
	}
	if err := os.WriteFile(filepath.Join(temp, layerFile), b, 0o600); err != nil {
		return info, err
	}
	if err := syncTree(temp); err != nil {
		return info, err
	}
	failpoint.Hit(failpoint.ImageLayer)
	path := s.layerPath(info.DiffID)
	if err := os.Rename(temp, path); err != nil {
		// An import that did not know the diff id before may meet another's.
		if _, rerr := readLayerInfo(path); rerr == nil {
			return info, nil
		}
		return info, err
	}
	failpoint.Hit(failpoint.ImagePlaced)
	return info, syncDir(s.path(dirLayers))
}

// unpackStream unpacks a tar, compressed or not, to a new directory, and reads
// it to its end: the diff id is of all of it.
func unpackStream(ctx context.Context, r io.Reader, dir string, limits Limits) (layerInfo, error) {
	z, _, err := decompress(&ctxReader{ctx, r})
	if err != nil {
		return layerInfo{}, badTar(err)
	}
	defer z.Close()
	h := sha256.New()
	tarStream := io.TeeReader(&boundReader{r: z, left: limits.tarBytes()}, h)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return layerInfo{}, err
	}
	info, err := unpack(tarStream, dir, limits)
	if err != nil {
		return info, err
	}
	if _, err := io.Copy(io.Discard, tarStream); err != nil {
		return info, badTar(err)
	}
	info.DiffID = DiffID(digestOf(h))
	return info, nil
}

// tarBytes bounds the tar: what its files may have, and 2 KiB for each entry's
// headers and padding.
func (l Limits) tarBytes() int64 {
	const overhead = 2 << 10
	if l.LayerEntries > (1<<62)/overhead {
		return 1 << 62
	}
	return min(l.LayerBytes, 1<<62) + l.LayerEntries*overhead
}

func tooBig(what string, limit int64) error {
	return fmt.Errorf("%s has more than the %d bytes that are allowed: %w", what, limit, isolation.ErrResourceExhausted)
}

// boundReader fails past its bound, where io.LimitReader would seem to end.
type boundReader struct {
	r    io.Reader
	left int64
}

func (b *boundReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("the uncompressed layer is larger than allowed: %w", isolation.ErrResourceExhausted)
	}
	return n, err
}

// countReader reports what was read.
type countReader struct {
	r  io.Reader
	ev *events
	e  Event
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.e.Done += int64(n)
	c.ev.progress(c.e)
	return n, err
}

// badTar says that a layer is bad when its reader fails, unless it was stopped
// for another reason.
func badTar(err error) error {
	var path *os.PathError
	if isolation.Class(err) != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &path) {
		return fmt.Errorf("read the layer: %w", err)
	}
	return fmt.Errorf("the layer is damaged or ends early: %w: %w", isolation.ErrInvalidArgument, err)
}
