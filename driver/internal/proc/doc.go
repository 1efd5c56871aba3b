// Package proc is what drivers share whose programs run as processes, or act
// like them: sandboxes and their ids, streams that are counted and never block
// an end, limits that the host holds, and the verdict on what ended a program.
// An [Engine] adds how a sandbox is made and a program started.
package proc
