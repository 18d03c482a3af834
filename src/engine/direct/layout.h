/*
 * What the VM process and the processes that run guest code have in common: the pages they share, and where those are
 * in the address space of guest code.
 *
 *      DIRECT_BASE  code    the stub (stub.c): nobody can write to it
 *                   orders  written by the VM process; can only be read here
 *                   state   written here, and by whatever guest code runs here: nothing in it is believed
 *                   stack   of signal handlers: the frame that the kernel puts there is the guest's state
 */
#pragma once
#include <stdint.h>

#define DIRECT_SLOTS 4u /* processes of a vCPU: address spaces that it runs directly at a time */
#define DIRECT_SLOTS_MAX (64 * DIRECT_SLOTS)

/* The helper is asked for one by its number, in two bytes; with DIRECT_TRAP_TSC where the guest's clock is not the
 * host's. */
#define DIRECT_TRAP_TSC 0x8000u
/* Or told, along with a descriptor, that the guest's memory is another file from now on: all processes end. */
#define DIRECT_NEW_MEMORY 0x7fffu

#define DIRECT_BASE 0x6ffff0000000 /* where no system that we know puts anything */
#define DIRECT_CODE_SIZE 0x1000
#define DIRECT_ORDERS (DIRECT_BASE + DIRECT_CODE_SIZE)
#define DIRECT_ORDERS_SIZE 0x10000
#define DIRECT_STATE (DIRECT_ORDERS + DIRECT_ORDERS_SIZE)
#define DIRECT_STATE_SIZE 0x1000
#define DIRECT_STACK (DIRECT_STATE + DIRECT_STATE_SIZE)
#define DIRECT_STACK_SIZE 0x8000
#define DIRECT_END (DIRECT_STACK + DIRECT_STACK_SIZE)
#define DIRECT_TOP 0x7ffffffff000 /* of user addresses with four levels of page tables */

/* Offsets in a slot of the shared file. */
#define DIRECT_SLOT_SIZE 0x20000u
#define DIRECT_SLOT_STATE DIRECT_ORDERS_SIZE
#define DIRECT_SLOT_STACK (DIRECT_SLOT_STATE + DIRECT_STATE_SIZE)

/* A system call for the mapper to do; the list ends with a number below zero. */
struct direct_call {
    int64_t number;
    uint64_t args[6];
    uint64_t unused;
};
#define DIRECT_CALLS 1016u
#define DIRECT_CPUS 1024u

/* What the runner does besides.  The bases of FS and GS are set by instructions, which also say what they are when it
 * stops; where the host's kernel does not allow those, by system calls, only where something is to change.  The
 * time-stamp counter is read where it does not trap. */
#define TASK_BASES 1
#define TASK_SET_FS 2
#define TASK_SET_GS 4
#define TASK_CLOCK 8

struct direct_orders {
    uint32_t work;  /* futex: the mapper waits for its change */
    uint32_t kick;  /* changed: interrupt the runner */
    uint32_t batch; /* changed: do the calls, then let the runner go on */
    uint32_t go;    /* 1: the runner may go on */
    uint32_t door;  /* futex, always 0: the runner waits here ... */
    uint32_t cell;  /* ... until the VM process moves it to this one, and so knows that it stands still */
    uint32_t tasks; /* TASK_* */
    uint64_t fs_base, gs_base;
    uint64_t flags;                /* those that a return from a signal handler does not set */
    uint64_t frame;                /* of the signal to return from, behind its return address */
    uint8_t cpus[DIRECT_CPUS / 8]; /* a set of the host's, for a call */
    struct direct_call calls[DIRECT_CALLS];
};

struct direct_state {
    uint32_t stopped; /* futex, counts: the runner is at the door (it says); or a call has failed */
    uint32_t failed;  /* by the mapper: a call of the batch was refused; the runner is still in its cell */
    uint64_t fs_base, gs_base;
    uint64_t gone, came;     /* time stamps: it went on, it stopped */
    uint64_t frame;          /* the stack pointer that its handler began with */
    uint32_t ds, es, fs, gs; /* selectors */
    uint32_t process;        /* its number, read before there is a guest */
    uint8_t filters[0xf00];  /* used before there is a guest */
};

_Static_assert(sizeof(struct direct_orders) <= DIRECT_ORDERS_SIZE, "orders fit");
_Static_assert(sizeof(struct direct_state) <= DIRECT_STATE_SIZE, "state fits");

/* The kernel's struct rt_sigframe, by offsets. */
enum {
    FRAME_UCONTEXT = 8,                  /* behind the return address */
    FRAME_CONTEXT = FRAME_UCONTEXT + 40, /* struct sigcontext in it */
    FRAME_MASK = FRAME_CONTEXT + 256,
    FRAME_INFO = FRAME_MASK + 8,
    FRAME_SIZE = FRAME_INFO + 128,
};
/* struct sigcontext */
struct direct_context {
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
    uint16_t cs, gs, fs, ss;
    uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
};
_Static_assert(sizeof(struct direct_context) == 256, "as the kernel's");
