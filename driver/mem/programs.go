package mem

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/axocoatl/isolation"
)

// Builtin returns the programs that every driver has. They have the names, and
// do what is said there, of the programs of package drivertest:
//
//	exit0, exit7          end with this status
//	exit N                ends with status N
//	echo                  copies stdin to stdout
//	args, env             write their arguments or environment, a NUL after each
//	cwd, user, hostname   write theirs
//	both                  writes "out\n" to stdout and "err\n" to stderr
//	print S...            writes S...
//	sleep S               sleeps for S seconds
//	ready S               writes "ready\n", then sleeps
//	stubborn S            as ready, and ignores SIGTERM
//	spin                  computes for ever
//	hog N                 allocates N bytes, or fails
//	flood N, flooderr N   write N bytes to stdout or stderr
//	lines N S             writes N numbered lines to both, ends with status S
//	crash                 aborts
//	trap                  traps
//	deny                  does what it may not
//	fill N                writes N bytes to disk, or fails
//	files N               opens N files, or fails
//	forks N               starts N children and waits until they ended
//	survivors N           starts N children and ends before them
//	serve P               listens on port P and sends back what it gets
//	connect P S           connects to port P, sends S, writes the answer
func Builtin() map[string]Program {
	return map[string]Program{
		"exit0":     func(*Proc) int { return 0 },
		"exit7":     func(*Proc) int { return 7 },
		"exit":      func(c *Proc) int { return int(number(c)) },
		"echo":      echo,
		"args":      func(c *Proc) int { return list(c, c.Args()[1:]) },
		"env":       func(c *Proc) int { return list(c, c.Env()) },
		"cwd":       func(c *Proc) int { return text(c.Stdout(), c.Cwd()) },
		"user":      func(c *Proc) int { return text(c.Stdout(), c.User()) },
		"hostname":  func(c *Proc) int { return text(c.Stdout(), c.Hostname()) },
		"both":      func(c *Proc) int { return text(c.Stdout(), "out\n") + text(c.Stderr(), "err\n") },
		"print":     printArgs,
		"sleep":     sleep,
		"ready":     func(c *Proc) int { text(c.Stdout(), "ready\n"); return sleep(c) },
		"stubborn":  func(c *Proc) int { c.Ignore(isolation.SIGTERM); text(c.Stdout(), "ready\n"); return sleep(c) },
		"spin":      spin,
		"hog":       hog,
		"flood":     func(c *Proc) int { return flood(c, c.Stdout()) },
		"flooderr":  func(c *Proc) int { return flood(c, c.Stderr()) },
		"crash":     func(c *Proc) int { c.Raise(isolation.SIGABRT); return 0 },
		"trap":      func(c *Proc) int { c.Trap("unreachable"); return 0 },
		"deny":      func(c *Proc) int { c.Deny("denied"); return 0 },
		"fill":      fill,
		"files":     files,
		"forks":     forks,
		"lines":     lines,
		"survivors": survivors,
		"serve":     serve,
		"connect":   connect,
	}
}

func number(c *Proc) int64 {
	if args := c.Args(); len(args) > 1 {
		if n, err := strconv.ParseInt(args[1], 10, 64); err == nil {
			return n
		}
	}
	return 0
}

func text(w io.Writer, s string) int {
	// It ends the program when it can't write: there is no error.
	_, _ = io.WriteString(w, s)
	return 0
}

func list(c *Proc, l []string) int {
	for _, s := range l {
		text(c.Stdout(), s+"\x00")
	}
	return 0
}

func printArgs(c *Proc) int {
	for i, s := range c.Args()[1:] {
		if i > 0 {
			s = " " + s
		}
		text(c.Stdout(), s)
	}
	return 0
}

func echo(c *Proc) int {
	buf := make([]byte, chunkBytes)
	for {
		n, err := c.Stdin().Read(buf)
		text(c.Stdout(), string(buf[:n]))
		if err != nil {
			return 0
		}
	}
}

func sleep(c *Proc) int {
	s := 0.0
	if args := c.Args(); len(args) > 1 {
		s, _ = strconv.ParseFloat(args[1], 64)
	}
	c.Sleep(time.Duration(s * float64(time.Second)))
	return 0
}

func spin(c *Proc) int {
	for {
		c.Step(1_000_000)
		c.Compute(time.Millisecond)
	}
}

func hog(c *Proc) int {
	const step = 64 << 10
	for n := number(c); n > 0; n -= step {
		if !c.Alloc(min(n, step)) {
			text(c.Stderr(), "out of memory\n")
			return 2
		}
	}
	return 0
}

func flood(c *Proc, w io.Writer) int {
	buf := make([]byte, 8192)
	for i := range buf {
		buf[i] = 'y'
	}
	for n := number(c); n > 0; {
		b := buf[:min(n, int64(len(buf)))]
		if _, err := w.Write(b); err != nil {
			return 1
		}
		n -= int64(len(b))
	}
	return 0
}

func lines(c *Proc) int {
	status := 0
	if args := c.Args(); len(args) > 2 {
		status, _ = strconv.Atoi(args[2])
	}
	for i, n := 0, int(number(c)); i < n; {
		var b []byte
		for ; i < n && len(b) < 1<<10; i++ {
			b = fmt.Appendf(b, "%07d\n", i)
		}
		text(c.Stdout(), string(b))
		text(c.Stderr(), string(b))
	}
	return status
}

func fill(c *Proc) int {
	const step = 64 << 10
	for n := number(c); n > 0; n -= step {
		if !c.Fill(min(n, step)) {
			return 1
		}
	}
	return 0
}

func files(c *Proc) int {
	for range number(c) {
		if !c.Open() {
			return 1
		}
	}
	return 0
}

func survivors(c *Proc) int {
	for range number(c) {
		if c.Spawn(func(ctx context.Context) { <-ctx.Done() }) == nil {
			return 1
		}
	}
	return 0
}

// forks starts children that live until it has tried to start them all, and
// ends after them, so that it leaves no survivors.
func forks(c *Proc) int {
	tried := make(chan struct{})
	var started []<-chan struct{}
	code := 0
	for range number(c) {
		done := c.Spawn(func(ctx context.Context) {
			select {
			case <-tried:
			case <-ctx.Done():
			}
		})
		if done == nil {
			code = 1
			continue
		}
		started = append(started, done)
	}
	close(tried)
	for _, done := range started {
		<-done
	}
	return code
}
