package microvm_test

import (
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
)

// TestVsock: a program reaches neither its guest's channel by vsock, nor the host,
// nor does it take the guest's place.
func TestVsock(t *testing.T) {
	if testVMM != microvm.Firecracker {
		t.Skip("needs a machine with vsock: make test-firecracker")
	}
	sb := create(t, newDriver(t, config(t)), "vsock", isolation.Spec{})
	out, e := sh(t, sb, `exec python3 -c '
import socket
def tries(what, cid, port):
    try:
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.settimeout(5)
        getattr(s, what)((cid, port))
        print(what, cid, port, "works")
    except OSError as e:
        print(what, "refused")
tries("bind", socket.VMADDR_CID_ANY, 1024)
tries("bind", 3, 1024)
for cid in 1, 2, 3:
    tries("connect", cid, 1024)
    tries("connect", cid, 1025)
'`)
	want := "bind refused\nbind refused\n" + "connect refused\nconnect refused\nconnect refused\nconnect refused\nconnect refused\nconnect refused\n"
	if out != want || !e.Success() {
		t.Errorf("%v: %s", e, out)
	}
}
