/* Of a bare machine: it has no interrupt controller. */
#pragma once
#include "cpu/cpu.h"

static bool no_pending(void *opaque)
{
    return false;
}
static int no_acknowledge(void *opaque)
{
    return -1;
}
static uint64_t no_tpr(void *opaque)
{
    return 0;
}
static void no_set_tpr(void *opaque, uint64_t cr8) {}
static bool no_read_msr(void *opaque, uint32_t index, uint64_t *value)
{
    return false;
}
static bool no_write_msr(void *opaque, uint32_t index, uint64_t value)
{
    return false;
}
static const struct cpu_irq_ops no_irq = {no_pending, no_acknowledge, no_tpr, no_set_tpr, no_read_msr, no_write_msr};
