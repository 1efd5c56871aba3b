package firecracker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

// answering is a client of a server that reads a request and answers with these
// bytes, whatever it was.
func answering(answer []byte) *client {
	return newClient(func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			r := bufio.NewReader(theirs)
			length := 0
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if n, ok := strings.CutPrefix(line, "Content-Length: "); ok {
					for _, c := range strings.TrimSpace(n) {
						length = length*10 + int(c-'0')
					}
				}
				if line == "\r\n" {
					break
				}
			}
			if _, err := io.CopyN(io.Discard, r, int64(length)); err != nil {
				return
			}
			_, _ = theirs.Write(answer) // the client may have given up
		}()
		return ours, nil
	})
}

func TestAnswers(t *testing.T) {
	const none = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
	for name, c := range map[string]struct{ answer, want string }{
		"good":            {none, ""},
		"refused":         {"HTTP/1.1 400 \r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}", `status 400: "no"`},
		"escapes":         {"HTTP/1.1 400 \r\nContent-Length: 29\r\n\r\n{\"fault_message\":\"\\u001b[2J\"}", `\x1b`},
		"no JSON":         {"HTTP/1.1 400 \r\nContent-Length: 2\r\n\r\nno", "status 400"},
		"another success": {"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}", "status 200"},
		"a redirect":      {"HTTP/1.1 307 \r\nLocation: http://localhost/vm\r\nContent-Length: 0\r\n\r\n", "status 307"},
		"an unasked body": {"HTTP/1.1 204 \r\nContent-Length: 2\r\n\r\n{}", ""}, // 204 has none: HTTP does not read it
		"nothing":         {"", "EOF"},
		"garbage":         {"\x00\xff\x16\x03", "malformed"},
		"a giant":         {"HTTP/1.1 400 \r\nContent-Length: 99999999\r\n\r\n" + strings.Repeat("x", 1<<20), "more than"},
		"a cut body":      {"HTTP/1.1 400 \r\nContent-Length: 99\r\n\r\nx", "EOF"},
		"endless header":  {"HTTP/1.1 204 \r\n" + strings.Repeat("A: b\r\n", 1<<16), "header"},
		"one long line":   {"HTTP/1.1 204 \r\nA: " + strings.Repeat("b", 1<<20), "header"},
		"many interim":    {strings.Repeat("HTTP/1.1 100 \r\n\r\n", 100), "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cl := answering([]byte(c.answer))
			err := cl.call(ctx, "PUT", "/vsock", vsock{3, "v"})
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if err != nil && (len(err.Error()) > 2000 || strings.ContainsRune(err.Error(), 0x1b)) {
				t.Errorf("an error of %d bytes: %.300q", len(err.Error()), err)
			}
		})
	}
}

// TestSilence ends with the caller's context.
func TestSilence(t *testing.T) {
	c := newClient(func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		return ours, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.call(ctx, "PUT", "/entropy", entropy{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestVersion(t *testing.T) {
	for v, want := range map[string]error{
		"1.12.0": nil, "1.16.1": nil, "1.17.0-dev": nil, "v1.20.3": nil,
		"1.11.9": isolation.ErrUnsupported, "0.25.0": isolation.ErrUnsupported, "2.0.0": isolation.ErrUnsupported, "1.4.1": isolation.ErrUnsupported,
		"": isolation.ErrFailedPrecondition, "1.16": isolation.ErrFailedPrecondition, "1.16.1; rm": isolation.ErrFailedPrecondition, "99999.1.1": isolation.ErrFailedPrecondition,
	} {
		if err := checkVersion(v); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", v, err, want)
		}
	}
	cl := answering([]byte("HTTP/1.1 200 \r\nContent-Length: 32\r\n\r\n{\"firecracker_version\":\"1.16.1\"}"))
	if v, err := cl.version(t.Context()); v != "1.16.1" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
}

// talk is a connection whose other end answers with these bytes.
func talk(answer string) (net.Conn, *bytes.Buffer, chan struct{}) {
	ours, theirs := net.Pipe()
	said, done := new(bytes.Buffer), make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		b := make([]byte, 64)
		n, _ := theirs.Read(b) // what there is
		said.Write(b[:n])
		_, _ = theirs.Write([]byte(answer)) // the other end may not want it all
	}()
	return ours, said, done
}

func TestHandshake(t *testing.T) {
	// What follows the reply stays to be read.
	c, said, done := talk("OK 1073741824\nguest")
	if err := handshake(t.Context(), c, 1024); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(c)
	<-done
	if string(rest) != "guest" || err != nil || said.String() != "CONNECT 1024\n" {
		t.Errorf("%q, %v after %q", rest, err, said)
	}
	for _, answer := range []string{"OK \n", "OK x\n", "ok 1\n", "\n", "OK 1 2\n", strings.Repeat("1", 100), "OK 99999999999\n", "HTTP/1.1 400\n"} {
		c, _, done := talk(answer)
		if err := handshake(t.Context(), c, 1024); err == nil || errors.Is(err, errRefused) {
			t.Errorf("%q: %v", answer, err)
		}
		c.Close()
		<-done
	}
	for _, answer := range []string{"", "OK 10"} {
		c, _, done := talk(answer)
		if err := handshake(t.Context(), c, 1024); !errors.Is(err, errRefused) {
			t.Errorf("%q: %v", answer, err)
		}
		c.Close()
		<-done
	}
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 204 \r\n\r\n", "HTTP/1.1 400 \r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cl := answering(answer)
		err := cl.call(ctx, "PUT", "/entropy", entropy{})
		if ctx.Err() != nil {
			t.Error("it held the host up")
		}
		if err != nil && len(err.Error()) > 2000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
		if err == nil && !bytes.Contains(answer, []byte("204")) {
			t.Errorf("%q was taken for success", answer)
		}
	})
}

func FuzzHandshake(f *testing.F) {
	f.Add("OK 1\n")
	f.Add("OK 4294967295\nHELLO")
	f.Fuzz(func(t *testing.T, answer string) {
		r := strings.NewReader(answer)
		err := converse(struct {
			io.Reader
			io.Writer
		}{r, io.Discard}, 1024)
		line, _, _ := strings.Cut(answer, "\n")
		if err == nil && r.Len() != len(answer)-len(line)-1 {
			t.Errorf("%q: %d bytes are left", answer, r.Len())
		}
	})
}
