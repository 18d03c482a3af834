/* AML encoding.  Opcodes are of ACPI 6.5, 20.2; resource descriptors of 6.4. */
#include "boot/aml.h"

#include <string.h>

enum {
    OP_ZERO = 0x00,
    OP_ONE = 0x01,
    OP_NAME = 0x08,
    OP_BYTE = 0x0a,
    OP_WORD = 0x0b,
    OP_DWORD = 0x0c,
    OP_STRING = 0x0d,
    OP_QWORD = 0x0e,
    OP_SCOPE = 0x10,
    OP_BUFFER = 0x11,
    OP_PACKAGE = 0x12,
    OP_METHOD = 0x14,
    OP_DUAL_NAME = 0x2e,
    OP_MULTI_NAME = 0x2f,
    OP_EXT = 0x5b,
    OP_STORE = 0x70,
    OP_IF = 0xa0,
    OP_ELSE = 0xa1,
    EXT_REGION = 0x80,
    EXT_FIELD = 0x81,
    EXT_DEVICE = 0x82,
};

void aml_bytes(struct aml *a, const void *bytes, size_t len)
{
    if (a->overflow || len > a->size - a->len) {
        a->overflow = true;
        return;
    }
    memcpy(a->data + a->len, bytes, len);
    a->len += len;
}

void aml_byte(struct aml *a, uint8_t byte)
{
    aml_bytes(a, &byte, 1);
}

static void little(struct aml *a, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        aml_byte(a, (uint8_t)(value >> 8 * i));
}

/* --- lengths ------------------------------------------------------------------------------------- */

/* PkgLength (20.2.4) counts itself: 6 bits in one byte, or 4 bits and up to three bytes more.  It is put
 * in front when its term is closed, by moving the term up. */
void aml_close(struct aml *a, size_t open)
{
    uint8_t lead[4];
    size_t body = a->overflow ? 0 : a->len - open, n = 1;

    while (n < 4 && body + n >= (n == 1 ? 1ull << 6 : 1ull << (4 + 8 * (n - 1))))
        n++;
    size_t total = body + n;
    lead[0] = (uint8_t)(n == 1 ? total : (total & 0xf) | (n - 1) << 6);
    for (size_t i = 1; i < n; i++)
        lead[i] = (uint8_t)(total >> (4 + 8 * (i - 1)));
    aml_bytes(a, lead, n); /* makes room, or sets overflow */
    if (a->overflow)
        return;
    memmove(a->data + open + n, a->data + open, body);
    memcpy(a->data + open, lead, n);
}

/* --- names and data --------------------------------------------------------------------------------- */

static void segment(struct aml *a, const char *text, size_t len)
{
    char padded[4] = {'_', '_', '_', '_'};
    memcpy(padded, text, len < 4 ? len : 4);
    aml_bytes(a, padded, 4);
}

void aml_path(struct aml *a, const char *path)
{
    uint8_t segments = 1;

    if (*path == '\\')
        aml_byte(a, (uint8_t)*path++);
    for (const char *p = path; *p; p++)
        segments = (uint8_t)(segments + (*p == '.'));
    if (segments > 1)
        aml_byte(a, segments == 2 ? OP_DUAL_NAME : OP_MULTI_NAME);
    if (segments > 2)
        aml_byte(a, segments);
    for (size_t len; (len = strcspn(path, ".")), path[len]; path += len + 1)
        segment(a, path, len);
    segment(a, path, strlen(path));
}

void aml_name(struct aml *a, const char *name)
{
    aml_byte(a, OP_NAME);
    aml_path(a, name);
}

void aml_integer(struct aml *a, uint64_t value)
{
    static const struct {
        uint8_t op, bytes;
    } forms[] = {{OP_BYTE, 1}, {OP_WORD, 2}, {OP_DWORD, 4}, {OP_QWORD, 8}};
    unsigned form = value > UINT32_MAX ? 3 : value > UINT16_MAX ? 2 : value > UINT8_MAX;

    if (value <= 1) {
        aml_byte(a, value ? OP_ONE : OP_ZERO);
        return;
    }
    aml_byte(a, forms[form].op);
    little(a, value, forms[form].bytes);
}

void aml_string(struct aml *a, const char *text)
{
    aml_byte(a, OP_STRING);
    aml_bytes(a, text, strlen(text) + 1);
}

static unsigned hex_digit(char c)
{
    return (unsigned)(c <= '9' ? c - '0' : (c & ~0x20) - 'A' + 10);
}

/* Three letters of 5 bits and four hex digits, most significant byte first (6.1.5, EISAID). */
void aml_eisa_id(struct aml *a, const char *id)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < 3; i++)
        value = value << 5 | (uint32_t)(id[i] - 'A' + 1);
    for (unsigned i = 3; i < 7; i++)
        value = value << 4 | hex_digit(id[i]);
    aml_byte(a, OP_DWORD);
    little(a, __builtin_bswap32(value), 4);
}

/* --- terms with a length -------------------------------------------------------------------------------- */

