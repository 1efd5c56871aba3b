package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// idle is a machine that does what it is told to.
type idle struct{ did []string }

func (i *idle) boot(*config) error              { i.did = append(i.did, "boot"); return nil }
func (i *idle) pause() error                    { i.did = append(i.did, "pause"); return nil }
func (i *idle) resume() error                   { i.did = append(i.did, "resume"); return nil }
func (i *idle) snapshot(string, string) error   { i.did = append(i.did, "snapshot"); return nil }
func (i *idle) load(string, string, bool) error { i.did = append(i.did, "load"); return nil }
func (i *idle) setDrive(string, string) error   { i.did = append(i.did, "drive"); return nil }

// TestOrder: calls are taken at their time only, and with the fields that
// Firecracker has. Each line is a request, and what its answer must have.
func TestOrder(t *testing.T) {
	const (
		boot  = `{"kernel_image_path":"k","initrd_path":"i","boot_args":"a"}`
		load  = `{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m"},"resume_vm":true}`
		start = `{"action_type":"InstanceStart"}`
	)
	for name, requests := range map[string][][3]string{
		"boot": {
			{"PUT /machine-config", `{"vcpu_count":1,"mem_size_mib":128}`, ""},
			{"PUT /actions", start, "without kernel"},
			{"PUT /boot-source", boot, ""},
			{"PUT /drives/root", `{"drive_id":"root","is_root_device":false,"path_on_host":"d","is_read_only":true}`, ""},
			{"PUT /drives/other", `{"drive_id":"root","is_root_device":false,"path_on_host":"d"}`, "does not match"},
			{"PUT /vsock", `{"guest_cid":3,"uds_path":"v"}`, ""},
			{"PUT /entropy", `{}`, ""},
			{"PATCH /vm", `{"state":"Paused"}`, "before starting"},
			{"PATCH /drives/root", `{"drive_id":"root","path_on_host":"d"}`, "before starting"},
			{"PUT /snapshot/create", `{"snapshot_path":"s","mem_file_path":"m"}`, "before starting"},
			{"PUT /snapshot/load", load, "after configuring"},
			{"PUT /actions", start, ""},
			{"PUT /actions", start, "after starting"},
			{"PUT /boot-source", boot, "after starting"},
			{"PUT /snapshot/load", load, "after starting"},
			{"PUT /snapshot/create", `{"snapshot_path":"s","mem_file_path":"m"}`, "only if paused"},
			{"PATCH /vm", `{"state":"Paused"}`, ""},
			{"PATCH /vm", `{"state":"Paused"}`, ""},
			{"PUT /snapshot/create", `{"snapshot_path":"s","mem_file_path":"m","snapshot_type":"Full"}`, ""},
			{"PATCH /vm", `{"state":"Resumed"}`, ""},
			{"PATCH /drives/root", `{"drive_id":"root","path_on_host":"d"}`, ""},
		},
		"load": {
			{"PUT /snapshot/load", `{"snapshot_path":"s","mem_backend":{"backend_type":"File"}}`, "missing field"},
			{"PUT /snapshot/load", `{"snapshot_path":"s","mem_file_path":"m","mem_backend":{"backend_type":"File","backend_path":"m"}}`, "too many fields"},
			{"PUT /snapshot/load", load, ""},
			{"PUT /snapshot/load", load, "after starting"},
		},
		"form": {
			{"GET /version", "", ""},
			{"GET /version", "{}", "cannot have a body"},
			{"PUT /vsock", "", "Empty PUT"},
			{"PUT /vsock", `{"guest_cid":3,"uds_path":"v","cid":4}`, "unknown field"},
			{"PUT /vsock", `{"guest_cid":3,"uds_path":"v"} x`, "trailing"},
			{"PUT /vsock", `{"guest_cid":3}`, "missing field"},
			{"PUT /entropy", strings.Repeat(" ", maxBody+1), "larger than the limit"},
			{"PUT /actions", `{"action_type":"Fly"}`, "unknown variant"},
			{"PUT /nothing", `{}`, "Invalid request method and/or path"},
			{"POST /vm", `{}`, "Invalid request method and/or path"},
		},
	} {
		a := &api{vmm: &idle{}}
		for _, q := range requests {
			method, path, _ := strings.Cut(q[0], " ")
			w := httptest.NewRecorder()
			a.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(q[1])))
			if ok := w.Code == http.StatusNoContent || w.Code == http.StatusOK; ok != (q[2] == "") || !strings.Contains(w.Body.String(), q[2]) {
				t.Errorf("%s: %s %s: %d %s, want %q", name, q[0], q[1], w.Code, w.Body, q[2])
			}
		}
	}
}
