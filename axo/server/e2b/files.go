package e2b

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
)

// signed answers a request for a file that names no sandbox: a URL that a client made
// and signed. It is the one whose token the signature is made of.
func (s *Server) signed(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("signature") == "" {
		writeError(w, http.StatusUnauthorized, "missing signature query parameter")
		return
	}
	err := errSignature
	for _, sn := range s.config.Sessions.All() {
		if sn.Labels()[labelTemplate] == "" || sn.Info().Status != api.StatusRunning {
			continue
		}
		if err = checkSignature(r, s.token(sn, "envd"), time.Now()); err == nil {
			s.serveEnvd(w, r, sn)
			return
		} else if errors.Is(err, errExpired) {
			break
		}
	}
	writeError(w, http.StatusUnauthorized, err.Error())
}

var (
	errExpired   = errors.New("signature is already expired")
	errSignature = errors.New("invalid signature")
)

// checkSignature checks that who has a token allowed the request: v1_ and base64 of
// SHA-256 of path:operation:user:token[:expiration], the path as it is in the request.
func checkSignature(r *http.Request, token string, now time.Time) error {
	q := r.URL.Query()
	have := q.Get("signature")
	if have == "" {
		return errors.New("missing signature query parameter")
	}
	operation := "read"
	if r.Method == http.MethodPost {
		operation = "write"
	}
	text := strings.Join([]string{q.Get("path"), operation, q.Get("username"), token}, ":")
	ends := q.Get("signature_expiration")
	if ends != "" {
		text += ":" + ends
	}
	h := sha256.Sum256([]byte(text))
	if !same(have, "v1_"+base64.RawStdEncoding.EncodeToString(h[:])) {
		return errSignature
	}
	if ends == "" {
		return nil
	}
	n, err := strconv.ParseInt(ends, 10, 64)
	if err != nil {
		return errSignature
	}
	if now.Unix() > n {
		return errExpired
	}
	return nil
}

// openFiles is open for a request that says the user in its query.
func openFiles(r *http.Request) (*files, error) {
	b := boxOf(r.Context())
	if u := r.URL.Query().Get("username"); u != "" {
		b = boxFor(b.Session, u)
	}
	return open(context.WithValue(r.Context(), boxKey{}, b))
}

func failFile(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, isolation.ErrResourceExhausted):
		writeError(w, http.StatusInsufficientStorage, err.Error())
	case errors.Is(err, io.ErrUnexpectedEOF):
		writeError(w, http.StatusBadRequest, "the content is cut off: "+err.Error())
	default:
		fail(w, err)
	}
}

// span is a part of a file that a Range header asks for; ok: it asks for one. Several
// parts are not given: the whole file is.
func span(header string, size int64) (from, to int64, ok bool, err error) {
	spec, found := strings.CutPrefix(header, "bytes=")
	a, b, dash := strings.Cut(strings.TrimSpace(spec), "-")
	first, last := position(a), position(b)
	switch {
	case !found || !dash || a == "" && b == "" || a != "" && first < 0 || b != "" && last < 0:
		return 0, size, false, nil // what is not well formed is ignored: RFC 9110, 14.2
	case a == "":
		from, to = max(0, size-last), size
	case b == "":
		from, to = first, size
	case last < first:
		return 0, size, false, nil
	default:
		from, to = first, min(size, last)
		if last < size {
			to = last + 1
		}
	}
	if from >= size || from >= to {
		return 0, 0, true, errors.New("the file has no such part")
	}
	return from, to, true, nil
}

// position is a number of bytes; -1: it is none.
func position(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return -1
	}
	return n
}

