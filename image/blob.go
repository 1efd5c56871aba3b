package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// ErrDigest is in the error when content is not what its digest says: a registry
// that lies, or a damaged file. It is of class [isolation.ErrInvalidArgument].
var ErrDigest = fmt.Errorf("content does not match its digest: %w", isolation.ErrInvalidArgument)

// checkDigest accepts "sha256:" and 64 lower-case hexadecimal digits, which
// makes it safe as a file name.
func checkDigest(d string) (hexDigits string, err error) {
	h, ok := strings.CutPrefix(d, "sha256:")
	if !ok || len(h) != 2*sha256.Size || strings.Trim(h, "0123456789abcdef") != "" {
		return "", fmt.Errorf("digest %q is not sha256 in hexadecimal: %w", d, isolation.ErrInvalidArgument)
	}
	return h, nil
}

func digestOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

func digestBytes(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// blobPath is for digests that were checked.
func (s *Store) blobPath(digest string) string {
	return s.path(dirBlobs, strings.TrimPrefix(digest, "sha256:"))
}

// hasBlob reports whether a blob is there, whole. Its content was verified
// before it got its name.
func (s *Store) hasBlob(digest string, size int64) bool {
	st, err := os.Lstat(s.blobPath(digest))
	return err == nil && st.Mode().IsRegular() && (size < 0 || st.Size() == size)
}

// readBlob reads a document of at most ManifestBytes and verifies it.
func (s *Store) readBlob(digest string) ([]byte, error) {
	if _, err := checkDigest(digest); err != nil {
		return nil, err
	}
	f, err := os.Open(s.blobPath(digest))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readLimited(f, s.limits.ManifestBytes)
	if err != nil {
		return nil, err
	}
	if digestBytes(b) != digest {
		return nil, fmt.Errorf("%s: %w", f.Name(), ErrDigest)
	}
	return b, nil
}

// readLimited reads all, if that is not more than the limit.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("a document of more than %d bytes: %w", limit, isolation.ErrResourceExhausted)
	}
	return b, nil
}

// putBytes stores a document.
func (s *Store) putBytes(b []byte) (digest string, err error) {
	digest = digestBytes(b)
	if s.hasBlob(digest, int64(len(b))) {
		return digest, nil
	}
	return digest, s.writeFile(s.blobPath(digest), b)
}

// putStream stores content whose digest is not known before, and leases it
// before it can be seen.
func (s *Store) putStream(ctx context.Context, l *lease, r io.Reader) (v1.Descriptor, error) {
	var d v1.Descriptor
	f, err := s.createTemp("blob-")
	if err != nil {
		return d, err
	}
	defer os.Remove(f.Name())
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(&ctxReader{ctx, r}, s.limits.BlobBytes+1))
	if err == nil && n > s.limits.BlobBytes {
		err = fmt.Errorf("a blob of more than %d bytes: %w", s.limits.BlobBytes, isolation.ErrResourceExhausted)
	}
	if err != nil {
		f.Close()
		return d, err
	}
	d.Size = n
	if d.Digest, err = v1.NewHash(digestOf(h)); err == nil {
		err = l.add(ctx, content{Blobs: []string{d.Digest.String()}})
	}
	if err != nil {
		f.Close()
		return d, err
	}
	return d, finish(f, s.blobPath(d.Digest.String()))
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// source opens a blob's content from an offset on. It may start earlier than
// asked, at 0, and says where.
type source func(ctx context.Context, offset int64) (r io.ReadCloser, start int64, err error)

// retries bounds the attempts in a row that bring nothing.
const retries = 5

