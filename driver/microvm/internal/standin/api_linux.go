package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
)

// vmm is what the API drives.
type vmm interface {
	boot(c *config) error
	pause() error
	resume() error
	snapshot(state, memory string) error
	load(state, memory string, resume bool) error
	setDrive(id, path string) error
}

// config is what was put before the start.
type config struct {
	Machine machineConfig
	Boot    *bootSource
	Drives  []drive
	Vsock   *vsock
}

// The bodies, with all fields that Firecracker takes.
type (
	machineConfig struct {
		VCPUCount       *int    `json:"vcpu_count"`
		MemSizeMiB      *int    `json:"mem_size_mib"`
		SMT             *bool   `json:"smt"`
		CPUTemplate     *string `json:"cpu_template"`
		TrackDirtyPages *bool   `json:"track_dirty_pages"`
		HugePages       *string `json:"huge_pages"`
	}
	bootSource struct {
		KernelImagePath *string `json:"kernel_image_path"`
		InitrdPath      *string `json:"initrd_path"`
		BootArgs        *string `json:"boot_args"`
	}
	drive struct {
		DriveID      *string         `json:"drive_id"`
		PartUUID     *string         `json:"partuuid"`
		IsRootDevice *bool           `json:"is_root_device"`
		CacheType    *string         `json:"cache_type"`
		IsReadOnly   *bool           `json:"is_read_only"`
		PathOnHost   *string         `json:"path_on_host"`
		RateLimiter  json.RawMessage `json:"rate_limiter"`
		IOEngine     *string         `json:"io_engine"`
		Socket       *string         `json:"socket"`
	}
	partialDrive struct {
		DriveID     *string         `json:"drive_id"`
		PathOnHost  *string         `json:"path_on_host"`
		RateLimiter json.RawMessage `json:"rate_limiter"`
	}
	vsock struct {
		VsockID  *string `json:"vsock_id"`
		GuestCID *uint32 `json:"guest_cid"`
		UDSPath  *string `json:"uds_path"`
	}
	entropy struct {
		RateLimiter json.RawMessage `json:"rate_limiter"`
	}
	action struct {
		ActionType *string `json:"action_type"`
	}
	vmState struct {
		State *string `json:"state"`
	}
	snapshotCreate struct {
		SnapshotType *string `json:"snapshot_type"`
		SnapshotPath *string `json:"snapshot_path"`
		MemFilePath  *string `json:"mem_file_path"`
	}
	memBackend struct {
		BackendType *string `json:"backend_type"`
		BackendPath *string `json:"backend_path"`
	}
	snapshotLoad struct {
		SnapshotPath        *string         `json:"snapshot_path"`
		MemFilePath         *string         `json:"mem_file_path"`
		MemBackend          *memBackend     `json:"mem_backend"`
		EnableDiffSnapshots *bool           `json:"enable_diff_snapshots"`
		TrackDirtyPages     *bool           `json:"track_dirty_pages"`
		ResumeVM            *bool           `json:"resume_vm"`
		NetworkOverrides    json.RawMessage `json:"network_overrides"`
		VsockOverride       json.RawMessage `json:"vsock_override"`
		ClockRealtime       *bool           `json:"clock_realtime"`
	}
)

// fault is an error in Firecracker's words.
type fault string

func (f fault) Error() string { return string(f) }

