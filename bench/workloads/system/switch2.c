/* A context switch among 2 processes. */
#include "ring.h"

int main(void)
{
    return ring_main("switch2", 2);
}