// ingest stores the blob of a digest and a size. What an earlier attempt, of
// this process or another, got of it is used; another process that fetches the
// same blob is waited for.
func (s *Store) ingest(ctx context.Context, digest string, size int64, open source, ev *events) error {
	hexDigits, err := checkDigest(digest)
	if err != nil {
		return err
	}
	if size < 0 || size > s.limits.BlobBytes {
		return fmt.Errorf("blob %s has %d bytes, allowed are %d: %w", digest, size, s.limits.BlobBytes, isolation.ErrResourceExhausted)
	}
	if s.hasBlob(digest, size) {
		ev.send(Event{Stage: StageExists, Digest: digest, Done: size, Total: size})
		return nil
	}
	l, err := waitLock(ctx, s.path(dirLocks, "blob-"+hexDigits))
	if err != nil {
		return fmt.Errorf("wait for another download of blob %s: %w", digest, err)
	}
	defer l.remove()
	if s.hasBlob(digest, size) {
		ev.send(Event{Stage: StageExists, Digest: digest, Done: size, Total: size})
		return nil
	}
	p, err := s.openPartial(hexDigits, size)
	if err != nil {
		return err
	}
	defer p.f.Close()
	resumed := p.n > 0
	for failures := 0; ; {
		before := p.n
		err := p.fetch(ctx, digest, open, ev)
		if err == nil {
			if got := digestOf(p.h); got == digest {
				break
			} else if !resumed {
				os.Remove(p.f.Name())
				return fmt.Errorf("blob %s: what came has %s: %w", digest, got, ErrDigest)
			}
			// The beginning may be what a crash of the host left. Once more, from
			// the start.
			resumed = false
			if err := p.reset(); err != nil {
				return err
			}
			continue
		}
		if ctx.Err() != nil {
			return fmt.Errorf("blob %s: %w", digest, context.Cause(ctx))
		}
		if p.n > before {
			failures = 0
		}
		if failures++; failures >= retries || !transient(err) {
			return fmt.Errorf("blob %s, after %d of %d bytes: %w", digest, p.n, size, err)
		}
		ev.send(Event{Stage: StageRetry, Digest: digest, Done: p.n, Total: size, Message: err.Error()})
		select {
		case <-time.After(s.backoff << (failures - 1)):
		case <-ctx.Done():
		}
	}
	if err := finish(p.f, s.blobPath(digest)); err != nil {
		return fmt.Errorf("blob %s: %w", digest, err)
	}
	failpoint.Hit(failpoint.ImageBlob)
	ev.send(Event{Stage: StageDownloaded, Digest: digest, Done: size, Total: size})
	return nil
}

// partial is an unfinished download. Its hash has the n bytes of its file.
type partial struct {
	f       *os.File
	h       hash.Hash
	n, size int64
}

// openPartial opens what is there of a blob. The caller has the blob's lock.
func (s *Store) openPartial(hexDigits string, size int64) (*partial, error) {
	path := s.path(dirIngest, hexDigits)
	if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: %w", path, isolation.ErrFailedPrecondition)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	p := &partial{f: f, h: sha256.New(), size: size}
	if p.n, err = io.Copy(p.h, f); err == nil && p.n > size {
		err = p.reset()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

func (p *partial) reset() error {
	p.h.Reset()
	p.n = 0
	if _, err := p.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return p.f.Truncate(0)
}

// fetch gets the rest, as far as it comes.
func (p *partial) fetch(ctx context.Context, digest string, open source, ev *events) error {
	if p.n == p.size {
		return nil
	}
	r, start, err := open(ctx, p.n)
	if err != nil {
		return err
	}
	defer r.Close()
	if start != p.n {
		if start != 0 {
			return fmt.Errorf("the answer starts at byte %d, not at %d", start, p.n)
		}
		if err := p.reset(); err != nil {
			return err
		}
	}
	buf := make([]byte, 128<<10)
	for {
		n, err := r.Read(buf)
		if p.n+int64(n) > p.size {
			return fmt.Errorf("more than the %d bytes that the manifest says: %w", p.size, ErrDigest)
		}
		if n > 0 {
			if _, werr := p.f.Write(buf[:n]); werr != nil {
				return werr
			}
			p.h.Write(buf[:n])
			p.n += int64(n)
			failpoint.Hit(failpoint.ImagePart)
			ev.progress(Event{Stage: StageDownload, Digest: digest, Done: p.n, Total: p.size})
		}
		switch {
		case err == io.EOF && p.n < p.size:
			return io.ErrUnexpectedEOF
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
