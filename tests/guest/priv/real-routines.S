/* What real.c has run in real mode: a part of real.S. */

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

/* Single steps: eleven until TF is off again. */
    .globl real_step
real_step:
    xor %ax, %ax
    mov %ax, %es
    movw $AT(stepped), %es:4
    movw $SEG, %es:6
    pushf
    pop %ax
    or $0x100, %ax
    push %ax
    popf
    nop
    inc %bx
    mov %bx, %cx
    jmp 1f
1:  push %cx
    pop %cx
    pushf
    pop %ax
    and $~0x100, %ax
    push %ax
    popf
    nop
    ret
stepped:
    incw %cs:AT(results)
    iret

/* Breakpoints are linear addresses: on an instruction, and on a store. */
    .globl real_break
real_break:
    xor %ax, %ax
    mov %ax, %es
    movw $AT(broken), %es:4
    movw $SEG, %es:6
    mov $BELOW(1f), %eax
    mov %eax, %dr0
    mov $0x20010, %eax
    mov %eax, %dr1
    mov $0x00500005, %eax /* DR0 executes; DR1: 2 bytes are written */
    mov %eax, %dr7
    mov $0x2000, %ax
    mov %ax, %ds
    nop
1:  nop
    mov $0x10, %bx
    mov 0x10, %ax
    mov %ax, (%bx)
2:  xor %eax, %eax
    mov %eax, %dr7
    push %cs
    pop %ds
    movw $AT(2b), AT(results) + 10
    movw $AT(1b), AT(results) + 12
    ret
broken: /* the n-th: where, and DR6; then without the first */
    push %bp
    mov %sp, %bp
    push %eax
    push %bx
    mov %cs:AT(results), %bx
    incw %cs:AT(results)
    shl $2, %bx
    mov 2(%bp), %ax
    mov %ax, %cs:AT(results) + 2(%bx)
    mov %dr6, %eax
    mov %ax, %cs:AT(results) + 4(%bx)
    xor %eax, %eax
    mov %eax, %dr6
    mov $0x00500004, %eax
    mov %eax, %dr7
    pop %bx
    pop %eax
    pop %bp
    iret

/* Code that writes the instruction behind: through cs, by another segment, by a string instruction. */
    .globl real_smc
real_smc:
    xor %bx, %bx
    mov $3, %dx
1:  movb $0x43, %cs:AT(2f) /* inc %bx */
2:  nop
    movb $0x90, AT(2b)
    dec %dx
    jnz 1b
    mov $SEG - 0x100, %ax
    mov %ax, %es
    movb $0x43, %es:AT(3f) + 0x1000
3:  nop
    push %cs
    pop %es
    mov $AT(4f), %di
    mov $0x43, %al
    stosb
4:  nop
    note %bx, 0
    ret
