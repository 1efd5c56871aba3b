package qemu

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// RAM opens the file that the memory of a machine started from. QEMU is not
// trusted: what it has there must be a memory file that nobody can change.
func (m *Machine) RAM() (*os.File, error) {
	f, err := m.open(fmt.Sprint(fdRAM))
	if err != nil {
		return nil, err
	}
	const want = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK
	if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&want != want {
		f.Close()
		return nil, errors.Join(fmt.Errorf("the machine's memory is no sealed file: it has seals %#x", seals), os.NewSyscallError("fcntl", err))
	}
	return f, nil
}

// Find opens anew, for reading, the file that QEMU has open and is tells.
func (m *Machine) Find(is func(f *os.File) bool) (*os.File, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.PID))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		f, err := m.open(e.Name())
		if err != nil {
			continue // no file, or closed by now
		}
		if is(f) {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("QEMU does not have it open: %w", os.ErrNotExist)
}

func (m *Machine) open(fd string) (*os.File, error) {
	name := fmt.Sprintf("/proc/%d/fd/%s", m.PID, fd)
	if st, err := os.Stat(name); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("descriptor %s of QEMU is no file", fd), err)
	}
	return os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// area is a part of QEMU's address space that has memory of the guest's.
type area struct{ low, high, offset uint64 }

// Dirty calls put with what the guest of a stopped machine has written since
// it started, in pieces of whole pages with their offsets in its memory. b is put's
// until it returns.
func (m *Machine) Dirty(size int64, put func(offset int64, b []byte) error) error {
	base, err := m.RAM()
	if err != nil {
		return err
	}
	defer base.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(base.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", m.PID))
	if err != nil {
		return err
	}
	defer maps.Close()
	areas, err := areasOf(maps, fmt.Sprintf("%02x:%02x %d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino), uint64(size))
	if err != nil {
		return err
	}
	pages, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", m.PID))
	if err != nil {
		return err
	}
	defer pages.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", m.PID))
	if err != nil {
		return err
	}
	defer mem.Close()
	for _, a := range areas {
		if err := a.dirty(pages, mem, put); err != nil {
			return fmt.Errorf("the machine's memory: %w", err)
		}
	}
	return nil
}

// maxAreas bounds what QEMU can make of one mapping.
const maxAreas = 1 << 12

// areasOf finds where a file, by device and inode, is mapped privately
// (proc_pid_maps(5)): all of it, once.
func areasOf(maps io.Reader, file string, size uint64) ([]area, error) {
	var all []area
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var a area
		var perms, dev, inode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s %x %s %s", &a.low, &a.high, &perms, &a.offset, &dev, &inode); err != nil || dev+" "+inode != file {
			continue
		}
		if len(perms) != 4 || perms[3] != 'p' || len(all) == maxAreas {
			return nil, fmt.Errorf("the machine's memory is not mapped as it was: %s", perms)
		}
		all = append(all, a)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b area) int { return int(int64(a.offset) - int64(b.offset)) })
	at := uint64(0)
	for _, a := range all {
		if a.offset != at || a.high <= a.low || a.high-a.low > size-at {
			return nil, fmt.Errorf("the machine's memory is not mapped as it was: at %d of %d bytes", at, size)
		}
		at += a.high - a.low
	}
	if at != size {
		return nil, fmt.Errorf("the machine's memory is not mapped as it was: %d of %d bytes", at, size)
	}
	return all, nil
}

// Bits of an entry in pagemap (proc_pid_pagemap(5)).
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61
)

func (a area) dirty(pages, mem io.ReaderAt, put func(offset int64, b []byte) error) error {
	page := uint64(os.Getpagesize())
	entries := make([]byte, 8<<10)
	piece := make([]byte, 256<<10)
	// A run of pages is read in one.
	var from, n uint64
	flush := func() error {
		if n == 0 {
			return nil
		}
		b := piece[:n*page]
		if _, err := mem.ReadAt(b, int64(from)); err != nil {
			return err
		}
		n = 0
		return put(int64(from-a.low+a.offset), b)
	}
	for at := a.low; at < a.high; {
		b := entries[:min(uint64(len(entries)), (a.high-at)/page*8)]
		if _, err := pages.ReadAt(b, int64(at/page*8)); err != nil {
			return err
		}
		for ; len(b) > 0; b, at = b[8:], at+page {
			e := binary.NativeEndian.Uint64(b)
			// What is not the file's is a copy that a write made.
			if e&(pagePresent|pageSwapped) == 0 || e&pageOfFile != 0 {
				if err := flush(); err != nil {
					return err
				}
				continue
			}
			if n == 0 {
				from = at
			}
			if n++; n*page == uint64(len(piece)) {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}
