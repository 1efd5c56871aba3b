package none_test

import (
	"os/exec"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/none"
)

func BenchmarkExecTrue(b *testing.B) {
	for name, c := range map[string]none.Config{"cgroup": {}, "plain": {NoCgroup: true}} {
		b.Run(name, func(b *testing.B) {
			sb := create(b, newProcess(b, c), isolation.Resources{})
			b.ReportAllocs()
			for b.Loop() {
				if e := run(b, sb, isolation.ProcessSpec{Args: []string{"/bin/true"}}, isolation.Stdio{}); !e.Success() {
					b.Fatal(e)
				}
			}
		})
		b.Run(name+"+sandbox", func(b *testing.B) {
			d := newProcess(b, c)
			for b.Loop() {
				sb := create(b, d, isolation.Resources{})
				if e := run(b, sb, isolation.ProcessSpec{Args: []string{"/bin/true"}}, isolation.Stdio{}); !e.Success() {
					b.Fatal(e)
				}
				remove(b, sb)
			}
		})
	}
	b.Run("floor", func(b *testing.B) { // what os/exec needs for the same pipes
		for b.Loop() {
			c := exec.Command("/bin/true")
			c.Stdout, c.Stderr = writerFunc(func([]byte) {}), writerFunc(func([]byte) {})
			if err := c.Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
