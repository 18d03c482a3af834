/*
 * From long mode down to real mode and up again, and what real.c has run there.
 *
 * All between real_start and real_end is copied to the segment SEG before it runs; AT() is where something is in it.
 */
#define SEG 0x1000
#define AT(label) ((label) - real_start)
#define BELOW(label) (SEG * 16 + (label) - real_start)

    .text
    .code64
/* void real_run(const void *routine): calls it in real mode, interrupts off, ds = es = ss = cs. */
    .globl real_run
real_run:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    sub $real_start, %rdi
    mov %di, BELOW(routine)
    mov %rsp, saved
    mov %cr3, %rax
    mov %rax, saved + 8
    mov %cr4, %rax
    mov %rax, saved + 16
    sidt saved + 24
    lgdt real_gdt_pointer
    pushq $0x18
    pushq $down32
    lretq

    .code32
down32:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %cr0, %eax
    and $0x7fffffff, %eax /* no paging: out of long mode */
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x100, %eax
    wrmsr
    mov %cr4, %eax
    and $~0x20, %eax
    mov %eax, %cr4
    ljmp $0x20, $AT(down16)

up32:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
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
    ljmp $0x08, $up64

    .code64
up64:
    mov saved, %rsp
    lidt saved + 24
    lgdt gdt_pointer
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    cld
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
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
/* --- routines ------------------------------------------------------------------------------------------------------ */
    .globl real_basics
real_basics:
    smsw %ax
    note %ax, 0
    note %cs, 1
    mov %sp, %ax
    note %ax, 2
    mov $0x12345678, %eax
    add $0x11111111, %eax
    mov %eax, AT(results) + 8
    mov $0xffff1234, %ebx
    mov $0x0fff, %bx /* the upper half stays */
    add $0x0001, %bx
    mov %ebx, AT(results) + 12
    mov $0x00010000 + AT(results) + 10, %esi
    mov $0xfffffff0, %edi
    mov 2(%si), %ax /* si, not esi */
    note %ax, 8
    mov $AT(results), %ebx
    mov $2, %ecx
    mov (%ebx, %ecx, 4), %ax
    note %ax, 9
    movw $0, AT(results) + 20
    mov $0x8001, %ax
    imul $3, %ax, %dx
    note %dx, 11
    movzbl %al, %edx
    note %dx, 12
    xor %dx, %dx
    mov $0x1234, %ax
    mov $0x10, %cx
    div %cx
    note %ax, 13
    note %dx, 14
    cwd
    note %dx, 15
    mov $0x80, %al
    cbw
    note %ax, 16
    cwde
    shr $16, %eax
    note %ax, 17
    ret

    .globl real_segments
real_segments:
    mov $0x2000, %ax
    mov %ax, %ds
    movw $0xbeef, 0x10
    mov $0x2001, %ax
    mov %ax, %es
    mov %es:0, %bx
    note %bx, 0
    push $0x1fff
    pop %fs
    mov %fs:0x20, %bx
    note %bx, 1
    note %fs, 2
    movw $4, %es:0x20
    movw $0x2002, %es:0x22
    movl $0x2000fffe, %es:0x30
    les %es:0x20, %di
    note %di, 3
    note %es, 4
    movw $0xcafe, %es:(%di) /* 0x20024 */
    lds 0x40, %si
    note %si, 5
    note %ds, 6
    push %cs
    pop %ds
    lgs AT(far_pointer), %bx
    mov %gs:(%bx), %ax
    note %ax, 7
    lss AT(new_stack), %sp
    push $0x5151
    mov $0x3000, %ax
    mov %ax, %ds
    mov 0x0ffe, %ax
    note %ax, 8
    push %cs
    pop %ds
    lss AT(old_stack), %sp
    ret
far_pointer: .word 0x0014, 0x2001
new_stack: .word 0x1000, 0x3000
old_stack: .word 0xffee, SEG

    .globl real_far
real_far:
    lcall $SEG - 0x10, $AT(in_other) + 0x100
    note %bx, 0
    lcallw *AT(pointer16)
    note %bx, 1
    lcalll *AT(pointer32)
    note %bx, 2
    note %sp, 3
    push $0x1111
    push $0x2222
    lcall $SEG + 1, $AT(cleans) - 0x10
    note %sp, 4
    ljmp *AT(pointer_out)
1:  movw $0xbad, AT(results) + 10
    ret
in_other:
    mov %cs, %bx
    lret
in_other32:
    mov %cs, %bx
    lretl
cleans:
    lret $4
out:
    mov %cs, AT(results) + 10 /* by ds: cs is another */
    ljmp $SEG, $AT(home)
