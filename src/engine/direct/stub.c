/*
 * All the code that a process for guest code has of its own, copied to DIRECT_BASE.
 *
 * Two threads share the address space.  The runner runs guest code; whatever stops that is a signal, whose handler
 * says so and waits at the door.  The mapper does what the orders say: maps and unmaps pages, interrupts the runner.
 * It keeps everything in registers, reads only what guest code cannot write, and never returns: so there is nothing
 * that guest code could turn it by.  The runner, on the other hand, is the guest's as soon as it has once run guest
 * code, which may jump to any instruction here with any registers; what it may do then is in helper.c, and that it
 * stands still is known by the kernel's word only (soft/direct_child.c).  What brings it back, to run another program
 * perhaps, is the orders alone.
 */
#include <stddef.h>

#include "engine/direct/helper.h"
#include "engine/direct/layout.h"

#define ORDER(field) [o_##field] "i"(offsetof(struct direct_orders, field))
#define STATE(field) [s_##field] "i"(offsetof(struct direct_state, field))

#define FUTEX(base, field, operation, value)                                                                           \
    "lea %c[" field "](" base "), %%rdi\n mov $" #operation ", %%esi\n " value "\n xor %%r10d, %%r10d\n"               \
    "mov $202, %%eax\n syscall\n"
#define IF(task) IF_BIT(task) /* else on to the next label 8 */
#define IF_BIT(task) "testl $" #task ", %c[o_tasks](%%r12)\n jz 8f\n"
#define STAMP(field) "rdtsc\n shl $32, %%rdx\n or %%rdx, %%rax\n mov %%rax, %c[" field "](%%r13)\n"
#define PAGES "movabs %[orders], %%r12\n movabs %[state], %%r13\n"

