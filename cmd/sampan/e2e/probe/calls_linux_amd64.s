#include "textflag.h"

// func int80(nr, arg uint32) int32
TEXT ·int80(SB), NOSPLIT, $0-12
	MOVL nr+0(FP), AX
	MOVL arg+4(FP), BX
	MOVQ BP, R12
	MOVL BX, CX
	MOVL BX, DX
	MOVL BX, SI
	MOVL BX, DI
	MOVL BX, BP
	INT  $0x80
	MOVQ R12, BP
	MOVL AX, ret+8(FP)
	RET