// What Firecracker says (src/vmm/src/rpc_interface.rs).
var (
	errPostBoot = fault("The requested operation is not supported after starting the microVM.")
	errPreBoot  = fault("The requested operation is not supported before starting the microVM.")
	errLoadLate = fault("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	errNoKernel = fault("Start microvm error: Cannot start microvm without kernel configuration.")
	errRunning  = fault("Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore is allowed only if paused")
)

// maxBody is HTTP_MAX_PAYLOAD_SIZE of src/vmm/src/lib.rs.
const maxBody = 51200

// api is the server. One request at a time is served, as Firecracker does.
type api struct {
	vmm vmm

	mu      sync.Mutex
	cfg     config
	set     bool // something of cfg
	started bool
	paused  bool
	dead    bool // a load has failed: Firecracker ends
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer, err := a.serve(r)
	switch {
	case err != nil:
		b, _ := json.Marshal(map[string]string{"fault_message": err.Error()}) // a string
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write(b) // the client sees it
	case answer != nil:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
	if a.dead {
		_ = http.NewResponseController(w).Flush()
		fmt.Fprintln(os.Stderr, "standin: the snapshot could not be loaded:", err)
		os.Exit(1)
	}
}

func (a *api) serve(r *http.Request) (answer any, err error) {
	if r.ContentLength < 0 || r.ContentLength > maxBody {
		return nil, fault(fmt.Sprintf("Request payload with size %d is larger than the limit of %d allowed by server.", r.ContentLength, maxBody))
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return nil, err
	}
	if r.Method == http.MethodGet && r.URL.Path == "/version" {
		if len(body) > 0 {
			return nil, fault("GET request cannot have a body.")
		}
		return map[string]string{"firecracker_version": version}, nil
	}
	if len(body) == 0 {
		return nil, fault(fmt.Sprintf("Empty %s request.", r.Method))
	}
	path, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch r.Method + " " + path {
	case "PUT machine-config":
		return nil, put(a, body, &a.cfg.Machine, func(m *machineConfig) error { return required(m.VCPUCount, m.MemSizeMiB) })
	case "PUT boot-source":
		b := &bootSource{}
		return nil, put(a, body, b, func(b *bootSource) error { a.cfg.Boot = b; return required(b.KernelImagePath) })
	case "PUT drives":
		return nil, put(a, body, &drive{}, func(d *drive) error {
			if err := required(d.DriveID, d.IsRootDevice, d.PathOnHost); err != nil {
				return err
			}
			a.cfg.Drives = append(a.cfg.Drives, *d)
			return same(id, *d.DriveID)
		})
	case "PUT vsock":
		v := &vsock{}
		return nil, put(a, body, v, func(v *vsock) error { a.cfg.Vsock = v; return required(v.GuestCID, v.UDSPath) })
	case "PUT entropy":
		return nil, put(a, body, &entropy{}, func(*entropy) error { return nil })
	case "PUT actions":
		var act action
		if err := decode(body, &act, &act.ActionType); err != nil {
			return nil, err
		}
		return nil, a.act(*act.ActionType)
	case "PATCH vm":
		var s vmState
		if err := decode(body, &s, &s.State); err != nil {
			return nil, err
		}
		return nil, a.change(*s.State)
	case "PATCH drives":
		var d partialDrive
		if err := decode(body, &d, &d.DriveID, &d.PathOnHost); err != nil {
			return nil, err
		}
		if err := same(id, *d.DriveID); err != nil {
			return nil, err
		}
		if !a.started {
			return nil, errPreBoot
		}
		return nil, a.vmm.setDrive(id, *d.PathOnHost)
	case "PUT snapshot":
		switch id {
		case "create":
			return nil, a.create(body)
		case "load":
			return nil, a.load(body)
		}
	}
	return nil, fault(fmt.Sprintf("Invalid request method and/or path: %s %s.", r.Method, r.URL.Path))
}

func (a *api) act(kind string) error {
	switch {
	case kind != "InstanceStart":
		return fmt.Errorf("unknown variant `%s`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel`", kind)
	case a.started:
		return errPostBoot
	case a.cfg.Boot == nil:
		return errNoKernel
	}
	if err := a.vmm.boot(&a.cfg); err != nil {
		return err
	}
	a.started = true
	return nil
}

func (a *api) change(state string) (err error) {
	if state != "Paused" && state != "Resumed" {
		return fmt.Errorf("unknown variant `%s`, expected `Paused` or `Resumed`", state)
	}
	if !a.started {
		return errPreBoot
	}
	// A second time is allowed.
	switch want := state == "Paused"; {
	case want && !a.paused:
		err = a.vmm.pause()
	case !want && a.paused:
		err = a.vmm.resume()
	}
	if err == nil {
		a.paused = state == "Paused"
	}
	return err
}

func (a *api) create(body []byte) error {
	var s snapshotCreate
	if err := decode(body, &s, &s.SnapshotPath, &s.MemFilePath); err != nil {
		return err
	}
	if s.SnapshotType != nil && *s.SnapshotType != "Full" {
		return errors.New("the stand-in takes full snapshots only")
	}
	switch {
	case !a.started:
		return errPreBoot
	case !a.paused:
		return errRunning
	}
	return a.vmm.snapshot(*s.SnapshotPath, *s.MemFilePath)
}

func (a *api) load(body []byte) error {
	var s snapshotLoad
	if err := decode(body, &s, &s.SnapshotPath); err != nil {
		return err
	}
	switch {
	case s.MemBackend != nil && s.MemFilePath != nil:
		return errors.New("too many fields: either `mem_backend` or `mem_file_path` exclusively is required")
	case s.MemBackend == nil || s.MemBackend.BackendPath == nil || s.MemBackend.BackendType == nil:
		return errors.New("missing field: either `mem_backend` or `mem_file_path` is required")
	case *s.MemBackend.BackendType != "File":
		return errors.New("the stand-in has backends of type File only")
	case a.started:
		return errPostBoot
	case a.set:
		return errLoadLate
	}
	resume := s.ResumeVM != nil && *s.ResumeVM
	if err := a.vmm.load(*s.SnapshotPath, *s.MemBackend.BackendPath, resume); err != nil {
		a.dead = true
		return fault(fmt.Sprintf("Load snapshot error: %v", err))
	}
	a.started, a.paused = true, !resume
	return nil
}

// put decodes what is configured before the start.
func put[T any](a *api, body []byte, to *T, check func(*T) error) error {
	var v T
	if err := decode(body, &v); err != nil {
		return err
	}
	if a.started {
		return errPostBoot
	}
	*to = v
	a.set = true
	return check(to)
}

// decode is serde's with deny_unknown_fields. need are the fields without a
// default.
func decode(body []byte, to any, need ...any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(to)
	if err == nil {
		if _, terr := d.Token(); terr != io.EOF {
			err = errors.New("trailing characters")
		}
	}
	for _, n := range need {
		if p, ok := n.(**string); ok && err == nil && *p == nil {
			err = errors.New("missing field")
		}
	}
	if err != nil {
		return fault(fmt.Sprintf("An error occurred when deserializing the json body of a request: %v.", err))
	}
	return nil
}

func required(fields ...any) error {
	for _, f := range fields {
		missing := false
		switch p := f.(type) {
		case *string:
			missing = p == nil
		case *int:
			missing = p == nil
		case *bool:
			missing = p == nil
		case *uint32:
			missing = p == nil
		}
		if missing {
			return fault("An error occurred when deserializing the json body of a request: missing field.")
		}
	}
	return nil
}

func same(path, body string) error {
	if path != body {
		return fault("The id from the path does not match the id from the body!")
	}
	return nil
}