void direct_stub_code(void);
/* clang-format off */
__attribute__((naked, used)) void direct_stub_code(void)
{
    __asm__ volatile(
        ".globl direct_stub, direct_stub_handler, direct_stub_said, direct_stub_parked, direct_stub_returned\n"
        ".globl direct_stub_fs_set, direct_stub_gs_set\n"
        ".globl direct_stub_start, direct_stub_end\n"
        "direct_stub:\n"
        /* the runner stops: guest state is in the signal's frame at rsp, but for what follows */
        "direct_stub_handler:\n" PAGES
        IF(TASK_CLOCK) STAMP("s_came") "8: "
        IF(TASK_BASES)
        "rdfsbase %%rax\n mov %%rax, %c[s_fs_base](%%r13)\n"
        "rdgsbase %%rax\n mov %%rax, %c[s_gs_base](%%r13)\n"
        "8: mov %%ds, %%eax\n mov %%eax, %c[s_ds](%%r13)\n"
        "mov %%es, %%eax\n mov %%eax, %c[s_es](%%r13)\n"
        "mov %%fs, %%eax\n mov %%eax, %c[s_fs](%%r13)\n"
        "mov %%gs, %%eax\n mov %%eax, %c[s_gs](%%r13)\n"
        "mov %%rsp, %c[s_frame](%%r13)\n"
        "lock incl %c[s_stopped](%%r13)\n"
        FUTEX("%%r13", "s_stopped", 1, "mov $1, %%edx") "direct_stub_said:\n"
        "1:\n" FUTEX("%%r12", "o_door", 0, "xor %%edx, %%edx")
        /* whoever has brought it here, from now on nothing is used but orders */
        "direct_stub_parked:\n" PAGES
        "cmpl $0, %c[o_go](%%r12)\n je 1b\n"
        "xor %%eax, %%eax\n mov %%eax, %%ds\n mov %%eax, %%es\n"
        IF(TASK_BASES)
        "mov %%eax, %%fs\n mov %%eax, %%gs\n"
        "mov %c[o_fs_base](%%r12), %%rax\n wrfsbase %%rax\n"
        "mov %c[o_gs_base](%%r12), %%rax\n wrgsbase %%rax\n"
        "8: " IF(TASK_SET_FS)
        "mov $0x1002, %%edi\n mov %c[o_fs_base](%%r12), %%rsi\n mov $158, %%eax\n syscall\n direct_stub_fs_set:\n"
        "8: " IF(TASK_SET_GS)
        "mov $0x1001, %%edi\n mov %c[o_gs_base](%%r12), %%rsi\n mov $158, %%eax\n syscall\n direct_stub_gs_set:\n"
        "8: " IF(TASK_CLOCK) STAMP("s_gone") "8:\n"
        "mov %c[o_frame](%%r12), %%rsp\n push %c[o_flags](%%r12)\n popfq\n"
        "mov $15, %%eax\n syscall\n direct_stub_returned: ud2\n"

        /* the beginning of both: everything that is not the stub's goes */
        "direct_stub_start:\n" PAGES
        "xor %%edi, %%edi\n movabs %[base], %%rsi\n mov $11, %%eax\n syscall\n"
        "movabs %[end], %%rdi\n movabs %[above], %%rsi\n mov $11, %%eax\n syscall\n"
        "mov $39, %%eax\n syscall\n mov %%eax, %c[s_process](%%r13)\n"
        "mov $0x50f00, %%edi\n movabs %[end], %%rsi\n xor %%edx, %%edx\n xor %%r10d, %%r10d\n xor %%r8d, %%r8d\n"
        "mov $56, %%eax\n syscall\n test %%eax, %%eax\n jz 2f\n js 9f\n"
        /* the runner: gives up system calls, stops for the first time */
        "mov $1, %%edi\n mov $4, %%esi\n lea %c[s_filters](%%r13), %%rdx\n mov $317, %%eax\n syscall\n"
        "test %%eax, %%eax\n jnz 9f\n ud2\n"

        /* the mapper: rbp process, rbx work, r14 kick, r15 batch, as last seen */
        "2: mov $39, %%eax\n syscall\n mov %%eax, %%ebp\n"
        "mov $1, %%edi\n mov $4, %%esi\n lea %c[s_filters]+16(%%r13), %%rdx\n mov $317, %%eax\n syscall\n"
        "test %%eax, %%eax\n jnz 9f\n"
        "xor %%ebx, %%ebx\n xor %%r14d, %%r14d\n xor %%r15d, %%r15d\n"
        "3: mov %c[o_work](%%r12), %%eax\n cmp %%eax, %%ebx\n jne 4f\n"
        FUTEX("%%r12", "o_work", 0, "mov %%ebx, %%edx")
        "jmp 3b\n"
        "4: mov %%eax, %%ebx\n"
        "mov %c[o_kick](%%r12), %%eax\n cmp %%eax, %%r14d\n je 5f\n mov %%eax, %%r14d\n"
        "mov %%ebp, %%edi\n mov %%ebp, %%esi\n mov $10, %%edx\n mov $234, %%eax\n syscall\n"
        "5: mov %c[o_batch](%%r12), %%eax\n cmp %%eax, %%r15d\n je 3b\n mov %%eax, %%r15d\n"
        "lea %c[o_calls](%%r12), %%rsp\n" /* not a stack: nothing is pushed */
        "6: mov (%%rsp), %%rax\n test %%rax, %%rax\n js 7f\n"
        "mov 8(%%rsp), %%rdi\n mov 16(%%rsp), %%rsi\n mov 24(%%rsp), %%rdx\n mov 32(%%rsp), %%r10\n"
        "mov 40(%%rsp), %%r8\n mov 48(%%rsp), %%r9\n syscall\n"
        "add $64, %%rsp\n cmp $-4095, %%rax\n jb 6b\n"
        "movl $1, %c[s_failed](%%r13)\n lock incl %c[s_stopped](%%r13)\n"
        FUTEX("%%r13", "s_stopped", 1, "mov $1, %%edx")
        "jmp 3b\n"
        "7:\n" FUTEX("%%r12", "o_cell", 1, "mov $1, %%edx")
        "test %%eax, %%eax\n jnz 3b\n"
        FUTEX("%%r12", "o_door", 1, "mov $1, %%edx")
        "jmp 3b\n"
        "9: mov $1, %%edi\n mov $231, %%eax\n syscall\n ud2\n"
        "direct_stub_end:\n"
        ::ORDER(work), ORDER(kick), ORDER(batch), ORDER(go), ORDER(frame), ORDER(door), ORDER(cell), ORDER(fs_base),
        ORDER(gs_base), ORDER(flags), ORDER(calls), ORDER(tasks), STATE(stopped), STATE(failed), STATE(fs_base), STATE(gs_base),
        STATE(frame), STATE(ds), STATE(es), STATE(fs), STATE(gs), STATE(process), STATE(gone), STATE(came),
        STATE(filters), [orders] "i"(DIRECT_ORDERS),
        [state] "i"(DIRECT_STATE), [base] "i"(DIRECT_BASE), [end] "i"(DIRECT_END), [above] "i"(DIRECT_TOP - DIRECT_END));
}
/* clang-format on */
