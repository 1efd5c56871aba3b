package drivertest

// Program names what the suite has a driver run. Its string is also the first
// argument of a test program that does them all.
type Program string

// The programs. Those of the first group every driver must have.
const (
	Exit0 Program = "exit0" // ends with status 0, without output
	Exit7 Program = "exit7" // ends with status 7, without output
	Echo  Program = "echo"  // copies stdin to stdout until its end, then exits 0
	Sleep Program = "sleep" // (seconds) sleeps, then exits 0
	Ready Program = "ready" // (seconds) writes "ready\n" to stdout at once, sleeps, exits 0
	Flood Program = "flood" // (bytes) writes so many bytes, whatever they are, to stdout, exits 0

	FloodErr  Program = "flooderr"  // (bytes) as Flood, to stderr
	Both      Program = "both"      // writes "out\n" to stdout and "err\n" to stderr
	Args      Program = "args"      // (any...) writes its arguments from this one on, a NUL after each
	Env       Program = "env"       // writes each entry of its environment, a NUL after each
	Cwd       Program = "cwd"       // writes its working directory, without a line end
	User      Program = "user"      // writes its numeric user id, or what ProcessSpec.User had; no line end
	Hostname  Program = "hostname"  // writes its host name, without a line end
	Stubborn  Program = "stubborn"  // (seconds) ignores SIGTERM, then does as Ready
	Spin      Program = "spin"      // computes for ever
	Hog       Program = "hog"       // (bytes) takes and touches so much memory, in pieces; exits 0, or fails when it is refused
	Crash     Program = "crash"     // aborts: SIGABRT, or a trap
	Fill      Program = "fill"      // (bytes) writes so much to files; exits 0, or 1 when there is no room
	Files     Program = "files"     // (n) has n files open at once; exits 0, or 1 when it is refused
	ReadDisk  Program = "readdisk"  // (bytes, n) reads so much of a file on a block device, past the caches of the host, in n reads; exits 0
	ReadOften Program = "readoften" // (bytes, n) as ReadDisk, and each read goes to the device
	Forks     Program = "forks"     // (n) has n children at once, which it then ends; exits 0, or 1 when one was refused
	Lines     Program = "lines"     // (n, status) writes n lines to stdout and the same to stderr, their numbers from 0 as "%07d\n"; ends with the status
	Serve     Program = "serve"     // (port) listens on it, writes "ready\n", sends back what each connection sends, to its end, for ever
	Connect   Program = "connect"   // (port, text) connects to it, sends the text and its end, writes what comes; exits 1 when nobody listens
	Survivors Program = "survivors" // (n) starts n children that sleep for a minute with its output open, and exits 0 at once
)

// Programs returns all programs.
func Programs() []Program {
	return []Program{
		Exit0, Exit7, Echo, Sleep, Ready, Flood, FloodErr, Both, Args, Env, Cwd, User, Hostname, Stubborn, Spin, Hog,
		Crash, Fill, Files, Forks, Survivors, Lines, ReadDisk, ReadOften, Serve, Connect,
	}
}

// required are the programs without which nothing can be checked.
var required = []Program{Exit0, Exit7, Echo, Sleep, Ready, Flood}
