/* An exception with an empty IDT: #UD, #GP, #DF, shutdown. */
#include "lib.h"

static void go(void)
{
    print("before\n");
    load_idt(0);
    __asm__ volatile("ud2");
}
const struct test tests[] = {{"triple", go, NULL}, {NULL, NULL, NULL}};
