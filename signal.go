package isolation

import (
	"fmt"
	"strconv"
	"strings"
)

// Signal is a signal by its Linux number on x86-64 and arm64, on every host:
// what runs inside a sandbox is Linux or WASM.
type Signal int

// Signals that callers send or see most.
const (
	SIGHUP  Signal = 1
	SIGINT  Signal = 2
	SIGQUIT Signal = 3
	SIGABRT Signal = 6
	SIGKILL Signal = 9
	SIGUSR1 Signal = 10
	SIGSEGV Signal = 11
	SIGUSR2 Signal = 12
	SIGPIPE Signal = 13
	SIGTERM Signal = 15
)

const maxSignal = 64 // signal(7)

var signalNames = [...]string{
	1: "HUP", 2: "INT", 3: "QUIT", 4: "ILL", 5: "TRAP", 6: "ABRT", 7: "BUS", 8: "FPE", 9: "KILL", 10: "USR1",
	11: "SEGV", 12: "USR2", 13: "PIPE", 14: "ALRM", 15: "TERM", 16: "STKFLT", 17: "CHLD", 18: "CONT", 19: "STOP",
	20: "TSTP", 21: "TTIN", 22: "TTOU", 23: "URG", 24: "XCPU", 25: "XFSZ", 26: "VTALRM", 27: "PROF", 28: "WINCH",
	29: "IO", 30: "PWR", 31: "SYS",
}

// Valid reports whether s is a signal of Linux.
func (s Signal) Valid() bool { return s >= 1 && s <= maxSignal }

// Ends reports whether the default action of s is to end the process
// (signal(7)).
func (s Signal) Ends() bool {
	switch s {
	case 17, 18, 19, 20, 21, 22, 23, 28:
		return false
	}
	return s.Valid()
}

// String returns the name, "SIGTERM", or "signal 40" for one without.
func (s Signal) String() string {
	if s > 0 && int(s) < len(signalNames) {
		return "SIG" + signalNames[s]
	}
	return "signal " + strconv.Itoa(int(s))
}

// ParseSignal reads "SIGTERM", "TERM", "term" or "15". Its error is of class
// [ErrInvalidArgument].
func ParseSignal(v string) (Signal, error) {
	if n, err := strconv.Atoi(v); err == nil && Signal(n).Valid() {
		return Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(v), "SIG")
	for n, s := range signalNames {
		if s != "" && s == name {
			return Signal(n), nil
		}
	}
	return 0, fmt.Errorf("signal %q is not known: %w", v, ErrInvalidArgument)
}
