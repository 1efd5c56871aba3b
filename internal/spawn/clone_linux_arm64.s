#include "textflag.h"

// func rawVM(flags, parentTID uintptr) (r uintptr)
//
// The return address is in a register, of which parent and child each have
// their own.
TEXT ·rawVM(SB),NOSPLIT|NOFRAME,$0-24
	MOVD	flags+0(FP), R0
	MOVD	$0, R1			// the same stack
	MOVD	parentTID+8(FP), R2
	MOVD	$0, R3
	MOVD	$0, R4
	MOVD	$220, R8		// SYS_clone
	SVC
	MOVD	R0, r+16(FP)
	RET

// func rawVM3(args, size uintptr) (r uintptr)
TEXT ·rawVM3(SB),NOSPLIT|NOFRAME,$0-24
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	$435, R8		// SYS_clone3
	SVC
	MOVD	R0, r+16(FP)
	RET
