/*
 * Kernels and initrds of a stranger: bzImages and PVH ELF files that are right but for what the input wants, of lengths
 * that are not what their headers say, and command lines of any length. The files are made up and take no descriptor.
 * What does not depend on them, the tables of ACPI and SMBIOS, is left out.
 */
#include <elf.h>
#include <errno.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "fixture.h"

#include "base/error.h"
#include "boot/boot.h"
#include "boot/boot_int.h"

#define RAM ((1u << 20) + (128u << 10)) /* what is above 1 MiB is for the kernel */
#define HEAD 0x2000u                    /* of a file; zeros behind, as long as it says it is */
#define KERNEL_FD 1000
#define INITRD_FD 1001
#define COMMAND_LINE 0x11000u
#define SEGMENTS 4u

static uint8_t head[HEAD];
static uint64_t sizes[1 + BOOT_INITRDS_MAX];

ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t offset);
ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t offset)
{
    uint64_t at = (uint64_t)offset, size = sizes[fd - KERNEL_FD];

    if (offset < 0) {
        errno = EINVAL;
        return -1;
    }
    if (at >= size)
        return 0;
    if (len > size - at)
        len = size - at;
    memset(buf, 0, len);
    if (fd == KERNEL_FD && at < HEAD)
        memcpy(buf, head + at, len < HEAD - at ? len : HEAD - at);
    return (ssize_t)len;
}

int __wrap_fstat64(int fd, struct stat *st);
int __wrap_fstat64(int fd, struct stat *st)
{
    *st = (struct stat){.st_size = (off_t)sizes[fd - KERNEL_FD]};
    return 0;
}

ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags);
ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags)
{
    memset(buf, 0x52, len);
    return (ssize_t)len;
}

int __wrap_acpi_build(struct memory *m, const struct platform *p);
int __wrap_acpi_build(struct memory *m, const struct platform *p)
{
    return 0;
}
int __wrap_smbios_build(struct memory *m, const struct platform *p);
int __wrap_smbios_build(struct memory *m, const struct platform *p)
{
    return 0;
}

/* --- files ------------------------------------------------------------------------------------------------------- */

static void poke(unsigned at, uint64_t value, unsigned bytes)
{
    memcpy(head + at, &value, bytes);
}

static void make_bzimage(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);

    poke(0x1f1, how & 1 ? fuzz_u8(in) : 1, 1); /* setup sectors */
    poke(0x1fe, 0xaa55, 2);
    poke(0x201, 0x6a, 1);
    poke(0x202, 0x53726448, 4);
    poke(0x206, 0x20f, 2);
    poke(0x211, 1, 1);          /* loaded high */
    poke(0x22c, 0x7fffffff, 4); /* initrd_addr_max */
    poke(0x230, how & 2 ? fuzz_u32(in) : 0x1000, 4);
    poke(0x234, !(how & 4), 1); /* relocatable */
    poke(0x236, 1, 2);          /* 64-bit */
    poke(0x238, how & 8 ? fuzz_u32(in) : 0xffff, 4);
    poke(0x258, how & 0x10 ? fuzz_u64(in) : BOOT_HIGH, 8);
    poke(0x260, how & 0x20 ? fuzz_u32(in) : fuzz_u16(in) * 4u, 4);
    sizes[0] = 0x600 + (uint64_t)fuzz_u16(in) * 2;
}

struct part {
    uint32_t type;
    uint64_t offset, address, file_size, memory_size, align;
};

/* A segment, or notes with a PVH entry behind another note. */
static struct part make_part(struct fuzz_input *in, unsigned i)
{
    static const uint32_t notes[] = {5, 6, 1,  0x6f687477, 0x65,    0x6c626d61, 0x65, /* another one */
                                     4, 4, 18, 0x6e6558,   0x100000};
    uint8_t how = fuzz_u8(in);
    struct part p = {PT_LOAD, 0x400 + 0x100u * i, BOOT_HIGH + fuzz_u16(in), how, how + (how >> 7) * 0x100u, 4};

