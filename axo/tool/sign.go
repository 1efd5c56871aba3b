package tool

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/signature"
)

// SignatureNamespace is that of a tool's signature (ssh-keygen -n).
const SignatureNamespace = "axo-tool"

// signatureEnding follows the manifest's name in that of its signature's file.
const signatureEnding = ".sig"

func digestOf(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

// name notes where the content of a file is that the manifest names.
func (p parsed) name(name string, src source) {
	name = filepath.ToSlash(filepath.Clean(name))
	p.named[name] = append(p.named[name], src)
}

// signable is what a signature of a tool is of: the digests of its files as sha256sum
// prints them, by name. sums has those of the files in the registry.
func (p parsed) signable(sums map[string][]byte) ([]byte, error) {
	switch e := p.Entrypoint; {
	case e.Bundle != "":
		return nil, fmt.Errorf("a bundle's files are not among what would be signed: %w", isolation.ErrUnsupported)
	case e.Image != "" && !strings.Contains(e.Image, "sha256:"):
		return nil, fmt.Errorf("entrypoint.image is %.200q, a name that can mean anything later: to sign it, name it with its digest, as NAME@sha256:...: %w", e.Image, isolation.ErrFailedPrecondition)
	}
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(p.named)) {
		// sha256sum writes such names in another way.
		if strings.ContainsAny(name, "\\\n\r") {
			return nil, fmt.Errorf("the name %.200q: %w", name, isolation.ErrInvalidArgument)
		}
		var sum []byte
		for i, src := range p.named[name] {
			if src.as != "" {
				src.sum = sums[src.as]
			}
			if i > 0 && !bytes.Equal(sum, src.sum) {
				return nil, fmt.Errorf("%s was changed while it was read: %w", name, isolation.ErrFailedPrecondition)
			}
			sum = src.sum
		}
		fmt.Fprintf(&b, "%x  %s\n", sum, name)
	}
	return b.Bytes(), nil
}

// Signable reads a tool as Parse does, and returns what a signature of it is of, and
// the name of the file that the signature is to be in.
func Signable(name string) (message []byte, file string, err error) {
	p, err := parse(name)
	if err != nil {
		return nil, "", err
	}
	sums := map[string][]byte{}
	for as, from := range p.files {
		b, err := readFile(from, maxFile)
		if err != nil {
			return nil, "", err
		}
		sums[as] = digestOf(b)
	}
	message, err = p.signable(sums)
	return message, p.signatureFile(), err
}

func (p parsed) signatureFile() string {
	return filepath.Join(p.dir, p.manifest) + signatureEnding
}

// signer verifies the signature that is beside a manifest; none: nobody signed it.
// sums are of the files that were taken.
func (p parsed) signer(sums map[string][]byte) (signature.Key, error) {
	b, err := readFile(p.signatureFile(), signature.MaxBytes)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	message, err := p.signable(sums)
	if err != nil {
		return "", fmt.Errorf("%s: %w", p.signatureFile(), err)
	}
	k, err := signature.Verify(b, message, SignatureNamespace)
	if err != nil {
		return "", fmt.Errorf("%s: %w", p.signatureFile(), err)
	}
	return k, nil
}
