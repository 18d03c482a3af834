/*
 * From long mode down to real mode and up again, and what real.c has run there.
 *
 * All between real_start and real_end is copied to the segment SEG before it runs; AT() is where something is in it.
 */
#include "modes.inc"

#define SEG 0x1000
#define AT(label) ((label) - real_start)
#define BELOW(label) (SEG * 16 + (label) - real_start)

    .text
    .code64
/* void real_run(const void *routine): calls it in real mode, interrupts off, ds = es = ss = cs. */
    .globl real_run
real_run:
    push_callee_saved
    sub $real_start, %rdi
    mov %di, BELOW(routine)
    save_long_mode
    lgdt real_gdt_pointer
    pushq $0x18
    pushq $down32
    lretq

    .code32
down32:
    leave_long_mode
    mov %cr4, %eax
    and $~0x20, %eax
    mov %eax, %cr4
    ljmp $0x20, $AT(down16)

up32:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    enter_long_mode up64

    .code64
up64:
    mov saved, %rsp
    lidt saved + 24
    lgdt gdt_pointer
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    cld
    pop_callee_saved
    ret

    .data
saved: .fill 5, 8, 0
real_gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* 08 code, 64-bit */
    .quad 0x00cf93000000ffff /* 10 data */
    .quad 0x00cf9b000000ffff /* 18 code, 32-bit */
    .quad 0x00009b000000ffff | SEG * 16 << 16 /* 20 code, 16-bit */
    .quad 0x000093000000ffff | SEG * 16 << 16 /* 28 data */
real_gdt_pointer:
    .word . - real_gdt - 1
    .quad real_gdt

    .balign 16
    .globl real_start, real_end, real_stubs, results
real_start:
    .code16
/* Here is what the end of the segment jumps to. */
wrapped:
    movw $0x77, AT(results) + 2
    ret

down16:
    mov $0x28, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov %ax, %fs
    mov %ax, %gs
    mov %cr0, %eax
    and $~1, %al
    mov %eax, %cr0
    ljmp $SEG, $AT(in_real)
in_real:
    mov %cs, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0xfff0, %esp
    lidtl AT(ivt_pointer)
    call *AT(routine)
/* as Linux has it in arch/x86/realmode/rm/trampoline_64.S */
    cli
    wbinvd
    ljmp $SEG, $AT(1f)
1:  mov %cs, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0xfff0, %sp
    lidtl AT(no_idt)
    lgdtl AT(low_gdt_pointer)
    mov $1, %ax
    lmsw %ax
    ljmpl $0x18, $up32

ivt_pointer:
    .word 0x3ff
    .long 0
no_idt:
    .word 0
    .long 0
low_gdt_pointer:
    .word 0x2f
    .long real_gdt
routine: .word 0
results: .fill 64, 2, 0

/* --- exceptions: TRY leaves in `caught` the vector, or ff, and what the frame says ------------------------------- */
    .globl caught
caught: .word 0, 0, 0, 0 /* vector, ip, cs, flags */
again: .word 0, 0        /* where to, with which sp */

    .balign 4
real_stubs: /* 8 bytes each */
    vector = 0
    .rept 32
    .balign 8
    pushw $vector
    jmp common
    vector = vector + 1
    .endr
common:
    popw %cs:AT(caught)
    popw %cs:AT(caught) + 2
    popw %cs:AT(caught) + 4
    popw %cs:AT(caught) + 6
    push %cs
    pop %ss
    mov %cs:AT(again) + 2, %sp
    push %cs
    pop %ds
    push %cs
    pop %es
    jmp *%cs:AT(again)

    .macro try instruction:vararg
    movw $0xff, %cs:AT(caught)
    movw $AT(9f), %cs:AT(again)
    mov %sp, %cs:AT(again) + 2
8:  \instruction
9:
    .endm
    .macro note from:req, n:req
    mov \from, %cs:AT(results) + 2 * (\n)
    .endm
#include "real-routines.S"
real_end:
