/* Ring 0 runs out of stack and no gate has another one. */
#include "lib.h"

static void go(void)
{
    print("before\n");
    idt[2 * DF] &= ~(7ull << 32);
    __asm__ volatile("mov %0, %%rsp; push %%rax" : : "r"(TEST_VA));
}
const struct test tests[] = {{"triple", go, NULL}, {NULL, NULL, NULL}};
