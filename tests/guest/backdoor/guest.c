/* The guest of sandbox.sh, built like the programs of priv/: asks for the attempt, prints "result N". */
#include "../priv/lib.h"

#ifndef PORT
#define PORT 0x5e0
#endif

static u32 in32(u16 port)
{
    u32 v;
    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static void ask(void)
{
    u32 r;

    __asm__ volatile("outl %0, %1" : : "a"(1), "Nd"((u16)PORT));
    while ((r = in32(PORT)) == 0xffffffff)
        __asm__ volatile("pause");
    print("result ");
    print_decimal(r);
    print("\n");
}

const struct test tests[] = {{"ask", ask, 0}, {0}};
