/* The software engine: x86-64 translated to x86-64 (docs/ENGINE.md).  Public part beyond engine.h. */
#pragma once
#include "engine/engine.h"

/* The vCPU's extended state as a standard-format XSAVE area (64-byte aligned, as large as CPUID leaf
 * 0xD says for the host's XCR0).  Valid, and may be written, while the vCPU is not running. */
void *engine_soft_fpu(struct engine *e, unsigned i);
