/* The double fault's own gate is not present: an exception in delivering #DF shuts the processor down. */
#include "lib.h"

static void go(void)
{
    print("before\n");
    idt[2 * PF] = idt[2 * DF] = 0;
    *(volatile u8 *)TEST_VA = 1;
}
const struct test tests[] = {{"triple", go, NULL}, {NULL, NULL, NULL}};
