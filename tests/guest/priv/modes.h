/*
 * Out of long mode and into it again, for the assembly of the checks that run code of other modes.  `saved` has the stack
 * pointer, CR3, CR4 and the IDT of long mode.
 */

/* At the beginning of a function in long mode. */
.macro save_long_mode
    mov %rsp, saved
    mov %cr3, %rax
    mov %rax, saved + 8
    mov %cr4, %rax
    mov %rax, saved + 16
    sidt saved + 24
.endm

.macro push_callee_saved
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
.endm

.macro pop_callee_saved
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
.endm

/* In 32-bit code of long mode, with flat data in selector 10: no paging, which is out of long mode. */
.macro leave_long_mode
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x100, %eax
    wrmsr
.endm

/* In 32-bit code without paging, flat data in ds; 64-bit code is in selector 8. */
.macro enter_long_mode target
    mov saved + 16, %eax
    mov %eax, %cr4
    mov saved + 8, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    ljmp $0x08, $\target
.endm
