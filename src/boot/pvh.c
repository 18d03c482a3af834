/*
 * PVH: an ELF kernel with a Xen note that names a 32-bit entry point.  The processor starts there in flat
 * protected mode without paging, ebx pointing to struct hvm_start_info (Xen's docs/misc/pvh.pandoc).
 */
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "boot/boot_int.h"

#define NOTE_PHYS32_ENTRY 18u
#define NOTES_MAX 65536u
#define SEGMENTS_MAX 64u
#define START_MAGIC 0x336ec578u

struct start_info {
    uint32_t magic, version, flags, n_modules;
    uint64_t modules, command_line, rsdp, memory_map;
    uint32_t memory_map_entries, reserved;
};
struct start_module {
    uint64_t address, size, command_line, reserved;
};
struct start_region {
    uint64_t address, size;
    uint32_t type, reserved;
};

/* A program header, 32- or 64-bit. */
struct segment_info {
    uint32_t type;
    uint64_t offset, address, file_size, memory_size, align;
};

struct elf_file {
    int fd;
    const char *path;
    uint64_t size;
    unsigned n;
    struct segment_info segments[SEGMENTS_MAX];
};

static int read_segments64(struct elf_file *f)
{
    Elf64_Ehdr h;
    Elf64_Phdr ph;
    int err = boot_pread(f->fd, &h, sizeof h, 0);

    if (err || h.e_machine != EM_X86_64 || h.e_phentsize != sizeof ph || h.e_phnum > SEGMENTS_MAX)
        return -ENOEXEC;
    for (f->n = 0; f->n < h.e_phnum; f->n++) {
        if (h.e_phoff > f->size || boot_pread(f->fd, &ph, sizeof ph, h.e_phoff + f->n * sizeof ph))
            return -ENOEXEC;
        f->segments[f->n] = (struct segment_info){ph.p_type,   ph.p_offset, ph.p_paddr,
                                                  ph.p_filesz, ph.p_memsz,  ph.p_align};
    }
    return 0;
}

static int read_segments32(struct elf_file *f)
{
    Elf32_Ehdr h;
    Elf32_Phdr ph;
    int err = boot_pread(f->fd, &h, sizeof h, 0);

    if (err || h.e_machine != EM_386 || h.e_phentsize != sizeof ph || h.e_phnum > SEGMENTS_MAX)
        return -ENOEXEC;
    for (f->n = 0; f->n < h.e_phnum; f->n++) {
        if (boot_pread(f->fd, &ph, sizeof ph, h.e_phoff + f->n * sizeof ph))
            return -ENOEXEC;
        f->segments[f->n] = (struct segment_info){ph.p_type,   ph.p_offset, ph.p_paddr,
                                                  ph.p_filesz, ph.p_memsz,  ph.p_align};
    }
    return 0;
}

static int open_elf(struct elf_file *f, const struct boot_source *source, char *error, size_t n)
{
    struct stat st;
    unsigned char ident[EI_NIDENT];

    *f = (struct elf_file){.fd = source->kernel_fd, .path = source->kernel_path};
    if (fstat(f->fd, &st))
        return error_set(error, n, -errno, "cannot read %s: %s", f->path, strerror(errno));
    f->size = (uint64_t)st.st_size;
    int err = boot_pread(f->fd, ident, sizeof ident, 0);
    if (!err)
        err = ident[EI_DATA] != ELFDATA2LSB   ? -ENOEXEC
              : ident[EI_CLASS] == ELFCLASS64 ? read_segments64(f)
              : ident[EI_CLASS] == ELFCLASS32 ? read_segments32(f)
                                              : -ENOEXEC;
    return err ? error_set(error, n, -ENOEXEC, "%s is not a complete x86 ELF file", f->path) : 0;
}

/* One note segment: { namesz, descsz, type, name, desc }, name and desc padded to `pad`. */
static bool find_entry(const uint8_t *notes, uint64_t len, unsigned pad, uint64_t *entry)
{
    for (uint64_t at = 0; len - at >= 12;) {
        uint32_t head[3];
        memcpy(head, notes + at, sizeof head);
        uint64_t name = at + 12, desc = name + (((uint64_t)head[0] + pad - 1) & ~(uint64_t)(pad - 1));
        uint64_t end = desc + (((uint64_t)head[1] + pad - 1) & ~(uint64_t)(pad - 1));
        if (desc > len || head[1] > len - desc)
            return false;
        bool xen = head[0] == 4 && !memcmp(notes + name, "Xen", 4);
        if (xen && head[2] == NOTE_PHYS32_ENTRY && (head[1] == 4 || head[1] == 8)) {
            *entry = 0;
            memcpy(entry, notes + desc, head[1]);
            return true;
        }
        if (end > len)
            return false;
        at = end;
    }
    return false;
}

