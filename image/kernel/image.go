package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// setup is what this package uses of the header of a bzImage
// (Documentation/arch/x86/boot.rst).
type setup struct {
	release         string
	payload, length int64 // of the compressed kernel, in the file
}

// errNoBzImage: the file has not the header.
var errNoBzImage = errors.New("no bzImage")

func readSetup(r io.ReaderAt, size int64) (setup, error) {
	var h [0x268]byte
	if _, err := r.ReadAt(h[:], 0); err != nil {
		return setup{}, errNoBzImage
	}
	le := binary.LittleEndian
	if le.Uint16(h[0x1fe:]) != 0xaa55 || string(h[0x202:0x206]) != "HdrS" {
		return setup{}, errNoBzImage
	}
	if v := le.Uint16(h[0x206:]); v < 0x208 {
		return setup{}, refuse("boot protocol %d.%02d says not where the kernel is (2.08 is needed, Linux 2.6.26)", v>>8, v&0xff)
	}
	if le.Uint16(h[0x236:])&1 == 0 && le.Uint16(h[0x206:]) >= 0x20c {
		return setup{}, refuse("a kernel for 32-bit machines")
	}
	sects := int64(h[0x1f1])
	if sects == 0 {
		sects = 4
	}
	s := setup{payload: (sects+1)*512 + int64(le.Uint32(h[0x248:])), length: int64(le.Uint32(h[0x24c:]))}
	if s.length == 0 || s.payload+s.length > size {
		return setup{}, refuse("the image ends before its kernel does: %d bytes of %d", size, s.payload+s.length)
	}
	if at := int64(le.Uint16(h[0x20e:])); at != 0 {
		var b [256]byte
		n, err := r.ReadAt(b[:], at+0x200)
		if err != nil && err != io.EOF {
			return setup{}, err
		}
		text, _, _ := bytes.Cut(b[:n], []byte{0})
		s.release, _, _ = strings.Cut(string(text), " ")
	}
	return s, nil
}

// extract writes the uncompressed kernel of an image, which may be a bzImage, a
// compressed or a plain ELF file, and returns its release.
func extract(w *os.File, r io.ReaderAt, size int64, l Limits) (release string, err error) {
	s, err := readSetup(r, size)
	want := int64(-1)
	var src io.Reader = io.NewSectionReader(r, 0, size)
	switch {
	case err == nil:
		release = s.release
		var head [6]byte
		if _, err := r.ReadAt(head[:], s.payload); err != nil {
			return "", refuse("payload: %v", err)
		}
		if !compressed(head[:]) && string(head[:4]) != "\x7fELF" {
			return "", refuse("the kernel is packed in a way that is not known (it begins with % x)", head)
		}
		if compressed(head[:]) && head[0] != 0x1f && s.length > 4 {
			// All but gzip are followed by the length of what they unpack to
			// (scripts/Makefile.lib, size_append).
			s.length -= 4
			var b [4]byte
			if _, err := r.ReadAt(b[:], s.payload+s.length); err != nil {
				return "", err
			}
			want = int64(binary.LittleEndian.Uint32(b[:]))
		}
		src = io.NewSectionReader(r, s.payload, s.length)
	case !errors.Is(err, errNoBzImage):
		return "", err
	}
	z, done, err := decompress(src)
	if err != nil {
		return "", err
	}
	defer done()
	n, err := copyLimited(w, z, l.Kernel, "the kernel")
	if err != nil {
		return "", fmt.Errorf("unpack the kernel: %w", err)
	}
	if want >= 0 && n != want {
		return "", refuse("the kernel unpacks to %d bytes, its image says %d", n, want)
	}
	e, err := readELF(w, n)
	if err != nil {
		return "", fmt.Errorf("the file is no kernel image: %w", err)
	}
	if e.kind != elfExec && e.kind != elfDyn {
		return "", refuse("the file is no kernel image, but an ELF file of type %d", e.kind)
	}
	banner, err := findBanner(w, n)
	switch {
	case err != nil:
		return "", err
	case banner == "":
		return "", refuse("the file is no kernel of Linux: it has no banner")
	case release == "":
		release = banner
	case release != banner:
		return "", refuse("the image's header says Linux %q, the kernel in it %q", release, banner)
	}
	return release, checkRelease(release)
}

// bannerStart begins the kernel's own name for itself (init/version.c).
const bannerStart = "Linux version "

// findBanner returns the release in a kernel's banner, "" if it has none.
func findBanner(r io.ReaderAt, size int64) (string, error) {
	const overlap = 256
	buf := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(buf) - overlap) {
		n, err := r.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return "", err
		}
		for b := buf[:n]; ; {
			i := bytes.Index(b, []byte(bannerStart))
			if i < 0 {
				break
			}
			b = b[i+len(bannerStart):]
			// The format string of init/version.c stands there as well.
			if end := bytes.IndexByte(b[:min(len(b), maxRelease+1)], ' '); end > 0 && checkRelease(string(b[:end])) == nil {
				return string(b[:end]), nil
			}
		}
	}
	return "", nil
}

const maxRelease = 64 // __NEW_UTS_LEN (uname(2))

// checkRelease accepts what may be a directory's name.
func checkRelease(s string) error {
	ok := len(s) > 0 && len(s) <= maxRelease && s[0] >= '0' && s[0] <= '9'
	for _, c := range []byte(s) {
		ok = ok && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte(".-+_~", c) >= 0)
	}
	if !ok {
		return refuse("%q is no release of Linux", s)
	}
	return nil
}
