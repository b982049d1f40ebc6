#include "textflag.h"

// func entry()
TEXT ·entry(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	MOVQ	$158, AX	// arch_prctl
	MOVQ	$0x1002, DI	// ARCH_SET_FS
	LEAQ	·thread+64(SB), SI
	SYSCALL
	MOVQ	SP, AX
	ANDQ	$~15, SP
	SUBQ	$16, SP
	MOVQ	AX, 0(SP)
	MOVQ	AX, 8(SP)
	CALL	·smallInit(SB)
	MOVQ	8(SP), SP
	JMP	_rt0_amd64_linux(SB)
