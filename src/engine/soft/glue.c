/*
 * Between translated code and C: the only assembly of the engine.
 *
 * Every way out of translated code saves the guest's registers into cpu.gpr[] and the arithmetic
 * flags into v->arith, switches to the host stack and calls one C function with the vCPU; that
 * returns the host address to continue at.  Every way in restores them and jumps there.
 * r9-r11 are scratch at each of those points, so they are not saved but for a slow path of an access; C puts real
 * values of the guest's into their slots only.
 */
#include "engine/soft/soft_int.h"

#define G(field) [field] "i"(offsetof(struct soft_vcpu, field))

#define SAVE_REGS                                                                                                      \
    "mov %%rcx, %%gs:8\n mov %%rdx, %%gs:16\n mov %%rbx, %%gs:24\n mov %%rsp, %%gs:32\n mov %%rbp, %%gs:40\n"          \
    "mov %%rsi, %%gs:48\n mov %%rdi, %%gs:56\n mov %%r8, %%gs:64\n mov %%r12, %%gs:96\n mov %%r13, %%gs:104\n"         \
    "mov %%r14, %%gs:112\n mov %%r15, %%gs:120\n mov %%gs:%c[host_rsp], %%rsp\n mov %%gs:%c[self], %%rdi\n"
#define SAVE_FLAGS "mov %%rax, %%gs:0\n lahf\n seto %%al\n movw %%ax, %%gs:%c[arith]\n"
#define RESTORE                                                                                                        \
    "movzwl %%gs:%c[arith], %%eax\n add $127, %%al\n sahf\n"                                                           \
    "mov %%gs:0, %%rax\n mov %%gs:8, %%rcx\n mov %%gs:16, %%rdx\n mov %%gs:24, %%rbx\n mov %%gs:32, %%rsp\n"           \
    "mov %%gs:40, %%rbp\n mov %%gs:48, %%rsi\n mov %%gs:56, %%rdi\n mov %%gs:64, %%r8\n mov %%gs:96, %%r12\n"          \
    "mov %%gs:104, %%r13\n mov %%gs:112, %%r14\n mov %%gs:120, %%r15\n"
#define GO "jmp *%%gs:%c[next]\n"
#define CALL_C(fn) "call " fn "\n mov %%rax, %%gs:%c[next]\n"
#define GLUE(name, before, fn, after)                                                                                  \
    ".globl " name "\n" name ":\n" before SAVE_FLAGS SAVE_REGS CALL_C(fn)                                              \
    RESTORE after GO
/* one way out, and the same through the function that takes the time for --stats (timing.c) */
#define WAY(name, before, after)                                                                                       \
    GLUE("soft_glue_" name, before, "soft_" name, after)                                                               \
    GLUE("soft_timed_glue_" name, before, "soft_timed_" name, after)
/* slow paths of an access: r9 may hold a window, the scratch registers are the access's again afterwards */
#define ACCESS_WAY(name)                                                                                               \
    WAY(name, "mov %%r9, %%gs:%c[slow_r9]\n",                                                                          \
        "mov %%gs:%c[slow_r9], %%r9\n mov %%gs:%c[slow_host], %%r10\n mov %%r10, %%r11\n")

void soft_glue(void);
/* clang-format off: a table of assembly */
__attribute__((naked, used)) void soft_glue(void)
{
    __asm__ volatile(
        /* void soft_enter(struct soft_vcpu *): jumps to v->next; returns when something jumps to soft_leave */
        ".globl soft_enter\n soft_enter:\n"
        "push %%rbx\n push %%rbp\n push %%r12\n push %%r13\n push %%r14\n push %%r15\n sub $8, %%rsp\n"
        "mov %%rsp, %%gs:%c[host_rsp]\n" RESTORE GO ".globl soft_leave\n soft_leave:\n"
        "mov %%gs:%c[host_rsp], %%rsp\n add $8, %%rsp\n"
        "pop %%r15\n pop %%r14\n pop %%r13\n pop %%r12\n pop %%rbp\n pop %%rbx\n ret\n" ACCESS_WAY("slow")
            ACCESS_WAY("commit") WAY("window", "", "") WAY("demote", "", "") WAY("helper", "", "") WAY("exit", "", "")
                WAY("hot", "", "") WAY("ibtc_miss", "mov %%r11, %%gs:%c[rip]\n", "")
                    GLUE("soft_glue_poll", "", "soft_poll", "")
        /* the signal handler comes here with the host stack in place and the state saved */
        ".globl soft_glue_signal\n soft_glue_signal:\n"
        "mov %%gs:%c[self], %%rdi\n" CALL_C("soft_signal_fault") RESTORE GO
        /* v->next can be this: as a computed branch to cpu.rip that finds v->target */
        ".globl soft_jump\n soft_jump:\n mov %%gs:%c[rip], %%r11\n mov %%gs:%c[target_index], %%r10\n "
        "jmp *%%gs:%c[target]\n .globl soft_glue_end\n soft_glue_end:\n" ::G(host_rsp),
        G(arith), G(next), G(self), G(slow_r9), G(slow_host), G(target),
        G(target_index), [rip] "i"(offsetof(struct soft_vcpu, cpu.rip)));
}
/* clang-format on */
