#include "textflag.h"

// func entry()
TEXT ·entry(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	MOVD	RSP, R0
	SUB	$32, RSP
	MOVD	R0, 8(RSP)
	CALL	·smallInit(SB)
	ADD	$32, RSP
	JMP	_rt0_arm64_linux(SB)
