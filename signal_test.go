package isolation

import (
	"errors"
	"strconv"
	"strings"
	"testing"
)

func TestSignalNames(t *testing.T) {
	for n := Signal(1); n <= 31; n++ {
		name := n.String()
		if !strings.HasPrefix(name, "SIG") || !n.Valid() {
			t.Errorf("signal %d is called %q", int(n), name)
		}
		for _, s := range []string{name, strings.ToLower(name), strings.TrimPrefix(name, "SIG"), strconv.Itoa(int(n))} {
			if got, err := ParseSignal(s); err != nil || got != n {
				t.Errorf("%q is read as %v, %v, want %v", s, got, err, n)
			}
		}
	}
	for n, name := range map[Signal]string{
		SIGHUP: "SIGHUP", SIGINT: "SIGINT", SIGQUIT: "SIGQUIT", SIGABRT: "SIGABRT", SIGKILL: "SIGKILL", SIGUSR1: "SIGUSR1",
		SIGSEGV: "SIGSEGV", SIGUSR2: "SIGUSR2", SIGPIPE: "SIGPIPE", SIGTERM: "SIGTERM", 40: "signal 40", 0: "signal 0", -1: "signal -1",
	} {
		if n.String() != name {
			t.Errorf("signal %d is called %q, want %q", int(n), n, name)
		}
	}
}

func TestSignalBad(t *testing.T) {
	for _, s := range []string{"", "SIG", "sig", "KILLER", "SIGSIGKILL", "0", "-9", "65", "9.0", " 9", "99999999999999999999"} {
		if got, err := ParseSignal(s); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%q is read as %v, %v", s, got, err)
		}
	}
	if got, err := ParseSignal("64"); err != nil || got != 64 {
		t.Errorf("64 is read as %v, %v", got, err)
	}
}

func TestSignalEnds(t *testing.T) {
	// signal(7): what these do by default is not to end.
	stays := map[Signal]bool{17: true, 18: true, 19: true, 20: true, 21: true, 22: true, 23: true, 28: true}
	for n := Signal(-1); n <= 66; n++ {
		valid := n >= 1 && n <= 64
		if n.Valid() != valid || n.Ends() != (valid && !stays[n]) {
			t.Errorf("signal %d: valid %v, ends %v", int(n), n.Valid(), n.Ends())
		}
	}
}
