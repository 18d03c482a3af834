/* The program that goes into every guest, as data of the guise command (agent/initrd.c). */
    .section .rodata
    .balign 16
    .globl guest_program_start, guest_program_end
guest_program_start:
    .incbin GUEST_PROGRAM
guest_program_end:
    .section .note.GNU-stack,"",@progbits