    if (how & 1) {
        p.type = PT_NOTE;
        p.file_size = sizeof notes;
        memcpy(head + p.offset, notes, sizeof notes);
        if (how & 2)
            poke((unsigned)p.offset + 4u * (fuzz_u8(in) % 12), how & 4 ? fuzz_u32(in) : fuzz_u8(in), 4);
        if (how & 8)
            p.align = 8;
    }
    if (how & 0x10)
        p.offset = how & 0x20 ? fuzz_u64(in) : fuzz_u16(in);
    if (how & 0x20)
        p.file_size = how & 0x40 ? fuzz_u64(in) : fuzz_u16(in);
    if (how & 0x40)
        p.memory_size = how & 0x80 ? fuzz_u64(in) : fuzz_u32(in);
    return p;
}

static void make_elf(struct fuzz_input *in, bool wide)
{
    uint8_t how = fuzz_u8(in), n = 1 + how % SEGMENTS;
    const Elf64_Ehdr h64 = {
        .e_machine = EM_X86_64, .e_phoff = sizeof h64, .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = n};
    const Elf32_Ehdr h32 = {
        .e_machine = EM_386, .e_phoff = sizeof h32, .e_phentsize = sizeof(Elf32_Phdr), .e_phnum = n};

    memcpy(head, wide ? (const void *)&h64 : &h32, wide ? sizeof h64 : sizeof h32);
    memcpy(head, ELFMAG, SELFMAG);
    head[EI_CLASS] = wide ? ELFCLASS64 : ELFCLASS32;
    head[EI_DATA] = ELFDATA2LSB;
    for (unsigned i = 0; i < n; i++) {
        struct part p = make_part(in, i);
        const Elf64_Phdr p64 = {.p_type = p.type,
                                .p_offset = p.offset,
                                .p_paddr = p.address,
                                .p_filesz = p.file_size,
                                .p_memsz = p.memory_size,
                                .p_align = p.align};
        const Elf32_Phdr p32 = {.p_type = p.type,
                                .p_offset = (uint32_t)p.offset,
                                .p_paddr = (uint32_t)p.address,
                                .p_filesz = (uint32_t)p.file_size,
                                .p_memsz = (uint32_t)p.memory_size,
                                .p_align = (uint32_t)p.align};
        if (wide)
            memcpy(head + sizeof h64 + i * sizeof p64, &p64, sizeof p64);
        else
            memcpy(head + sizeof h32 + i * sizeof p32, &p32, sizeof p32);
    }
    sizes[0] = how & 0x80 ? fuzz_u32(in) : 0x1000 + (how & 0x70);
}

static void make_kernel(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);

    memset(head, 0, sizeof head);
    switch (how & 3) {
    case 0:
        fuzz_bytes(in, head, 64);
        sizes[0] = how;
        break;
    case 1:
        make_bzimage(in);
        break;
    default:
        make_elf(in, how & 1);
    }
    for (unsigned n = how >> 5; n; n--) {
        uint16_t at = fuzz_u16(in);
        head[at % (at & 0x8000 ? 0x300 : 0x500)] = fuzz_u8(in);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct memory *m;
    static char line[COMMAND_LINE];
    static const struct platform platform = {.n_cpus = 1, .ecam_base = 0xe0000000, .ecam_size = 0x100000};
    struct boot_source source = {.kernel_path = "kernel", .kernel_fd = KERNEL_FD};
    struct boot_entry entry = {0};
    struct fuzz_input in = {data, size};
    char err[ERROR_SIZE] = "";

    if (!m) {
        assert_int_equal(memory_create(&m, RAM), 0);
        memset(line, 'x', sizeof line - 1);
    }
    make_kernel(&in);
    uint8_t how = fuzz_u8(&in);
    source.n_initrds = how % 8 < BOOT_INITRDS_MAX ? how % 8 : BOOT_INITRDS_MAX;
    for (unsigned i = 0; i < source.n_initrds; i++) {
        source.initrd_fds[i] = INITRD_FD + (int)i;
        sizes[1 + i] = how & 0x10 ? fuzz_u64(&in) >> 1 : fuzz_u16(&in);
    }
    if (how & 0x20)
        source.append = line + sizeof line - 1 - (how & 0x40 ? fuzz_u32(&in) % COMMAND_LINE : fuzz_u8(&in));
    int failed = boot_load(m, &source, &platform, &entry, err, sizeof err);
    assert_true(failed ? failed < 0 && err[0] : entry.info != 0);
    return 0;
}
