package qemu

import "fmt"

// The descriptors of QEMU beside the standard ones.
const (
	fdGuest = 3 + iota // listening socket: the guest's channel
	fdQMP              // listening socket: the monitor
	fdRAM              // file with the guest's memory
	fdDisk
	fdData // disk of copied directories, or the null device
	fdConsole
	fdState            // restore: the devices' state
	fdKernel = fdState // boot
	fdInitrd = fdState + 1
)

// args is QEMU's command line. The devices and their order are part of a
// snapshot.
func (s Shape) args(c *Config) []string {
	share := "off"
	if c.Boot != nil {
		share = "on" // the snapshot's memory is what is in the file
	}
	accel, cpu := KVM, "host"
	if s.Accel == TCG {
		accel, cpu = fmt.Sprintf("tcg,thread=single,tb-size=%d", jitMiB), "max"
	}
	// Its place is taken by a disk that is all zeroes: the guest knows one size.
	data := fmt.Sprintf("if=none,id=data,driver=null-co,size=%d,read-zeroes=on,readonly=on", DataBytes)
	if c.Data != nil {
		data = fmt.Sprintf("if=none,id=data,format=raw,readonly=on,file.locking=off,file=/dev/fdset/%d", fdsetData)
	}
	a := []string{
		"qemu", "-M", "microvm,memory-backend=ram", "-accel", accel, "-cpu", cpu,
		"-m", fmt.Sprint(s.MemoryMiB), "-smp", fmt.Sprint(s.CPUs),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=/proc/self/fd/%d,share=%s", s.MemoryMiB, fdRAM, share),
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-chardev", "file,id=console,append=on,path=/dev/fdset/2", "-add-fd", fmt.Sprintf("fd=%d,set=2", fdConsole), "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=guest,fd=%d,server=on,wait=off", fdGuest),
		"-device", "virtio-serial-device,max_ports=2", "-device", "virtserialport,chardev=guest,nr=1,name=" + Port,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-add-fd", fmt.Sprintf("fd=%d,set=1", fdDisk),
		"-drive", "if=none,id=root,format=raw,readonly=on,file.locking=off,file=/dev/fdset/1", "-device", "virtio-blk-device,drive=root",
		"-drive", data, "-device", "virtio-blk-device,drive=data",
		// No new programs, no change of user, no limits raised.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
	if c.Data != nil {
		a = append(a, "-add-fd", fmt.Sprintf("fd=%d,set=%d", fdData, fdsetData))
	}
	if c.Boot != nil {
		return append(a, "-kernel", fmt.Sprintf("/proc/self/fd/%d", fdKernel), "-initrd", fmt.Sprintf("/proc/self/fd/%d", fdInitrd), "-append", c.Boot.Append)
	}
	return append(a, "-incoming", "defer")
}

// DataBytes is the size of Config.Data.
const DataBytes = 64 << 30

// fdsetData is the set by which QEMU finds that disk.
const fdsetData = 4

// Port is the name of the guest's channel, a port of virtio-serial.
const Port = "axo"
