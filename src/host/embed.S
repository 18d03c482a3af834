/* The program of waiting.c, as data of the guise command (child.c). */
    .section .rodata
    .globl waiting_program, waiting_program_size
    .balign 16
waiting_program:
    .incbin WAITING_PROGRAM_FILE
1:
    .balign 8
waiting_program_size:
    .quad 1b - waiting_program
    .section .note.GNU-stack,"",@progbits
