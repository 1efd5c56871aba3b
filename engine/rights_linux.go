package engine

import (
	"bytes"
	"os"
	"strings"
)

// rights tells what this process may do on this host, as far as probes rest on
// it: the same user may be in other namespaces, have fewer capabilities, or a
// seccomp filter (proc_pid_status(5), namespaces(7)).
func rights() string {
	var out []string
	for _, ns := range []string{"user", "mnt", "pid", "cgroup"} {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			link = ns
		}
		out = append(out, link)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return strings.Join(out, " ")
	}
	for line := range bytes.Lines(status) {
		name, v, _ := bytes.Cut(line, []byte(":"))
		switch string(name) {
		case "CapEff", "CapBnd", "NoNewPrivs", "Seccomp":
			out = append(out, string(name)+"="+string(bytes.TrimSpace(v)))
		}
	}
	return strings.Join(out, " ")
}
