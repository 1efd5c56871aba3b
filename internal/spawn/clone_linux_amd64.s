#include "textflag.h"

// func rawVM(flags, parentTID uintptr) (r uintptr)
//
// The child returns first and calls on, over the place on the stack where the
// return address was. So it is kept in a register, of which each has its own.
TEXT ·rawVM(SB),NOSPLIT|NOFRAME,$0-24
	MOVQ	flags+0(FP), DI
	MOVQ	parentTID+8(FP), DX
	XORL	SI, SI			// the same stack
	XORL	R10, R10
	XORL	R8, R8
	XORL	R9, R9
	MOVL	$56, AX			// SYS_clone
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	MOVQ	AX, r+16(FP)
	RET

// func rawVM3(args, size uintptr) (r uintptr)
TEXT ·rawVM3(SB),NOSPLIT|NOFRAME,$0-24
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVL	$435, AX		// SYS_clone3
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	MOVQ	AX, r+16(FP)
	RET

// func rawApart3(args, size, c uintptr) (r uintptr)
//
// As rawApart.
TEXT ·rawApart3(SB),NOSPLIT|NOFRAME,$0-32
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	c+16(FP), R12
	MOVL	$435, AX		// SYS_clone3
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, r+24(FP)
	RET
child:
	MOVQ	R12, 0(SP)
	CALL	·runApart(SB)
	INT	$3

// func rawApart(flags, parentTID, stack, c uintptr) (r uintptr)
//
// The child calls runApart(c) on the stack, whose top has room for the argument.
TEXT ·rawApart(SB),NOSPLIT|NOFRAME,$0-40
	MOVQ	flags+0(FP), DI
	MOVQ	parentTID+8(FP), DX
	MOVQ	stack+16(FP), SI
	MOVQ	c+24(FP), R12
	XORL	R10, R10
	XORL	R8, R8
	XORL	R9, R9
	MOVL	$56, AX			// SYS_clone
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, r+32(FP)
	RET
child:
	MOVQ	R12, 0(SP)
	CALL	·runApart(SB)
	INT	$3

// func rawBeside(flags, parentTID, stack, c uintptr) (r uintptr)
//
// The same for runBeside(c).
TEXT ·rawBeside(SB),NOSPLIT|NOFRAME,$0-40
	MOVQ	flags+0(FP), DI
	MOVQ	parentTID+8(FP), DX
	MOVQ	stack+16(FP), SI
	MOVQ	c+24(FP), R12
	XORL	R10, R10
	XORL	R8, R8
	XORL	R9, R9
	MOVL	$56, AX			// SYS_clone
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, r+32(FP)
	RET
child:
	MOVQ	R12, 0(SP)
	CALL	·runBeside(SB)
	INT	$3
