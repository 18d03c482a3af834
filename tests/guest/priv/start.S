/*
 * The beginning of every bare-metal test: from the PVH entry (32-bit protected mode, paging off) to
 * long mode with the first 4 GiB mapped one to one by 2 MiB supervisor pages, then main().
 * Also the 256 interrupt stubs and the way back from a trap that was expected.
 */
    .section .note.pvh, "a", @note
    .align 4
    .long 4, 8, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad _start

    .text
    .code32
    .globl _start
_start:
    cld
    mov $boot_stack_top, %esp
    movl $boot_pdpt + 3, boot_pml4
    xor %ecx, %ecx
1:  mov %ecx, %eax
    shl $12, %eax
    add $boot_pd + 3, %eax
    mov %eax, boot_pdpt(, %ecx, 8)
    inc %ecx
    cmp $4, %ecx
    jne 1b
    xor %ecx, %ecx
2:  mov %ecx, %eax
    shl $21, %eax
    or $0x83, %eax
    mov %eax, boot_pd(, %ecx, 8)
    inc %ecx
    cmp $2048, %ecx
    jne 2b
    mov $0x620, %eax /* PAE, OSFXSR, OSXMMEXCPT */
    mov %eax, %cr4
    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    mov $0x901, %eax /* SCE, LME, NXE */
    xor %edx, %edx
    wrmsr
    mov $0x80010033, %eax /* PG, WP, NE, ET, MP, PE */
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $start64

    .code64
start64:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $boot_stack_top, %rsp
    xor %ebp, %ebp
    call lib_main
3:  hlt
    jmp 3b

/* int save_point(void): 0; then 1 when resume_point() brings us back here. */
    .globl save_point
save_point:
    mov %rbx, point
    mov %rbp, point + 8
    mov %r12, point + 16
    mov %r13, point + 24
    mov %r14, point + 32
    mov %r15, point + 40
    lea 8(%rsp), %rax
    mov %rax, point + 48
    mov (%rsp), %rax
    mov %rax, point + 56
    pushf
    pop point + 64
    xor %eax, %eax
    ret

    .globl resume_point
resume_point:
    mov $0x10, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    mov point, %rbx
    mov point + 8, %rbp
    mov point + 16, %r12
    mov point + 24, %r13
    mov point + 32, %r14
    mov point + 40, %r15
    mov point + 48, %rsp
    push point + 64
    popf
    mov $1, %eax
    jmp *point + 56

/* void enter(const struct context *): registers and a mode by iretq; comes back as a trap. */
    .globl enter
enter:
    push 32(%rdi) /* ss */
    push 24(%rdi) /* rsp */
    push 16(%rdi) /* flags */
    push 8(%rdi)  /* cs */
    push (%rdi)   /* rip */
    mov 40(%rdi), %rax
    mov 48(%rdi), %rbx
    mov 56(%rdi), %rcx
    mov 64(%rdi), %rdx
    mov 72(%rdi), %rsi
    mov 80(%rdi), %rdi
    .globl enter_iret
enter_iret:
    iretq

    .align 16
    .globl stubs
stubs:
    vector = 0
    .rept 256
    .align 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    push $0
    .endif
    push $vector
    jmp common
    vector = vector + 1
    .endr

common:
    push %rax
    push %rbx
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %rbp
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    cld
    call trap_entry
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rbp
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rbx
    pop %rax
    add $16, %rsp
    iretq

    .data
    .align 16
    .globl gdt, gdt_pointer
gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* 08 code, 64-bit, ring 0 */
    .quad 0x00cf93000000ffff /* 10 data, ring 0 */
    .quad 0x00cffb000000ffff /* 18 code, 32-bit, ring 3 */
    .quad 0x00cff3000000ffff /* 20 data, ring 3 */
    .quad 0x00affb000000ffff /* 28 code, 64-bit, ring 3 */
    .quad 0x00cf9b000000ffff /* 30 code, 32-bit, ring 0 */
    .quad 0, 0               /* 38 TSS */
    .fill 23, 8, 0           /* 48 ... f8 for the tests */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .bss
    .align 4096
    .globl boot_pml4
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 4 * 4096
    .skip 65536
boot_stack_top:
    .lcomm point, 72
