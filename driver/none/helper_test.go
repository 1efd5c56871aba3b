package none_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/none"
)

// helpers are the programs that the tests run, in the test binary itself:
// argv[1] names one.
var helpers = map[string]func(args []string) int{}

const helperPrefix = "helper:"

// helper returns the argv of a helper.
func helper(name string, args ...string) []string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return append([]string{self, helperPrefix + name}, args...)
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if name, ok := strings.CutPrefix(os.Args[1], helperPrefix); ok {
			os.Exit(helpers[name](os.Args[2:]))
		}
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		for _, f := range atExit {
			f()
		}
		os.Exit(code)
	}))
}

// atExit is done at the end of all tests.
var atExit []func()

func init() {
	helpers["env"] = func([]string) int {
		for _, e := range os.Environ() {
			fmt.Println(e)
		}
		return 0
	}
	helpers["hog"] = func(args []string) int { // touches MiB after MiB
		n, _ := strconv.Atoi(args[0])
		var keep [][]byte
		for range n {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			keep = append(keep, b)
		}
		runtime.KeepAlive(keep)
		return 0
	}
	helpers["spin"] = func([]string) int {
		for n := uint64(0); ; n++ {
			if n == 1<<63 {
				return 1
			}
		}
	}
	helpers["flood"] = func(args []string) int { // writes so many MiB
		n, _ := strconv.Atoi(args[0])
		b := make([]byte, 1<<20)
		for range n {
			if _, err := os.Stdout.Write(b); err != nil {
				return 1
			}
		}
		return 0
	}
}

// stdCall is the call of a function that runs as a program.
func stdCall(args []string) *none.Call {
	return &none.Call{Args: args, Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
}

// ctxOf is the test's context, also during cleanup.
func ctxOf(t testing.TB) context.Context { return context.WithoutCancel(t.Context()) }

func wait(t testing.TB, p isolation.Process) isolation.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctxOf(t), 60*time.Second)
	defer cancel()
	e, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func remove(t testing.TB, sb isolation.Sandbox) {
	t.Helper()
	if err := sb.Delete(ctxOf(t)); err != nil {
		t.Errorf("Delete: %v", err)
	}
}
