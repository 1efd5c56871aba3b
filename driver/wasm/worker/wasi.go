package worker

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	wsys "github.com/tetratelabs/wazero/sys"
)

const wasiModule = wasi_snapshot_preview1.ModuleName

// WASI preview 1 errno values (snapshots/preview1/docs.md, "errno").
const (
	errnoSuccess  = 0
	errnoFault    = 21
	errnoInval    = 28
	errnoOverflow = 61
)

// instantiateWASI registers the WASI functions. Arguments and environment come
// from the process that runs, not from the instance: so an instance can be
// made before the call that it will serve is known.
func instantiateWASI(ctx context.Context, r wazero.Runtime, current func() *process) error {
	b := r.NewHostModuleBuilder(wasiModule)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(b)
	two := []api.ValueType{api.ValueTypeI32, api.ValueTypeI32}
	errno := []api.ValueType{api.ValueTypeI32}
	list := func(name string, get func(*process) []string) {
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(_ context.Context, mod api.Module, stack []uint64) {
			stack[0] = writeSizes(mod.Memory(), get(current()), uint32(stack[0]), uint32(stack[1]))
		}), two, errno).Export(name + "_sizes_get")
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(_ context.Context, mod api.Module, stack []uint64) {
			stack[0] = writeStrings(mod.Memory(), get(current()), uint32(stack[0]), uint32(stack[1]))
		}), two, errno).Export(name + "_get")
	}
	list("args", func(p *process) []string { return p.args })
	list("environ", func(p *process) []string { return p.env })
	four := []api.ValueType{api.ValueTypeI32, api.ValueTypeI32, api.ValueTypeI32, api.ValueTypeI32}
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(_ context.Context, mod api.Module, stack []uint64) {
		stack[0] = pollOneoff(current(), mod.Memory(), uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3]))
	}), four, errno).Export("poll_oneoff")
	_, err := b.Instantiate(ctx)
	return err
}

// writeSizes implements args_sizes_get and environ_sizes_get.
func writeSizes(mem api.Memory, list []string, countPtr, sizePtr uint32) uint64 {
	total := 0
	for _, s := range list {
		total += len(s) + 1
	}
	if mem == nil || !mem.WriteUint32Le(countPtr, uint32(len(list))) || !mem.WriteUint32Le(sizePtr, uint32(total)) {
		return errnoFault
	}
	return errnoSuccess
}

// writeStrings implements args_get and environ_get: pointers at ptrs, the
// NUL-terminated strings at buf.
func writeStrings(mem api.Memory, list []string, ptrs, buf uint32) uint64 {
	if len(list) == 0 {
		return errnoSuccess
	}
	if mem == nil {
		return errnoFault
	}
	index, ok := mem.Read(ptrs, uint32(4*len(list)))
	if !ok {
		return errnoFault
	}
	for i, s := range list {
		to, ok := mem.Read(buf, uint32(len(s)+1))
		if !ok {
			return errnoFault
		}
		copy(to, s)
		to[len(s)] = 0
		binary.LittleEndian.PutUint32(index[4*i:], buf)
		buf += uint32(len(s) + 1)
	}
	return errnoSuccess
}

// moduleConfig gives an instance its view of the world. wazero's own defaults
// are a fake clock and fixed randomness.
func moduleConfig(current func() *process) wazero.ModuleConfig {
	return wazero.NewModuleConfig().
		WithName("").
		WithStartFunctions().
		WithStdin(currentStdin(current)).
		WithStdout(currentWriter(func() *stdout { return &current().stdout })).
		WithStderr(currentWriter(func() *stdout { return &current().stderr })).
		WithRandSource(rand.Reader).
		WithWalltime(walltime, wsys.ClockResolution(time.Microsecond)).
		WithNanotime(nanotime, wsys.ClockResolution(1)).
		WithNanosleep(func(ns int64) { current().sleep(time.Duration(ns)) }).
		WithOsyield(func() {})
}

var started = time.Now()

func walltime() (sec int64, nsec int32) {
	t := time.Now()
	return t.Unix(), int32(t.Nanosecond())
}

// nanotime begins at the start of the worker: monotonic time since boot would
// tell how long the host has been up.
func nanotime() int64 { return int64(time.Since(started)) }
