package main

import (
	"errors"
	"io"
	"net"
	"os"
)

func serve(port string) error {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	if err := write("ready\n"); err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(c, struct{ io.Reader }{c})
			c.Close()
		}()
	}
}

func connect(port, text string) error {
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	_, err = io.WriteString(c, text)
	err = errors.Join(err, c.(*net.TCPConn).CloseWrite())
	_, rerr := io.Copy(os.Stdout, c)
	return errors.Join(err, rerr)
}