func (s *Server) download(w http.ResponseWriter, r *http.Request) {
	f, err := openFiles(r)
	if err != nil {
		failFile(w, err)
		return
	}
	at := f.box.abs(r.URL.Query().Get("path"))
	info, err := f.Stat(r.Context(), at)
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory: %w", at, isolation.ErrInvalidArgument)
	}
	var content io.ReadCloser
	if err == nil {
		content, err = f.ReadFile(r.Context(), at)
	}
	if err != nil {
		failFile(w, err)
		return
	}
	defer content.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(at)}))
	h.Set("Last-Modified", info.ModTime().UTC().Format(http.TimeFormat))
	h.Set("Vary", "Accept-Encoding")
	if r.Header.Get("Range") == "" && strings.TrimSpace(r.Header.Get("Accept-Encoding")) == "gzip" {
		// Only who asks for nothing else: on this host it costs more than it saves.
		h.Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		if _, err := io.Copy(z, content); err != nil {
			panic(http.ErrAbortHandler) // else a part would look like the whole
		}
		_ = z.Close()
		return
	}
	h.Set("Accept-Ranges", "bytes")
	from, to, part, err := span(r.Header.Get("Range"), info.Size())
	if err != nil {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", info.Size()))
		writeError(w, http.StatusRequestedRangeNotSatisfiable, err.Error())
		return
	}
	h.Set("Content-Length", strconv.FormatInt(to-from, 10))
	status := http.StatusOK
	if part {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, info.Size()))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if _, err := io.CopyN(io.Discard, content, from); err != nil {
		panic(http.ErrAbortHandler)
	}
	// A file that shrinks while it is read is cut off, not padded.
	if n, err := io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(content, to-from), make([]byte, 256<<10)); err != nil || n != to-from {
		panic(http.ErrAbortHandler)
	}
}

type written struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Path string `json:"path"`
}

func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	list, err := s.take(r)
	if err != nil {
		failFile(w, err)
		return
	}
	writeJSON(w, http.StatusOK, list)
}

// take writes the files of a request.
func (s *Server) take(r *http.Request) ([]written, error) {
	for k := range r.Header {
		if strings.HasPrefix(k, "X-Metadata-") {
			return nil, &isolation.UnsupportedError{Feature: "metadata of files"}
		}
	}
	f, err := openFiles(r)
	if err != nil {
		return nil, err
	}
	body := io.Reader(r.Body)
	switch e := r.Header.Get("Content-Encoding"); e {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, fmt.Errorf("content: %w: %w", err, isolation.ErrInvalidArgument)
		}
		body = z
	default:
		return nil, fmt.Errorf("content encoding %.40q: want gzip, or none: %w", e, isolation.ErrInvalidArgument)
	}
	name := r.URL.Query().Get("path")
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return nil, fmt.Errorf("content type: %w: %w", err, isolation.ErrInvalidArgument)
	}
	list := []written{}
	switch kind {
	case "application/octet-stream":
		if name == "" {
			return nil, fmt.Errorf("no path: %w", isolation.ErrInvalidArgument)
		}
		x, err := f.put(r.Context(), name, body)
		return append(list, x), err
	case "multipart/form-data":
	default:
		return nil, fmt.Errorf("content type %.80q: want application/octet-stream or multipart/form-data: %w", kind, isolation.ErrInvalidArgument)
	}
	r.Body = io.NopCloser(body)
	parts, err := r.MultipartReader()
	if err != nil {
		return nil, fmt.Errorf("content: %w: %w", err, isolation.ErrInvalidArgument)
	}
	for {
		p, err := parts.NextRawPart()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("content: %w: %w", err, isolation.ErrInvalidArgument)
		}
		if p.FormName() != "file" {
			continue
		}
		at := name
		if at == "" {
			// The whole of it is a path here; FileName would leave its last element.
			_, params, err := mime.ParseMediaType(p.Header.Get("Content-Disposition"))
			if at = params["filename"]; err != nil || at == "" {
				return nil, fmt.Errorf("a file without a name, and no path: %w", isolation.ErrInvalidArgument)
			}
		} else if len(list) > 0 {
			return nil, fmt.Errorf("several files for one path: %w", isolation.ErrInvalidArgument)
		}
		x, err := f.put(r.Context(), at, p)
		if err != nil {
			return nil, err
		}
		list = append(list, x)
	}
}

// put makes a file and the directories above it. One that is there keeps its mode.
func (f *files) put(ctx context.Context, name string, content io.Reader) (written, error) {
	at := f.box.abs(name)
	out := written{path.Base(at), "file", at}
	mode := fs.FileMode(0o644)
	i, err := f.Stat(ctx, at)
	switch {
	case err == nil && i.IsDir():
		return out, fmt.Errorf("%s is a directory: %w", at, isolation.ErrInvalidArgument)
	case err == nil:
		mode = i.Mode().Perm()
	case errors.Is(err, isolation.ErrNotFound):
		if err := f.Mkdir(ctx, path.Dir(at), 0o755); err != nil {
			return out, err
		}
	default:
		return out, err
	}
	return out, f.WriteFile(ctx, at, mode, content)
}
