/*
 * The kernel proper as a stranger's bzImage has it, already unpacked: an ELF file with the segments that the input
 * wants, and relocations of anything.  What the unpacking libraries make of a stranger's bytes is their own fuzzers'
 * business.
 */
#include <elf.h>
#include <sys/types.h>

#include "fixture.h"

#include "boot/boot_int.h"
#include "boot/vmlinux.h"

#define PREFERRED 0x400000u
#define HEADER (2u << 20)
#define SPAN 0x80000u
#define RAM (PREFERRED + 3 * SPAN)
#define TABLE_MAX 32u

static uint8_t head[512], table[4 * TABLE_MAX];
static uint32_t size, table_size;

int64_t __wrap_payload_size(const struct payload *p);
int64_t __wrap_payload_size(const struct payload *p)
{
    return size;
}

/* What is between is left as it is: zeroes, and what inputs before have written. */
int __wrap_payload_unpack(const struct payload *p, struct memory *m, uint64_t gpa, size_t n);
int __wrap_payload_unpack(const struct payload *p, struct memory *m, uint64_t gpa, size_t n)
{
    assert_true(n == size && size >= sizeof head + table_size);
    assert_int_equal(memory_write(m, gpa, head, sizeof head), 0);
    return memory_write(m, gpa + size - table_size, table, table_size);
}

ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags);
ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags)
{
    memset(buf, 0xff, len);
    return (ssize_t)len;
}

static void make(struct fuzz_input *in)
{
    const uint8_t how = fuzz_u8(in), n = how & 3;
    Elf64_Ehdr h = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64},
                    .e_machine = EM_X86_64,
                    .e_entry = how & 4 ? fuzz_u64(in) : PREFERRED,
                    .e_phoff = how & 8 ? fuzz_u64(in) : sizeof h,
                    .e_phentsize = sizeof(Elf64_Phdr),
                    .e_phnum = how & 0x10 ? fuzz_u16(in) : n,
                    .e_shentsize = how & 0x20 ? fuzz_u16(in) : 0};
    uint64_t offset = HEADER;

    memset(head, 0, sizeof head);
    for (unsigned i = 0; i < n; i++) {
        const uint8_t what = fuzz_u8(in);
        Elf64_Phdr p = {
            .p_type = PT_LOAD, .p_offset = offset + (what & 7) * 0x1000u, .p_paddr = PREFERRED + offset - HEADER};
        p.p_memsz = p.p_filesz = fuzz_u16(in);
        if (what & 8)
            p.p_paddr = fuzz_u64(in);
        if (what & 0x10)
            p.p_offset = fuzz_u64(in);
        if (what & 0x20)
            p.p_filesz = fuzz_u64(in);
        if (what & 0x40)
            p.p_memsz = fuzz_u64(in);
        offset = p.p_offset + p.p_filesz;
        memcpy(head + sizeof h + i * sizeof p, &p, sizeof p);
    }
    h.e_shoff = how & 0x40 ? fuzz_u64(in) : offset;
    h.e_shnum = how & 0x80 ? fuzz_u16(in) : 0;
    memcpy(head, &h, sizeof h);
    const uint8_t words = fuzz_u8(in) % TABLE_MAX;
    table_size = 4u * words;
    for (unsigned i = 0; i < words; i++) {
        const uint8_t what = fuzz_u8(in);
        const uint32_t word = !what ? 0 : what & 1 ? fuzz_u32(in) : 0x80000000u + PREFERRED + what * 0x1000u;
        memcpy(table + 4 * i, &word, 4);
    }
    size = how & 0x80 ? fuzz_u32(in) % (2 * SPAN + HEADER) : (uint32_t)(h.e_shoff % (SPAN + HEADER)) + table_size;
    if (size < sizeof head + table_size)
        size = sizeof head + table_size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct memory *m;
    struct fuzz_input in = {data, n};
    uint64_t entry = 0;
    bool randomized = false;
    struct boot_image image;

    if (!m)
        assert_int_equal(memory_create(&m, RAM), 0);
    const uint8_t how = fuzz_u8(&in);
    const struct vmlinux v = {.preferred = how & 1 ? fuzz_u64(&in) : PREFERRED,
                              .align = how & 2 ? fuzz_u64(&in) : 0x10000,
                              .span = how & 4 ? fuzz_u64(&in) : SPAN,
                              .relocatable = !(how & 8),
                              .random = !(how & 16),
                              .random_address = !(how & 32)};
    make(&in);
    int failed = vmlinux_load(m, &v, how & 64 ? fuzz_u64(&in) : RAM, &entry, &randomized, &image);
    assert_true(failed ? failed < 0 && !randomized : memory_is_ram(m, entry, 1));
    return 0;
}
