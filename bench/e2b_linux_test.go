package bench

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/test/testvm"
)

// BenchmarkE2B is what a program sees that uses E2B's npm package with axo serve.
func BenchmarkE2B(b *testing.B) {
	clients := testprog.E2B(b)
	guest := testprog.Guest(b)
	b.Setenv("AXO_GUEST_PATH", guest)
	for _, c := range []struct{ tier, settle string }{{"oci", "300"}, {"microvm", "1500"}} {
		b.Run(c.tier, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			address := l.Addr().String()
			l.Close()
			s := serve(b, "--e2b", address, "--warm", "4", "--warm-vms", "2")
			if c.tier == "microvm" {
				testvm.Link(b, s.state, guest)
			}
			for b.Loop() {
				cmd := exec.Command("node", "e2b.mjs", filepath.Join(clients, "js"), c.tier, c.settle)
				cmd.Env = append(os.Environ(), "E2B_API_KEY="+s.key(b), "E2B_API_URL=http://"+address, "E2B_SANDBOX_URL=http://"+address)
				cmd.Stderr = os.Stderr
				out, err := cmd.Output()
				if err != nil {
					b.Fatal(err)
				}
				var metrics map[string]float64
				if err := json.Unmarshal(out, &metrics); err != nil {
					b.Fatalf("%s: %v", out, err)
				}
				b.ReportMetric(0, "ns/op")
				for name, v := range metrics {
					b.ReportMetric(v, name)
				}
			}
		})
	}
}
