package none_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/none"
	"github.com/axocoatl/isolation/drivertest"
	"github.com/axocoatl/isolation/internal/testprog"
)

// testprogram builds the suite's program, once.
var testprogram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "axo-none-test-")
	if err != nil {
		return "", err
	}
	atExit = append(atExit, func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // other users run it as well
		return "", err
	}
	name := filepath.Join(dir, "testprogram")
	return name, testprog.BuildPackage(name, "drivertest/testprogram")
})

// leftovers lists the control groups of this engine.
func leftovers(t testing.TB) []string {
	var out []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "axo-none-dt-"+strconv.Itoa(os.Getpid())) {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return out
}

func nativeConfig(t testing.TB, c none.Config) drivertest.Config {
	program, err := testprogram()
	if err != nil {
		t.Fatal(err)
	}
	return drivertest.Config{
		New: func(t testing.TB) isolation.Driver {
			d, err := none.New(c)
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			if p == drivertest.ReadDisk || p == drivertest.ReadOften {
				dir := filepath.Dir(program)
				name := testprog.DiskFile(dir)
				if name == "" {
					return isolation.Spec{}, isolation.ProcessSpec{}, false
				}
				args = append(args, filepath.Join(dir, name))
			}
			return isolation.Spec{Requirement: isolation.NativeTrusted},
				isolation.ProcessSpec{Args: append([]string{program, string(p)}, args...)}, true
		},
		Leftovers: leftovers,
	}
}

func funcConfig() drivertest.Config {
	return drivertest.Config{
		New: func(t testing.TB) isolation.Driver {
			d, err := none.NewFunc(none.FuncConfig{Funcs: map[string]none.Func{"suite": suiteFunc}})
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			spec := isolation.Spec{Requirement: isolation.NativeTrusted, Func: "suite"}
			ps := isolation.ProcessSpec{Args: append([]string{"suite", string(p)}, args...)}
			return spec, ps, suitePrograms[p] != nil
		},
	}
}

func suiteFunc(ctx context.Context, c *none.Call) int {
	code, err := suitePrograms[drivertest.Program(c.Args[1])](ctx, c, c.Args[2:])
	if err != nil {
		return 1
	}
	return code
}

type suiteProgram func(ctx context.Context, c *none.Call, args []string) (int, error)

// suitePrograms are those that a function can be. One that takes what is not
// its own (memory, descriptors, children) would take it from the test.
var suitePrograms = map[drivertest.Program]suiteProgram{
	drivertest.Exit0: func(context.Context, *none.Call, []string) (int, error) { return 0, nil },
	drivertest.Exit7: func(context.Context, *none.Call, []string) (int, error) { return 7, nil },
	drivertest.Echo: func(_ context.Context, c *none.Call, _ []string) (int, error) {
		_, err := io.Copy(c.Stdout, c.Stdin)
		return 0, err
	},
	drivertest.Sleep: func(ctx context.Context, _ *none.Call, args []string) (int, error) { return 0, nap(ctx, args[0]) },
	drivertest.Ready: func(ctx context.Context, c *none.Call, args []string) (int, error) {
		fmt.Fprintln(c.Stdout, "ready")
		return 0, nap(ctx, args[0])
	},
	drivertest.Flood:    func(_ context.Context, c *none.Call, args []string) (int, error) { return 0, flood(c.Stdout, args[0]) },
	drivertest.FloodErr: func(_ context.Context, c *none.Call, args []string) (int, error) { return 0, flood(c.Stderr, args[0]) },
	drivertest.Both: func(_ context.Context, c *none.Call, _ []string) (int, error) {
		fmt.Fprintln(c.Stdout, "out")
		fmt.Fprintln(c.Stderr, "err")
		return 0, nil
	},
	drivertest.Args: func(_ context.Context, c *none.Call, args []string) (int, error) { return 0, list(c.Stdout, args) },
	drivertest.Env:  func(_ context.Context, c *none.Call, _ []string) (int, error) { return 0, list(c.Stdout, c.Env) },
	drivertest.Spin: func(ctx context.Context, _ *none.Call, _ []string) (int, error) {
		for ctx.Err() == nil {
		}
		return 0, ctx.Err()
	},
}

func nap(ctx context.Context, seconds string) error {
	s, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(s * float64(time.Second))):
		return nil
	}
}

func flood(w io.Writer, bytes string) error {
	n, err := strconv.ParseInt(bytes, 10, 64)
	if err != nil {
		return err
	}
	_, err = io.CopyN(w, zeroes{}, n)
	return err
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func list(w io.Writer, l []string) (err error) {
	for _, s := range l {
		_, werr := io.WriteString(w, s+"\x00")
		err = errors.Join(err, werr)
	}
	return err
}

func TestConformanceProcess(t *testing.T) { drivertest.Run(t, nativeConfig(t, none.Config{})) }

func TestConformanceProcessWithoutCgroup(t *testing.T) {
	drivertest.Run(t, nativeConfig(t, none.Config{NoCgroup: true}))
}

func TestConformanceFunc(t *testing.T) { drivertest.Run(t, funcConfig()) }

func BenchmarkProcess(b *testing.B) { drivertest.Benchmark(b, nativeConfig(b, none.Config{})) }

func BenchmarkFunc(b *testing.B) { drivertest.Benchmark(b, funcConfig()) }