static int read_entry(const struct elf_file *f, uint64_t *entry, char *error, size_t n)
{
    static const char none[] = "%s has no PVH entry point (a kernel built with CONFIG_PVH has one); try its bzImage";
    uint8_t notes[NOTES_MAX];

    for (unsigned i = 0; i < f->n; i++) {
        const struct segment_info *s = &f->segments[i];
        if (s->type != PT_NOTE || s->file_size > sizeof notes || s->offset > f->size)
            continue;
        if (boot_pread(f->fd, notes, s->file_size, s->offset))
            continue;
        if (find_entry(notes, s->file_size, s->align == 8 ? 8 : 4, entry))
            return *entry <= UINT32_MAX ? 0 : error_set(error, n, -ENOEXEC, none, f->path);
    }
    return error_set(error, n, -ENOEXEC, none, f->path);
}

static int load_segments(struct memory *m, const struct elf_file *f, uint64_t *end, char *error, size_t n)
{
    *end = BOOT_HIGH;
    for (unsigned i = 0; i < f->n; i++) {
        const struct segment_info *s = &f->segments[i];
        if (s->type != PT_LOAD || !s->memory_size)
            continue;
        if (s->file_size > s->memory_size || s->offset > f->size || s->file_size > f->size - s->offset)
            return error_set(error, n, -ENOEXEC, "%s is cut off or damaged", f->path);
        if (s->address < BOOT_HIGH || s->address >= m->low_size || s->memory_size > m->low_size - s->address)
            return error_set(error, n, -ENOMEM, "%s wants memory at 0x%llx-0x%llx, which the guest does not have",
                             f->path, (unsigned long long)s->address,
                             (unsigned long long)(s->address + s->memory_size - 1));
        int err = boot_read_to_ram(m, f->fd, s->offset, s->address, s->file_size);
        if (err)
            return error_set(error, n, err, "cannot read %s: %s", f->path, strerror(-err));
        if (s->memory_size > s->file_size)
            memset(memory_hva(m, s->address, s->memory_size) + s->file_size, 0, s->memory_size - s->file_size);
        if (s->address + s->memory_size > *end)
            *end = s->address + s->memory_size;
    }
    return 0;
}

static int put_start_info(struct memory *m, const struct platform *p, const struct boot_initrd *initrd)
{
    struct {
        struct start_info info;
        struct start_module module;
        struct start_region map[BOOT_REGIONS_MAX];
    } s = {0};
    struct boot_region map[BOOT_REGIONS_MAX];
    unsigned n = boot_memory_map(m, p, map);

    s.info = (struct start_info){
        .magic = START_MAGIC,
        .version = 1,
        .n_modules = initrd->size != 0,
        .modules = BOOT_START_INFO + offsetof(__typeof__(s), module),
        .command_line = BOOT_COMMAND_LINE,
        .rsdp = BOOT_ACPI,
        .memory_map = BOOT_START_INFO + offsetof(__typeof__(s), map),
        .memory_map_entries = n,
    };
    s.module = (struct start_module){.address = initrd->base, .size = initrd->size};
    for (unsigned i = 0; i < n; i++)
        s.map[i] = (struct start_region){map[i].base, map[i].size, map[i].type, 0};
    return memory_write(m, BOOT_START_INFO, &s, sizeof s);
}

int pvh_load(struct memory *m, const struct boot_source *source, const struct platform *platform,
             struct boot_entry *entry, char *error, size_t n)
{
    struct elf_file f;
    struct boot_initrd initrd;
    uint64_t rip = 0, end;
    int err = open_elf(&f, source, error, n);

    if (!err)
        err = read_entry(&f, &rip, error, n);
    if (!err)
        err = load_segments(m, &f, &end, error, n);
    if (!err)
        err = boot_put_command_line(m, source->append, BOOT_COMMAND_LINE_MAX - 1, error, n);
    if (!err)
        err = boot_load_initrd(m, source, end, MEMORY_HOLE_START, &initrd, error, n);
    if (err)
        return err;
    err = put_start_info(m, platform, &initrd);
    if (err)
        return error_set(error, n, err, "cannot describe the machine to %s: %s", f.path, strerror(-err));
    *entry = (struct boot_entry){.protocol = BOOT_PVH, .rip = rip, .info = BOOT_START_INFO};
    return 0;
}
