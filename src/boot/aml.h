/*
 * Writing AML (ACPI 6.5, chapter 20) by hand: each function appends one term.  Things with a length are
 * opened, filled and closed, innermost first.
 *
 *      size_t dev = aml_device(a, "COM1");
 *      aml_name(a, "_HID"); aml_eisa_id(a, "PNP0501");
 *      aml_close(a, dev);
 *
 * Appending past the end sets `overflow` and does nothing else; look at it once, when all is written.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct aml {
    uint8_t *data;
    size_t len, size;
    bool overflow;
};

void aml_bytes(struct aml *a, const void *bytes, size_t len);
void aml_byte(struct aml *a, uint8_t byte);

/* --- terms with a length: the value returned is for aml_close ------------------------------------ */
size_t aml_scope(struct aml *a, const char *path);
size_t aml_device(struct aml *a, const char *segment);
size_t aml_method(struct aml *a, const char *segment, unsigned n_args);
size_t aml_package(struct aml *a, unsigned n_elements);
size_t aml_buffer(struct aml *a, size_t n_bytes); /* the caller appends that many bytes */
size_t aml_if(struct aml *a);                     /* a predicate follows, then the terms */
size_t aml_else(struct aml *a);
void aml_close(struct aml *a, size_t open);

/* --- names and data -------------------------------------------------------------------------------- */
void aml_path(struct aml *a, const char *path);    /* "\_SB", "PCI0", dots between segments of 4 */
void aml_name(struct aml *a, const char *segment); /* Name(segment, ...): the object follows */
void aml_integer(struct aml *a, uint64_t value);
void aml_string(struct aml *a, const char *text);
void aml_eisa_id(struct aml *a, const char *id); /* "PNP0501" */

void aml_store(struct aml *a, uint64_t value, const char *path);
/* Ports [port, port+1) as an 8-bit field of this name, through a region of that one; accesses write the whole byte. */
void aml_port_byte(struct aml *a, const char *region, const char *field, uint16_t port);

/* --- resource templates (ACPI 6.5, 6.4) -------------------------------------------------------------- */
size_t aml_resources(struct aml *a);
void aml_resources_close(struct aml *a, size_t open); /* end tag, and the sizes */
void aml_io(struct aml *a, uint16_t base, uint8_t len);
void aml_irq(struct aml *a, unsigned irq); /* edge, active high, exclusive */
void aml_memory32(struct aml *a, uint32_t base, uint32_t len);
/* Windows that a bridge forwards: fixed, positive decode. */
void aml_bus_window(struct aml *a, uint16_t first, uint16_t last);
void aml_io_window(struct aml *a, uint16_t first, uint16_t last);
void aml_memory32_window(struct aml *a, uint32_t base, uint32_t size);
void aml_memory64_window(struct aml *a, uint64_t base, uint64_t size);
