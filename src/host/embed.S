/* A program without a C library, as data of the guise command: NAME_program and NAME_program_size. */
    .section .rodata
    .globl PROGRAM, PROGRAM_SIZE
    .balign 16
PROGRAM:
    .incbin PROGRAM_FILE
1:
    .balign 8
PROGRAM_SIZE:
    .quad 1b - PROGRAM
    .section .note.GNU-stack,"",@progbits