home:
    pushf
    push %cs
    push $AT(2f)
    iret
2:  pushfl
    pushl $SEG
    pushl $AT(3f)
    iretl
3:  note %sp, 6
    ret
pointer16: .word AT(in_other) + 0x200, SEG - 0x20
pointer32:
    .long AT(in_other32) + 0x300
    .word SEG - 0x30
pointer_out: .word AT(out) + 0x40, SEG - 4

    .globl real_interrupts
real_interrupts:
    sti
    mov $0x1234, %ax
    int $0x40
    cli
    note %ax, 0
    ret
    .globl int40
int40:
    push %bp
    mov %sp, %bp
    mov 2(%bp), %bx
    sub $AT(real_interrupts), %bx
    note %bx, 1
    mov 4(%bp), %bx
    note %bx, 2
    mov 6(%bp), %bx
    note %bx, 3
    pushf
    pop %bx
    note %bx, 4
    orw $1, 6(%bp) /* carry for the caller */
    pop %bp
    mov $0x4321, %ax
    iret

/* Each: the vector, and where the frame's ip points behind the instruction's beginning. */
    .macro probe n:req, instruction:vararg
    try \instruction
    mov AT(caught), %ax
    note %ax, 2*\n
    mov AT(caught) + 2, %ax
    sub $AT(8b), %ax
    note %ax, 2*\n+1
    .endm
    .globl real_exceptions
real_exceptions:
    probe 0, ud2
    xor %cx, %cx
    probe 1, div %cx
    mov $0xffff, %bx
    probe 2, mov (%bx), %ax
    mov $0xffff, %bp
    probe 3, mov (%bp), %ax
    probe 4, movb $1, (%bx)
    probe 5, int3
    mov $0x7f, %al
    add $1, %al
    probe 6, into
    mov $9, %ax
    probe 7, bound %ax, AT(bounds)
    probe 8, .byte 0xc5, 0xf8, 0x77 /* vzeroupper: not in real mode */
    probe 9, .byte 0x0f, 0x00, 0xc0 /* sldt %ax */
    mov $0x10000, %ebx
    probe 10, addr32 mov (%ebx), %ax
    probe 11, .byte 0xf0, 0x90 /* lock nop */
    probe 12, int $0x0b
    probe 13, .byte 0x66, 0xe9, 0x00, 0x00, 0x01, 0x00 /* jmp beyond the segment's end */
    probe 14, .byte 0x0f, 0x00, 0xd8 /* ltr %ax */
    probe 15, .byte 0x63, 0xc0 /* arpl */
    ret
bounds: .word 1, 8

    .globl real_strings
real_strings:
    mov $0x2000, %ax
    mov %ax, %es
    mov %ax, %ds
    cld
    xor %di, %di
    mov $0x55aa, %ax
    xor %cx, %cx
    dec %cx
    rep stosw /* round the segment: 65535 words */
    note %di, 0
    note %cx, 1
    movw $0x1111, 0xfffe
    movw $0x2222, 0
    movw $0x3333, 2
    mov $0xfffe, %si
    mov $0x0100, %di
    mov $0xabcd0003, %ecx
    rep movsw
    note %si, 2
    note %cx, 3
    shr $16, %ecx
    note %cx, 4
    mov 0x100, %ax
    note %ax, 5
    mov 0x104, %ax
    note %ax, 6
    std
    mov $2, %si
    mov $0x204, %di
    mov $3, %cx
    rep movsw
    cld
    note %si, 7
    mov 0x200, %ax
    note %ax, 8
    mov $0xfffe, %si
    mov $0x0100, %di
    movw $0x7777, 0x106
    mov $9, %cx
    repe cmpsw
    note %cx, 9
    mov $0x100, %di
    mov $0x33, %al
    mov $20, %cx
    repne scasb
    note %di, 10
    mov $0x100, %esi
    mov $0x300, %edi
    mov $2, %ecx
    addr32 rep movsw
    mov 0x302, %ax
    note %ax, 11
    xor %ax, %ax
    mov $0x102, %si
    lodsw
    note %ax, 12
    mov $0x104, %bx
    mov $1, %al
    xlat
    xor %ah, %ah
    note %ax, 13
    push %cs
    pop %ds
    push %cs
    pop %es
    ret

    .globl real_stack
