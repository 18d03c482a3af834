/*
 * The 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst): the zero page says what the machine has, and the
 * processor starts in long mode with memory mapped one to one.  Where: at the beginning of the kernel proper, which the
 * host unpacks (vmlinux.h); or, if it cannot, 0x200 bytes into the bzImage's protected-mode part, at its preferred
 * address, which does that by itself.
 */
#include <asm/bootparam.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/error.h"
#include "boot/boot_int.h"
#include "boot/vmlinux.h"

#define HEADER_OFFSET 0x1f1u
#define HEADER_END_MAX 0x290u    /* what follows in the zero page */
#define HEADER_MAGIC 0x53726448u /* "HdrS" */
#define BOOT_FLAG 0xaa55u
#define VERSION_MIN 0x20cu /* 2.12: xloadflags */
#define ENTRY64 0x200u
#define LOADER_UNDEFINED 0xff
#define SEED_BYTES 32u

struct image {
    struct setup_header header;
    uint8_t raw[HEADER_END_MAX]; /* the file's start: header fields newer than ours are handed on */
    uint64_t setup_size, kernel_size;
    uint64_t load;
    bool randomized;
    struct boot_image placed;
};

static int check_header(const struct setup_header *h, const char *path, char *error, size_t n)
{
    if (h->boot_flag != BOOT_FLAG || h->header != HEADER_MAGIC)
        return error_set(error, n, -ENOEXEC, "%s is neither a Linux bzImage nor an ELF file", path);
    if (h->version < VERSION_MIN)
        return error_set(error, n, -ENOEXEC, "%s has boot protocol %u.%02u; 2.12 or newer is needed", path,
                         h->version >> 8, h->version & 0xff);
    if (!(h->xloadflags & XLF_KERNEL_64))
        return error_set(error, n, -ENOEXEC, "%s is not a 64-bit kernel", path);
    if (!(h->loadflags & LOADED_HIGH))
        return error_set(error, n, -ENOEXEC, "%s is a zImage, which is not supported", path);
    return 0;
}

static int read_image(struct image *im, const struct boot_source *source, char *error, size_t n)
{
    struct stat st;

    if (fstat(source->kernel_fd, &st))
        return error_set(error, n, -errno, "cannot read %s: %s", source->kernel_path, strerror(errno));
    if (boot_pread(source->kernel_fd, im->raw, sizeof im->raw, 0))
        return error_set(error, n, -ENOEXEC, "%s is too short to be a kernel", source->kernel_path);
    memcpy(&im->header, im->raw + HEADER_OFFSET, sizeof im->header);
    int err = check_header(&im->header, source->kernel_path, error, n);
    if (err)
        return err;
    im->setup_size = ((im->header.setup_sects ? im->header.setup_sects : 4u) + 1u) * 512u;
    if ((uint64_t)st.st_size <= im->setup_size + ENTRY64)
        return error_set(error, n, -ENOEXEC, "%s is cut off", source->kernel_path);
    im->kernel_size = (uint64_t)st.st_size - im->setup_size;
    return 0;
}

/* Bytes from the load address that the kernel needs before it can read the memory map. */
static uint64_t image_span(const struct image *im)
{
    return im->header.init_size > im->kernel_size ? im->header.init_size : im->kernel_size;
}

static int choose_address(struct image *im, const struct memory *m, char *error, size_t n)
{
    uint64_t span = image_span(im), align = im->header.kernel_alignment;

    im->load = im->header.pref_address;
    if (im->load >= BOOT_HIGH && memory_is_ram(m, im->load, span))
        return 0;
    if (im->header.relocatable_kernel && align && !(align & (align - 1))) {
        im->load = (BOOT_HIGH + align - 1) & ~(align - 1);
        if (memory_is_ram(m, im->load, span))
            return 0;
    }
    return error_set(error, n, -ENOMEM, "the kernel needs %llu MiB of memory to start; give the guest more",
                     (unsigned long long)((im->header.pref_address + span) >> 20));
}

/* A seed for the kernel's random numbers, so that nothing waits for entropy at boot. */
static int put_seed(struct memory *m)
{
    struct {
        struct setup_data head;
        uint8_t bytes[SEED_BYTES];
    } seed = {.head = {.type = SETUP_RNG_SEED, .len = SEED_BYTES}};

    if (getrandom(seed.bytes, sizeof seed.bytes, 0) != sizeof seed.bytes)
        return -EIO;
    int err = memory_write(m, BOOT_SEED, &seed, sizeof seed);
    explicit_bzero(&seed, sizeof seed);
    return err;
}

