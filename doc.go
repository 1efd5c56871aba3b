// Package isolation is the contract of a tiered isolation engine for the tool
// code that AI agents call: what a sandbox is, what a run asks for, and what
// its result says. It imports the standard library only; everything that can
// run a sandbox (the tiers, the warm pool, a remote client) is a [Driver] in a
// package of its own.
//
// # Vocabulary
//
// A [Tier] is a strength of isolation: [TierNone], [TierWASM], [TierOCI],
// [TierMicroVM]. An engine is one implementation of a tier ("wazero",
// "process"). A [Requirement] is what the caller wants to run; [Select] names
// its ideal tier. A [Driver] is one engine on this host. It makes sandboxes
// from a [Spec]; a [Sandbox] runs processes from a [ProcessSpec]; a [Process]
// ends with an [Exit]. Words of the life cycle and of the process are those of
// the OCI runtime specification; words for modules are those of WASI.
//
// # Life cycle
//
//	Driver.Create -> Sandbox (created)
//	Sandbox.Exec  -> Process (running) ... Process.Wait -> Exit
//	Sandbox.Delete -> everything that still runs is ended, nothing is left
//
// A sandbox may run any number of processes, one after another or at once.
// Delete is legal from every state and any number of times.
//
// # One story
//
//	sb, err := driver.Create(ctx, "job-1", isolation.Spec{
//		Requirement: isolation.WasmCompiled,
//		Module:      isolation.Module{Path: "tool.wasm"},
//		Resources:   isolation.Resources{MemoryBytes: 64 << 20},
//	})
//	if err != nil {
//		return err // the engine could not: nothing is left behind
//	}
//	defer sb.Delete(context.WithoutCancel(ctx))
//	p, err := sb.Exec(ctx, isolation.ProcessSpec{
//		Args:   []string{"tool"},
//		Limits: isolation.Limits{Wall: 2 * time.Second},
//	}, isolation.Stdio{Stdin: in, Stdout: &out})
//	if err != nil {
//		return err
//	}
//	exit, err := p.Wait(ctx)
//	// err: the wait was cut short, or the outcome is unknown.
//	// exit: what the program did, also when it failed.
//
// # Two kinds of failure
//
// A program that fails is an [Exit]; an engine that could not do its work is
// an error. Every error of a driver belongs to one of nine classes (see
// [ErrNotFound] and its siblings) and a failed run says by [Outcome] whether
// the program may have run.
//
// # Contexts and concurrency
//
// A context bounds the call that takes it, never the thing that the call made:
// a canceled context does not end a sandbox or a process. Time limits of a
// process are data ([Limits]) and the host side enforces them. All methods of
// Driver, Sandbox and Process are safe for concurrent use.
package isolation