size_t aml_scope(struct aml *a, const char *path)
{
    aml_byte(a, OP_SCOPE);
    size_t open = a->len;
    aml_path(a, path);
    return open;
}

size_t aml_device(struct aml *a, const char *name)
{
    aml_byte(a, OP_EXT);
    aml_byte(a, EXT_DEVICE);
    size_t open = a->len;
    aml_path(a, name);
    return open;
}

size_t aml_method(struct aml *a, const char *name, unsigned n_args)
{
    aml_byte(a, OP_METHOD);
    size_t open = a->len;
    aml_path(a, name);
    aml_byte(a, (uint8_t)n_args);
    return open;
}

size_t aml_package(struct aml *a, unsigned n_elements)
{
    aml_byte(a, OP_PACKAGE);
    size_t open = a->len;
    aml_byte(a, (uint8_t)n_elements);
    return open;
}

size_t aml_buffer(struct aml *a, size_t n_bytes)
{
    aml_byte(a, OP_BUFFER);
    size_t open = a->len;
    aml_integer(a, n_bytes);
    return open;
}

size_t aml_if(struct aml *a)
{
    aml_byte(a, OP_IF);
    return a->len;
}

size_t aml_else(struct aml *a)
{
    aml_byte(a, OP_ELSE);
    return a->len;
}

void aml_store(struct aml *a, uint64_t value, const char *path)
{
    aml_byte(a, OP_STORE);
    aml_integer(a, value);
    aml_path(a, path);
}

void aml_port_byte(struct aml *a, const char *region, const char *field, uint16_t port)
{
    enum { SYSTEM_IO = 1, BYTE_ACCESS_WRITE_AS_ZEROS = 1 | 2 << 5, BITS = 8 };
    aml_byte(a, OP_EXT);
    aml_byte(a, EXT_REGION);
    aml_path(a, region);
    aml_byte(a, SYSTEM_IO);
    aml_integer(a, port);
    aml_integer(a, 1);
    aml_byte(a, OP_EXT);
    aml_byte(a, EXT_FIELD);
    size_t open = a->len;
    aml_path(a, region);
    aml_byte(a, BYTE_ACCESS_WRITE_AS_ZEROS);
    aml_path(a, field);
    aml_byte(a, BITS);
    aml_close(a, open);
}

/* --- resource templates ------------------------------------------------------------------------------------ */

/* A buffer whose size is known at the end: a word to be filled in then. */
size_t aml_resources(struct aml *a)
{
    aml_byte(a, OP_BUFFER);
    size_t open = a->len;
    aml_byte(a, OP_WORD);
    little(a, 0, 2);
    return open;
}

void aml_resources_close(struct aml *a, size_t open)
{
    little(a, 0x0079, 2); /* end tag, checksum zero: not used */
    if (!a->overflow) {
        size_t size = a->len - open - 3;
        a->data[open + 1] = (uint8_t)size;
        a->data[open + 2] = (uint8_t)(size >> 8);
    }
    aml_close(a, open);
}

void aml_io(struct aml *a, uint16_t base, uint8_t len)
{
    aml_byte(a, 0x47);
    aml_byte(a, 1); /* decodes 16 bits */
    little(a, base, 2);
    little(a, base, 2);
    aml_byte(a, 1);
    aml_byte(a, len);
}

void aml_irq(struct aml *a, unsigned irq)
{
    aml_byte(a, 0x22);
    little(a, 1u << irq, 2);
}

void aml_memory32(struct aml *a, uint32_t base, uint32_t len)
{
    aml_byte(a, 0x86);
    little(a, 9, 2);
    aml_byte(a, 1); /* writable */
    little(a, base, 4);
    little(a, len, 4);
}

enum { SPACE_MEMORY, SPACE_IO, SPACE_BUS };
enum { WINDOW_FIXED = 0x0c /* minimum and maximum are fixed, positive decode, producer */ };

static void window(struct aml *a, uint8_t tag, unsigned bytes, uint8_t space, uint8_t flags, uint64_t first,
                   uint64_t last)
{
    aml_byte(a, tag);
    little(a, 3 + 5 * bytes, 2);
    aml_byte(a, space);
    aml_byte(a, WINDOW_FIXED);
    aml_byte(a, flags);
    little(a, 0, bytes); /* granularity */
    little(a, first, bytes);
    little(a, last, bytes);
    little(a, 0, bytes); /* translation */
    little(a, last - first + 1, bytes);
}

void aml_bus_window(struct aml *a, uint16_t first, uint16_t last)
{
    window(a, 0x88, 2, SPACE_BUS, 0, first, last);
}

void aml_io_window(struct aml *a, uint16_t first, uint16_t last)
{
    window(a, 0x88, 2, SPACE_IO, 3 /* the whole range */, first, last);
}

void aml_memory32_window(struct aml *a, uint32_t base, uint32_t size)
{
    window(a, 0x87, 4, SPACE_MEMORY, 1 /* writable, not cacheable */, base, base + (size - 1));
}

void aml_memory64_window(struct aml *a, uint64_t base, uint64_t size)
{
    window(a, 0x8a, 8, SPACE_MEMORY, 1, base, base + (size - 1));
}
