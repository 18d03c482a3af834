/* The body of the DSDT (without its table header). */
#pragma once
#include "boot/boot.h"

struct aml;

void dsdt_build(struct aml *a, const struct platform *p);
