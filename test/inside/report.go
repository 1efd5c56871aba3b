//go:build linux

package inside

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// report reads what a machine wrote, prints a line for each job, and returns an
// error unless all jobs ended well and tested something.
func report(w io.Writer, name string, said []byte, jobs []Job) error {
	var errs []error
	done := false
	status := map[string]string{}
	output := map[string][]string{}
	now := ""
	for line := range bytes.Lines(said) {
		text := strings.TrimRight(string(line), "\r\n")
		f := strings.Fields(text)
		switch {
		case strings.HasPrefix(text, "axo-host "):
			fmt.Fprintf(w, "%s: Linux %s\n", name, strings.TrimPrefix(text, "axo-host "))
		case strings.HasPrefix(text, "axo-failed "):
			errs = append(errs, fmt.Errorf("the machine was not set up: %s", strings.TrimPrefix(text, "axo-failed ")))
		case len(f) == 2 && f[0] == "axo-start":
			now = f[1]
		case len(f) == 3 && f[0] == "axo-exit":
			status[f[1]], now = f[2], ""
		case text == "axo-done":
			done = true
		default:
			output[now] = append(output[now], text)
		}
	}
	for _, j := range jobs {
		passed, skipped := 0, 0
		for _, line := range output[j.Name] {
			line = strings.TrimLeft(line, " ")
			switch {
			case strings.HasPrefix(line, "--- PASS:"):
				passed++
			case strings.HasPrefix(line, "--- SKIP:"):
				skipped++
			}
		}
		s, ended := status[j.Name]
		fmt.Fprintf(w, "%s: %-8s status %s, %d passed, %d skipped\n", name, j.Name, map[bool]string{true: s, false: "none"}[ended], passed, skipped)
		if s == "0" && passed > 0 {
			continue
		}
		errs = append(errs, fmt.Errorf("%s: status %q, %d tests passed; its output:\n%s", j.Name, s, passed, failures(output[j.Name])))
	}
	if !done {
		errs = append(errs, errors.New("the machine did not come to an end"))
	}
	return errors.Join(errs...)
}

// failures is what matters of a test's verbose output.
func failures(lines []string) string {
	var keep []string
	for _, l := range lines {
		t := strings.TrimLeft(l, " ")
		if strings.HasPrefix(t, "=== ") || strings.HasPrefix(t, "--- PASS:") || strings.HasPrefix(t, "--- SKIP:") {
			continue
		}
		keep = append(keep, l)
	}
	if len(keep) > 200 {
		keep = append([]string{fmt.Sprintf("(%d lines left out)", len(keep)-200)}, keep[len(keep)-200:]...)
	}
	return strings.Join(keep, "\n")
}
