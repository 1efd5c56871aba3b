package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the two servers of the host answer.
const (
	allowedWord   = "the allowed server"
	forbiddenWord = "the forbidden server"
)

// proxyAddress is where a sandbox's proxy is.
const proxyAddress = "127.0.0.1:3128"

// through sends bytes to the proxy and returns what comes back.
func through(text string) (string, error) {
	c, err := net.DialTimeout("tcp", proxyAddress, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	// An answer, and what is asked for behind it, has its own end.
	b, err := io.ReadAll(io.LimitReader(c, 1<<20))
	if errors.Is(err, unix.ECONNRESET) {
		err = nil
	}
	return string(b), err
}

// egress tries to get by the proxy, and past it, to what its rules do not allow.
func egress() {
	allowed, forbidden := strconv.Itoa(target.Allowed), strconv.Itoa(target.Forbidden)
	get := func(host string) string { return "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n" }
	connect := func(to string) string { return "CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n\r\n" }
	try := func(thing, word, text string) {
		answer, err := through(text)
		line, _, _ := strings.Cut(answer, "\r\n")
		switch {
		case strings.Contains(answer, word):
			escaped(thing, "it has answered")
		case err != nil:
			held(thing, err)
		default:
			held(thing, fmt.Sprintf("%q", line))
		}
	}
	try("the allowed name", allowedWord, connect("localhost:"+allowed)+get("localhost"))
	try("the allowed name by a URL", allowedWord, "GET http://localhost:"+allowed+"/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

	for thing, to := range map[string]string{
		"another port": "localhost:" + forbidden, "its address": "127.0.0.1:" + forbidden, "an address in IPv6": "[::1]:" + forbidden,
		"an address of IPv4 in IPv6": "[::ffff:127.0.0.1]:" + forbidden, "an address as a number": "2130706433:" + forbidden,
		"an address in hexadecimal": "0x7f000001:" + forbidden, "a short address": "127.1:" + forbidden, "a name with a dot": "localhost.:" + forbidden,
		"another name": "localhost.localdomain:" + forbidden, "a name in capitals": "LOCALHOST:" + forbidden,
	} {
		try(thing, forbiddenWord, connect(to)+get("localhost"))
		try(thing+" by a URL", forbiddenWord, "GET http://"+to+"/ HTTP/1.1\r\nHost: localhost:"+allowed+"\r\nConnection: close\r\n\r\n")
	}
	// A second destination in one request.
	for thing, text := range map[string]string{
		"a Host header":             "CONNECT localhost:" + allowed + " HTTP/1.1\r\nHost: localhost:" + forbidden + "\r\n\r\n" + get("localhost:"+forbidden),
		"a user in a URL":           "GET http://localhost:" + allowed + "@127.0.0.1:" + forbidden + "/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"a request behind a tunnel": connect("localhost:"+allowed) + connect("localhost:"+forbidden) + get("localhost"),
		"two targets":               "CONNECT localhost:" + allowed + " localhost:" + forbidden + " HTTP/1.1\r\n\r\n" + get("localhost"),
		"a body":                    "POST http://localhost:" + allowed + "/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + "GET http://localhost:" + forbidden + "/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"a body of CONNECT":         "CONNECT localhost:" + allowed + " HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n" + connect("localhost:"+forbidden) + get("localhost"),
		"a line end":                "GET http://localhost:" + allowed + "/%0d%0aHost:%20localhost:" + forbidden + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"a bare line feed":          "GET http://localhost:" + allowed + "/ HTTP/1.1\nHost: x\n\nCONNECT localhost:" + forbidden + " HTTP/1.1\n\n" + get("localhost"),
	} {
		try(thing, forbiddenWord, text)
	}
	direct(allowed)
}

// direct goes past the proxy.
func direct(port string) {
	for _, a := range []string{"127.0.0.1", "::1"} {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(a, port), time.Second)
		if err == nil {
			c.Close()
		}
		verdict("tcp to "+a+" past the proxy", err)
	}
	for _, network := range []string{"tcp", "udp"} {
		// With a route to it connect(2) of UDP succeeds, and sends nothing.
		c, err := net.DialTimeout(network, "192.0.2.1:53", time.Second)
		switch {
		case err == nil:
			c.Close()
			escaped(network+" to another network", "there is a route")
		case errors.Is(err, unix.ENETUNREACH) || refused(err):
			held(network+" to another network", err)
		case target.Control:
			absent(network+" to another network", err)
		default:
			escaped(network+" to another network", "%v: something was sent", err)
		}
	}
}
