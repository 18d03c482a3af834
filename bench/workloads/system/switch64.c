/* A context switch among 64 processes. */
#include "ring.h"

int main(void)
{
    return ring_main("switch64", 64);
}