real_stack:
    mov $0x3000, %ax
    mov %ax, %ss
    mov $0x56780000, %esp /* wraps below; the upper half stays */
    push $0x1234
    note %sp, 0
    mov %esp, AT(results) + 4
    push $0x5678
    movl $0x9abcdef0, AT(results) + 8
    pushl AT(results) + 8
    mov %ss:0xfff8, %ax
    note %ax, 6
    pop %ebx
    mov %ebx, AT(results) + 16
    mov $8, %sp
    mov $0xaaaa, %ax
    mov $0xdddd, %di
    pusha
    note %sp, 10
    mov %ss:6, %ax
    note %ax, 11
    mov %ss:0xfff8, %ax
    note %ax, 12
    popa
    note %sp, 13
    mov $0xbbbb0006, %ebp
    enter $4, $0
    note %bp, 14
    note %sp, 15
    leave
    note %bp, 16
    note %sp, 17
    mov $2, %sp
    call 1f
    note %sp, 19
    jmp 2f
1:  note %sp, 18
    ret $4
2:  mov $0xfffe, %sp
    push %sp
    pop %ax
    note %ax, 20
    mov $0x100, %sp
    pushf
    pushfl
    note %sp, 21
    popfl
    popf
    push $0x7788
    pop %ss:0x200
    mov %ss:0x200, %ax
    note %ax, 22
    mov $0x1111, %bx
    push %bx
    mov $0x40, %sp
    push $0x2222
    mov %sp, %bp
    mov (%bp), %ax
    note %ax, 23
    push %cs
    pop %ss
    mov $0xffee, %esp
    ret

    .globl real_branches
real_branches:
    movw $0, AT(results) + 2
    push $AT(1f)
    movb $0xe9, 0xfffd /* jmp to 0: from the end of the segment round to its beginning */
    movw $AT(wrapped), 0xfffe
    mov $0xfffd, %ax
    movw $0xffd0, %cx
    jmp *%ax
1:  mov $3, %cx
    xor %ax, %ax
2:  inc %ax
    loop 2b
    note %ax, 0
    mov $0x10000, %ecx
    jcxz 3f
    movw $0xbad, AT(results)
3:  jecxz 4f
    note %cx, 2
4:  call 5f
5:  pop %bx
    sub $AT(5b), %bx
    note %bx, 3
    calll 6f
6:  pop %ebx
    sub $AT(6b), %ebx
    note %bx, 4
    mov $AT(7f), %ax
    push %ax
    ret
7:  mov $0x10003, %ecx
    xor %ax, %ax
8:  inc %ax
    addr32 loop 9f
9:  cmp $0xffff, %cx
    jne 10f
10: note %cx, 5
    ret

/* Unreal mode: a segment that protected mode has left without a limit. */
    .globl real_unreal
real_unreal:
    lgdtl AT(low_gdt_pointer)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    mov $0x10, %bx
    mov %bx, %ds
    and $~1, %al
    mov %eax, %cr0
    xor %ax, %ax
    mov %ax, %ds
    mov $real_gdt, %ebx
    mov %ds:8(%ebx), %eax
    mov %eax, %cs:AT(results)
    push %cs
    pop %ds
    ret

/* A tick of the timer wakes HLT. */
    .globl real_hlt
real_hlt:
    mov $0x11, %al
    out %al, $0x20
    mov $0x50, %al /* vectors 50h ... */
    out %al, $0x21
    mov $4, %al
    out %al, $0x21
    mov $1, %al
    out %al, $0x21
    mov $0xfe, %al
    out %al, $0x21
    mov $0x30, %al /* one tick */
    out %al, $0x43
    mov $0x00, %al
    out %al, $0x40
    mov $0x10, %al
    out %al, $0x40
    movw $0, AT(results)
1:  sti
    hlt
    cli
    cmpw $0, AT(results)
    je 1b
    mov $0xff, %al
    out %al, $0x21
    ret
    .globl tick
tick:
    push %ax
    incw %cs:AT(results)
    mov $0x20, %al
    out %al, $0x20
    pop %ax
    iret

/* What Linux's verify_cpu does with the flags, and what else asks the processor. */
    .globl real_system
real_system:
    pushfl
    pop %eax
    mov %eax, %ebx
    xor $0x200000, %eax
    push %eax
    popfl
    pushfl
    pop %eax
    xor %ebx, %eax
    mov %eax, AT(results)
    push %ebx
    popfl
    mov $0, %eax
    cpuid
    mov %ebx, AT(results) + 4
    mov $0xc0000080, %ecx
    rdmsr
    mov %eax, AT(results) + 8
    sidtl AT(results) + 12
    sgdtw AT(results) + 20
    mov %cr0, %eax
    mov %eax, AT(results) + 28
    fninit
    fldpi
    fistps AT(results) + 32
    fnstcw AT(results) + 34
    rdtsc
    mov %eax, AT(results) + 36
    cmpxchg8b AT(results) + 40
    ret
real_end:
