// Command testprogram does all that the conformance suite wants done: its first
// argument is a drivertest.Program. It is built for what a driver runs (Linux,
// WASI) and put where the sandbox sees it.
//
// "readdisk" and "readoften" take the name of a file after their numbers. "fill"
// and "files" take a directory after their number; without it they use the one for
// temporary files. A trap of WASM it can't make: there "crash" must
// be another module.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: testprogram PROGRAM [ARGS]")
		os.Exit(64)
	}
	code, err := do(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func do(program string, args []string) (int, error) {
	arg := func(i int, otherwise string) string {
		if len(args) > i {
			return args[i]
		}
		return otherwise
	}
	n, _ := strconv.ParseInt(arg(0, "0"), 10, 64) // not a number: for programs that take none
	switch program {
	case "exit0":
		return 0, nil
	case "exit7":
		return 7, nil
	case "echo":
		return 0, echo()
	case "sleep":
		return 0, sleep(arg(0, ""))
	case "ready":
		return 0, errors.Join(write("ready\n"), sleep(arg(0, "")))
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		return 0, errors.Join(write("ready\n"), sleep(arg(0, "")))
	case "flood":
		return 0, flood(os.Stdout, n)
	case "flooderr":
		return 0, flood(os.Stderr, n)
	case "both":
		_, err := os.Stderr.WriteString("err\n")
		return 0, errors.Join(write("out\n"), err)
	case "args":
		return 0, list(args)
	case "env":
		return 0, list(os.Environ())
	case "cwd":
		dir, err := os.Getwd()
		return 0, errors.Join(err, write(dir))
	case "user":
		return 0, write(strconv.Itoa(os.Getuid()))
	case "hostname":
		name, err := os.Hostname()
		return 0, errors.Join(err, write(name))
	case "spin":
		spin()
	case "hog":
		hog(n)
		return 0, nil
	case "crash":
		debug.SetTraceback("crash") // SIGABRT, not exit status 2
		panic("crash")
	case "fill":
		return 0, fill(arg(1, os.TempDir()), n)
	case "files":
		return 0, files(arg(1, os.TempDir()), n)
	case "readdisk", "readoften":
		reads, err := strconv.ParseInt(arg(1, "1"), 10, 64)
		return 0, errors.Join(err, readDisk(arg(2, ""), n, reads))
	case "forks":
		return 0, forks(n)
	case "lines":
		status, err := strconv.Atoi(arg(1, "0"))
		return status, errors.Join(err, lines(int(n)))
	case "serve":
		return 1, serve(arg(0, ""))
	case "connect":
		return 0, connect(arg(0, ""), arg(1, ""))
	case "survivors":
		return 0, survivors(n)
	}
	return 64, errors.New("there is no such program")
}

// lines writes some at a time, so that neither stream is far ahead.
func lines(n int) error {
	for i := 0; i < n; {
		var b []byte
		for ; i < n && len(b) < 1<<10; i++ {
			b = fmt.Appendf(b, "%07d\n", i)
		}
		if _, err := os.Stdout.Write(b); err != nil {
			return err
		}
		if _, err := os.Stderr.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func write(s string) error {
	_, err := os.Stdout.WriteString(s)
	return err
}

func list(l []string) error {
	var b []byte
	for _, s := range l {
		b = append(append(b, s...), 0)
	}
	_, err := os.Stdout.Write(b)
	return err
}

// echo is no io.Copy, which would splice: the bytes shall come through here.
func echo() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := os.Stdin.Read(buf)
		if _, werr := os.Stdout.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func sleep(seconds string) error {
	s, err := strconv.ParseFloat(seconds, 64)
	time.Sleep(time.Duration(s * float64(time.Second)))
	return err
}

func flood(w io.Writer, n int64) error {
	buf := make([]byte, 64<<10)
	for i := range buf {
		buf[i] = 'y'
	}
	for n > 0 {
		k, err := w.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

func spin() {
	for x := uint64(1); ; x = x*6364136223846793005 + 1 {
		runtime.KeepAlive(x)
	}
}

func hog(n int64) {
	var kept [][]byte
	for ; n > 0; n -= 1 << 20 {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
	runtime.KeepAlive(kept)
}

func fill(dir string, n int64) error {
	name := filepath.Join(dir, "testprogram-fill")
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer os.Remove(name)
	return errors.Join(flood(f, n), f.Close())
}

func files(dir string, n int64) error {
	name := filepath.Join(dir, "testprogram-files")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return err
	}
	defer os.Remove(name)
	for range n {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
	}
	return nil
}

// child starts this program once more.
func child(stdin io.Reader, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, os.Stdout, os.Stderr
	return cmd, cmd.Start()
}

// forks has children that wait for the end of their stdin.
func forks(n int64) (err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	var started []*exec.Cmd
	for range n {
		cmd, cerr := child(r, "echo")
		if cerr != nil {
			err = cerr
			continue
		}
		started = append(started, cmd)
	}
	_ = w.Close()
	for _, cmd := range started {
		// A child that could not start its threads fails, and is one that
		// was refused.
		err = errors.Join(err, cmd.Wait())
	}
	return err
}

func survivors(n int64) error {
	for range n {
		if _, err := child(nil, "sleep", "60"); err != nil {
			return err
		}
	}
	return nil
}