static int put_zero_page(struct memory *m, const struct image *im, const struct platform *p,
                         const struct boot_initrd *initrd)
{
    struct boot_params bp = {0};
    struct boot_region map[BOOT_REGIONS_MAX];
    /* The header ends where the jump at 0x200 leads (boot.rst, "details of header fields"). */
    unsigned end = 0x202u + im->raw[0x201];

    if (end > HEADER_END_MAX)
        end = HEADER_END_MAX;
    memcpy((uint8_t *)&bp + HEADER_OFFSET, im->raw + HEADER_OFFSET, end - HEADER_OFFSET);
    bp.hdr.type_of_loader = LOADER_UNDEFINED;
    bp.hdr.code32_start = (uint32_t)im->load;
    if (im->randomized)
        bp.hdr.loadflags |= KASLR_FLAG;
    bp.hdr.cmd_line_ptr = BOOT_COMMAND_LINE;
    bp.hdr.ramdisk_image = (uint32_t)initrd->base;
    bp.hdr.ramdisk_size = (uint32_t)initrd->size;
    bp.hdr.setup_data = BOOT_SEED;
    bp.acpi_rsdp_addr = BOOT_ACPI;
    bp.e820_entries = (uint8_t)boot_memory_map(m, p, map);
    for (unsigned i = 0; i < bp.e820_entries; i++)
        bp.e820_table[i] = (struct boot_e820_entry){map[i].base, map[i].size, map[i].type};
    return memory_write(m, BOOT_ZERO_PAGE, &bp, sizeof bp);
}

/* Is one of the words of the command line `word`, or does one begin with it, if that ends with "="? */
static bool has_word(const char *line, const char *word)
{
    const size_t n = strlen(word);

    for (const char *at = line; at && (at = strstr(at, word)); at += n)
        if ((at == line || at[-1] == ' ') && (word[n - 1] == '=' || !at[n] || at[n] == ' '))
            return true;
    return false;
}

/* What keeps memory from the kernel, or asks for pieces of it, is left to the address that it is linked for. */
static bool memory_is_told(const char *line)
{
    return has_word(line, "mem=") || has_word(line, "memmap=") || has_word(line, "hugepages=") ||
           has_word(line, "efi_fake_mem=");
}

/* The kernel proper, or what unpacks it. */
static int load_kernel(struct memory *m, const struct boot_source *source, struct image *im,
                       const struct boot_initrd *initrd, uint64_t *entry)
{
    const char *line = source->append ? source->append : "";
    const struct vmlinux v = {
        .payload = {source->kernel_fd, im->setup_size + im->header.payload_offset, im->header.payload_length},
        .preferred = im->header.pref_address,
        .align = im->header.kernel_alignment,
        .span = im->header.init_size,
        .relocatable = im->header.relocatable_kernel,
        .random = !has_word(line, "nokaslr"),
        .random_address = !has_word(line, "nokaslr") && !memory_is_told(line),
    };

    if (im->header.payload_length <= im->kernel_size &&
        im->header.payload_offset <= im->kernel_size - im->header.payload_length &&
        !vmlinux_load(m, &v, initrd->size ? initrd->base : m->low_size, entry, &im->randomized, &im->placed))
        return 0;
    *entry = im->load + ENTRY64;
    return boot_read_to_ram(m, source->kernel_fd, im->setup_size, im->load, im->kernel_size);
}

int linux_load(struct memory *m, const struct boot_source *source, const struct platform *platform,
               struct boot_entry *entry, char *error, size_t n)
{
    struct image im = {0};
    struct boot_initrd initrd;
    uint64_t rip;
    int err = read_image(&im, source, error, n);

    if (!err)
        err = choose_address(&im, m, error, n);
    if (!err)
        err = boot_put_command_line(m, source->append, im.header.cmdline_size, error, n);
    if (!err)
        err = boot_load_initrd(m, source, im.load + image_span(&im), (uint64_t)im.header.initrd_addr_max + 1, &initrd,
                               error, n);
    if (err)
        return err;
    err = load_kernel(m, source, &im, &initrd, &rip);
    if (!err)
        err = put_seed(m);
    if (!err)
        err = put_zero_page(m, &im, platform, &initrd);
    if (err)
        return error_set(error, n, err, "cannot load %s: %s", source->kernel_path, strerror(-err));
    *entry = (struct boot_entry){BOOT_LINUX64, rip, BOOT_ZERO_PAGE, im.placed};
    return 0;
}
