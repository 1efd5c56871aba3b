package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"unicode/utf8"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/form"
)

// The bodies of requests. Names are the API's.
type (
	machineConfig struct {
		VCPUCount  int `json:"vcpu_count"`
		MemSizeMiB int `json:"mem_size_mib"`
	}
	bootSource struct {
		KernelImagePath string `json:"kernel_image_path"`
		InitrdPath      string `json:"initrd_path"`
		BootArgs        string `json:"boot_args"` // the default turns modules off
	}
	drive struct {
		DriveID      string `json:"drive_id"`
		PathOnHost   string `json:"path_on_host"`
		IsRootDevice bool   `json:"is_root_device"`
		IsReadOnly   bool   `json:"is_read_only"`
	}
	vsock struct {
		GuestCID int    `json:"guest_cid"`
		UDSPath  string `json:"uds_path"`
	}
	entropy struct{}
	action  struct {
		ActionType string `json:"action_type"`
	}
	vmState struct {
		State string `json:"state"`
	}
	snapshotCreate struct {
		SnapshotType string `json:"snapshot_type"`
		SnapshotPath string `json:"snapshot_path"`
		MemFilePath  string `json:"mem_file_path"`
	}
	memBackend struct {
		BackendType string `json:"backend_type"`
		BackendPath string `json:"backend_path"`
	}
	snapshotLoad struct {
		SnapshotPath string     `json:"snapshot_path"`
		MemBackend   memBackend `json:"mem_backend"`
		ResumeVM     bool       `json:"resume_vm"`
	}
)

// maxAnswer and maxHeader bound an answer in bytes.
const (
	maxAnswer = 64 << 10
	maxHeader = 16 << 10
)

// client calls the API. It is not safe for concurrent use.
type client struct {
	http http.Client
}

// newClient makes a client of connections that dial makes, one for each call.
func newClient(dial func(context.Context) (net.Conn, error)) *client {
	return &client{http.Client{
		Transport: &http.Transport{
			DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
			// What comes on a connection that waits for its next use would be logged.
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// call makes a request that is answered by 204 and nothing else.
func (c *client) call(ctx context.Context, method, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, method, path, b, http.StatusNoContent)
	return err
}

// get makes a request that is answered by 200 and a JSON object.
func (c *client) get(ctx context.Context, path string, out any) error {
	b, err := c.do(ctx, http.MethodGet, path, nil, http.StatusOK)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

func (c *client) do(ctx context.Context, method, path string, body []byte, want int) (_ []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s %s: %w", method, path, err)
		}
	}()
	r, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json")
	if body == nil {
		r.Body = nil
	} else {
		r.Header.Set("Content-Type", "application/json")
	}
	a, err := c.http.Do(r)
	if err != nil {
		return nil, bounded(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, bounded(err)
	case len(b) > maxAnswer:
		return nil, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	case a.StatusCode != want:
		return nil, fmt.Errorf("status %d%s", a.StatusCode, fault(b))
	}
	return b, nil
}

// bounded shortens an error that may quote what was answered.
func bounded(err error) error {
	if s := err.Error(); len(s) > 500 && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%.500q", s)
	}
	return err
}

// fault is what an answer says is wrong.
func fault(body []byte) string {
	var f struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(body, &f) != nil || f.Message == "" || !utf8.ValidString(f.Message) {
		return ""
	}
	return fmt.Sprintf(": %.500q", f.Message)
}

// Versions of Firecracker whose API has all that is used here, and that start
// kernels as distributions have them: since 1.12.0 by PVH, without a patched
// kernel (CHANGELOG.md there). Firecracker takes away parts of its API only with
// a new first number (docs/RELEASE_POLICY.md).
const (
	minMajor = 1
	minMinor = 12
)

var versionForm = form.Of(`^v?([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})(-[0-9A-Za-z.-]{1,40})?$`)

// version asks for Firecracker's version, and refuses one that is not known.
func (c *client) version(ctx context.Context) (string, error) {
	var v struct {
		Version string `json:"firecracker_version"`
	}
	if err := c.get(ctx, "/version", &v); err != nil {
		return "", err
	}
	return v.Version, checkVersion(v.Version)
}

func checkVersion(v string) error {
	m := versionForm().FindStringSubmatch(v)
	if m == nil {
		return fmt.Errorf("this is no Firecracker: its version is %.40q: %w", v, isolation.ErrFailedPrecondition)
	}
	major, _ := strconv.Atoi(m[1]) // digits
	minor, _ := strconv.Atoi(m[2])
	if major != minMajor || minor < minMinor {
		return &isolation.UnsupportedError{Feature: "Firecracker " + v, Need: fmt.Sprintf("a version from %d.%d to before %d.0", minMajor, minMinor, minMajor+1)}
	}
	return nil
}
