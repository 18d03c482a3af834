/* The program that goes into every guest, as data of the guise command (agent/initrd.c). */
    .section .rodata
    .globl guest_program, guest_program_size
    .balign 16
guest_program:
    .incbin GUEST_PROGRAM
1:
    .balign 8
guest_program_size:
    .quad 1b - guest_program
    .section .note.GNU-stack,"",@progbits
