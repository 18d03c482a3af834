/*
 * Virtual-8086 mode and protected mode of 16 and 32 bits without long mode around them: v86.c sets up what the
 * descriptor tables hold.  Whatever ends a routine comes up again through a gate of the 32-bit IDT.
 */
#include "modes.inc"

    .text
    .code64
/* void legacy_run(void): to 32-bit protected mode, then by iret with `v86_frame` to wherever that leads. */
    .globl legacy_run
legacy_run:
    push_callee_saved
    save_long_mode
    lgdt legacy_gdt_pointer
    pushq $0x18
    pushq $down32
    lretq

    .code32
down32:
    leave_long_mode
    lidt legacy_idt_pointer
    andl $~0x200, legacy_gdt + 0x30 + 4 /* not busy */
    mov $0x30, %eax
    ltr %ax
    mov $frame, %esp
    mov $0x1111, %eax
    mov $0x2222, %ebx
    iretl

/* From a gate: a vector and perhaps an error code are on the stack of ring 0. */
caught32:
    mov %eax, %ss:caught_eax
    mov %ebx, %ss:caught_ebx
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %esp, caught_esp
    enter_long_mode up64

    .code64
up64:
    mov $0x10, %eax
    mov %eax, %ss
    mov saved, %rsp
    lidt saved + 24
    lgdt gdt_pointer
    mov $0x38, %eax
    andl $~0x200, gdt + 0x38 + 4
    ltr %ax
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    cld
    pop_callee_saved
    ret

    .code32
    .balign 16
    .globl stubs32
stubs32: /* 16 bytes each; the vectors with an error code push none of their own */
    vector = 0
    .rept 256
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
    .else
    pushl $0
    .endif
    pushl $vector
    jmp caught32
    vector = vector + 1
    .endr

    .data
    .globl legacy_gdt, legacy_idt_pointer, frame, caught_esp, caught_eax, caught_ebx
saved: .fill 5, 8, 0
caught_esp: .quad 0
caught_eax: .quad 0
caught_ebx: .quad 0
frame: .fill 9, 4, 0 /* eip cs eflags esp ss es ds fs gs */
    .balign 16
legacy_gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* 08 code, 64-bit */
    .quad 0x00cf93000000ffff /* 10 data */
    .quad 0x00cf9b000000ffff /* 18 code, 32-bit */
    .quad 0x0000fb010000ffff /* 20 code, 16-bit, ring 3, at 10000h */
    .quad 0x0000f3020000ffff /* 28 data, ring 3, at 20000h */
    .quad 0 /* 30 TSS */
    .quad 0x0040fb010000ffff /* 38 code, 32-bit, ring 3, at 10000h */
    .quad 0x0040f302000000ff /* 40 data, ring 3, 256 bytes at 20000h */
legacy_gdt_pointer:
    .word . - legacy_gdt - 1
    .quad legacy_gdt
legacy_idt_pointer:
    .word 256 * 8 - 1
    .quad 0

/* --- routines, copied to 10000h ---------------------------------------------------------------------------------- */
    .balign 16
    .globl low_start, low_end, v86_state, v86_stack, v86_bound, v86_halts, v86_vex, v86_sldt, v86_port, v86_flags, v86_far
    .globl small_state, small_far, small_limit, small_stack, based_state
low_start:
    .code16
v86_state: /* ds = 2000h, es = 2001h, ss = 3000h, sp = 0 */
    mov $0x5a5a, %ax
    mov %ax, 0x20
    mov %es:0x10, %bx
    push %bx
    push %cs
    pop %fs
    mov %fs:0, %ax
    int3
v86_stack:
    pusha
    enter $2, $1
    leave
    popa
    xor %ax, %ax
    mov %sp, %bx
    ud2
v86_bound:
    mov $0xffff, %bx
    mov (%bx), %ax
v86_halts:
    hlt
v86_vex:
    .byte 0xc5, 0xf8, 0x77
v86_sldt:
    .byte 0x0f, 0x00, 0xc0
v86_port:
    in $0x80, %al
v86_flags:
    pushf
    pop %bx
    cli
    pushf
    pop %ax
    int $0x41
v86_far:
    lcall $0x0ff0, $0x100 + 1f - low_start
    int3
1:  mov %cs, %bx
    lret

small_state: /* a 16-bit code segment at 10000h, data at 20000h */
    mov $0x77, %ax
    mov %ax, 0x40
    push $0x1234
    mov 0xfffe - 0x100, %ax
    mov %sp, %bx
    lea 0x1234(%bx), %bx
    int3
small_far:
    lcall $0x3b, $1f - low_start /* to 32-bit code */
    int3
    .code32
1:  mov %cs, %ebx
    lretw
    .code16
small_limit:
    mov $0xff, %bx
    mov $0x40 | 3, %ax
    mov %ax, %es
    mov %es:(%bx), %al
    mov %es:(%bx), %ax
small_stack:
    mov $1, %sp
    push %ax
    .code32
based_state: /* 32-bit code at 10000h on a 16-bit stack */
    push $0x1234
    call 1f
1:  pop %eax
    sub $1b - low_start, %eax
    mov %esp, %ebx
    int3
low_end:
