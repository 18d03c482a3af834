/* Saving and restoring: a vCPU, what a guest was shown of it, and the machine by its array of devices. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "boot_fixture.h"
#include "backends/disk.h"
#include "base/sections.h"
#include "bus/bus.h"
#include "cpu/cpu.h"
#include "devices/generation.h"
#include "devices/nvme/nvme.h"
#include "devices/virtio/balloon.h"
#include "devices/virtio/blk.h"
#include "devices/virtio/vsock.h"
#include "host/loop.h"
#include "machine/machine.h"
#include "memory/memory.h"

#define TSC 1000000000000ull

static uint8_t image[BZIMAGE_SIZE], bytes[CPU_SAVED_MAX];
static char kernel_path[] = "/tmp/guise-kernel-XXXXXX", error[512], directory[] = "/tmp/guise-save-XXXXXX";
static struct cpuid_table *table;

/* --- a vCPU --- */

static struct cpu sample(void)
{
    struct cpu c = {.n_cpus = 1, .cpuid = table, .tsc_khz = 2000000};

    cpu_reset(&c);
    for (unsigned i = 0; i < 16; i++)
        c.gpr[i] = 0x1111111111111111ull * i;
    c.rip = 0xffffffff81000000ull;
    c.cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_NE | CR0_ET;
    c.cr3 = 0x1234000;
    c.cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR;
    c.efer = EFER_LME | EFER_LMA | EFER_SCE;
    c.xcr0 = 3;
    c.cpl = 3;
    c.lstar = 0xffffffff81a00000ull;
    c.seg[FS].base = 0x7f0000001000ull;
    c.tsc_offset = -12345;
    c.dr[1] = 0x4000;
    c.request = REQ_NMI;
    return c;
}

static const char *reload(struct cpu *to, uint64_t now, size_t n)
{
    *to = (struct cpu){.n_cpus = 1, .cpuid = table, .tsc_khz = 2000000};
    cpu_reset(to);
    return cpu_load(to, now, bytes, n);
}

static void a_vcpu_comes_back(void **state)
{
    struct cpu c = sample(), d;
    size_t n = cpu_save(&c, TSC, bytes);

    assert_true(n > 0);
    assert_null(reload(&d, TSC + 777, n));
    assert_memory_equal(d.gpr, c.gpr, sizeof c.gpr);
    assert_memory_equal(d.seg, c.seg, sizeof c.seg);
    assert_int_equal(d.rip, c.rip);
    assert_int_equal(d.cr3, c.cr3);
    assert_int_equal(d.lstar, c.lstar);
    assert_int_equal(d.cpl, 3);
    assert_int_equal(d.dr[1], 0x4000);
    assert_true(d.request & REQ_NMI);
    assert_true(d.request & REQ_IRQ);                                                   /* it looks */
    assert_int_equal((int64_t)(TSC + 777) + d.tsc_offset, (int64_t)TSC + c.tsc_offset); /* time stood still */
}

static void one_from_elsewhere_is_checked(void **state)
{
    struct cpu good = sample(), c, d;

    c = good, c.cr0 &= ~(uint64_t)CR0_PE;
    assert_non_null(reload(&d, TSC, cpu_save(&c, TSC, bytes)));
    c = good, c.cr4 |= 1ull << 40;
    assert_non_null(reload(&d, TSC, cpu_save(&c, TSC, bytes)));
    c = good, c.efer &= ~(uint64_t)EFER_LMA;
    assert_non_null(reload(&d, TSC, cpu_save(&c, TSC, bytes)));
    c = good, c.xcr0 = 1ull << 62;
    assert_non_null(reload(&d, TSC, cpu_save(&c, TSC, bytes)));
    c = good, c.cr3 = 1ull << 51;
    assert_non_null(reload(&d, TSC, cpu_save(&c, TSC, bytes)));
    c = good, c.seg[GS].base = 1ull << 60;
    assert_non_null(reload(&d, TSC, cpu_save(&c, TSC, bytes)));
    c = good, c.cpl = 9;
    assert_non_null(reload(&d, TSC, cpu_save(&c, TSC, bytes)));
    c = good, c.pat = 2;
    assert_non_null(reload(&d, TSC, cpu_save(&c, TSC, bytes)));
    c = good, c.tsc_khz = 3000000;
    assert_non_null(strstr(reload(&d, TSC, cpu_save(&c, TSC, bytes)), "another speed"));
    c = good, c.halted = 200, c.dr7 = ~0ull;
    assert_null(reload(&d, TSC, cpu_save(&c, TSC, bytes)));
    assert_int_equal(d.halted, 1);
    assert_int_equal(d.dr7 >> 32, 0);
}

static void records_are_checked(void **state)
{
    struct cpu c = sample(), d;
    size_t n = cpu_save(&c, TSC, bytes);

    /* One that ends behind a whole record is an older guise's, any other is cut off. */
    for (size_t length = 0, whole = 0; length <= n; length++) {
        uint32_t size = 0;
        if (length == whole && length < n) {
            memcpy(&size, bytes + length + 12, 4);
            whole += 16 + size;
            assert_null(strstr(reload(&d, TSC, length) ?: "", "cut off"));
        } else if (length < whole && length < n) {
            assert_non_null(strstr(reload(&d, TSC, length), "cut off"));
        }
    }
    memcpy(bytes, "nonesuch\0\0\0", 12);
    assert_non_null(strstr(reload(&d, TSC, n), "newer guise"));
}

static void a_missing_feature_is_named(void **state)
{
    uint8_t saved[CPUID_SAVED_MAX];
    char why[128] = "";
    size_t n = cpuid_save(table, saved);

    assert_true(cpuid_check(table, saved, n, why, sizeof why));
    for (size_t i = 0; i < n; i += 24) {
        uint32_t leaf, subleaf;
        memcpy(&leaf, saved + i, 4);
        memcpy(&subleaf, saved + i + 4, 4);
        if (leaf == 7 && subleaf == 0)
            saved[i + 16] |= 1 << 3; /* ECX bit 3: protection keys, which no guest of ours has */
    }
    assert_false(cpuid_check(table, saved, n, why, sizeof why));
    assert_string_equal(why, "lacks a feature (CPUID 0x7, ecx bit 0x3)");
    n = cpuid_save(table, saved);
    for (size_t i = 0; i < n; i += 24)
        if (memcmp(saved + i, "\0\0\0\0", 4) == 0)
            saved[i + 12] ^= 1;
    assert_false(cpuid_check(table, saved, n, why, sizeof why));
    assert_string_equal(why, "is another vendor's");
}

static void hide_smep(void *opaque, uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r)
{
    if (leaf == 7 && subleaf == 0)
        r->ebx &= ~(1u << 7);
}

static void what_an_engine_hides_was_not_shown(void **state)
{
    struct cpuid_table *less;
    uint8_t saved[CPUID_SAVED_MAX];
    char why[128] = "";
    struct cpu *c = calloc(1, sizeof *c);

    assert_int_equal(cpuid_table_create(&less, 2, 2000000), 0);
    cpuid_table_adapt(less, hide_smep, NULL);
    c->cpuid = less;
    cpu_reset(c);
    c->cr0 |= 1;
    size_t n = cpuid_save(table, saved);
    struct cpuid_regs shown;
    c->cpuid = table;
    cpu_cpuid(c, 7, 0, &shown);
    if (shown.ebx >> 7 & 1) { /* this host has it */
        assert_false(cpuid_check(less, saved, n, why, sizeof why));
        assert_string_equal(why, "lacks smep");
        assert_int_equal(cpu_write_cr(c, 4, CR4_SMEP), CPU_OK);
        c->cpuid = less;
        c->cr4 = 0;
        assert_int_equal(cpu_write_cr(c, 4, CR4_SMEP), CPU_FAULT);
    }
    n = cpuid_save(less, saved);
    assert_true(cpuid_check(table, saved, n, why, sizeof why));
    cpuid_table_destroy(less);
    free(c);
}

static void the_clock_of_a_table_can_be_set(void **state)
{
    struct cpuid_table *t;
    const uint64_t tsc = 1ull << 62, hour = 3600ull * 1000000000;

    assert_int_equal(cpuid_table_create(&t, 1, 2345678), 0);
    cpuid_table_set_now(t, tsc, 1000 * hour);
    assert_in_range(cpuid_table_now(t, tsc), 1000 * hour - 1000, 1000 * hour + 1000);
    assert_in_range(cpuid_table_now(t, tsc + 2345678ull * 1000), 1000 * hour + 999999000, 1000 * hour + 1000001000);
    cpuid_table_set_now(t, 5, hour); /* it has run for longer than this host */
    assert_in_range(cpuid_table_now(t, 5), hour - 1000, hour + 1000);
    cpuid_table_destroy(t);
}

/* --- the machine --- */

struct board {
    struct machine *m;
    struct cpu cpus[2];
};

static size_t output(void *opaque, const void *data, size_t len)
{
    return len;
}
static void kick(void *opaque, unsigned i) {}

static void add_disk(struct board *b, const char *name, const char *bus)
{
    struct disk *disk;
    char words[256];

    snprintf(words, sizeof words, "%s/%s,format=raw,ro,bus=%s", directory, name, bus);
    if (disk_open(&disk, words, machine_loop(b->m), error, sizeof error))
        fail_msg("%s", error);
    const struct nvme_config nvme = {.disk = disk};
    const struct blk_config blk = {.disk = disk};
    bool is_nvme = strcmp(bus, "nvme") == 0;
    assert_int_equal(machine_add(b->m, is_nvme ? "nvme" : "virtio-blk", is_nvme ? &nvme_class : &virtio_blk_class,
                                 is_nvme ? (const void *)&nvme : &blk, error, sizeof error),
                     0);
}

static void make(struct board *b, bool restored, bool disks)
{
    const struct machine_config config = {
        .memory_bytes = 64 << 20, .n_cpus = 2, .n_present = 1, .kernel_path = kernel_path, .console_output = output};
    const struct vsock_config vsock = {.cid = 3};
    const struct balloon_config balloon = {0};

    memset(b, 0, sizeof *b);
    assert_int_equal(machine_create(&b->m, &config, error, sizeof error), 0);
    if (disks) {
        add_disk(b, "one", "nvme");
        add_disk(b, "two", "nvme");
        add_disk(b, "three", "virtio");
    }
    assert_int_equal(machine_add(b->m, "vsock", &virtio_vsock_class, &vsock, error, sizeof error), 0);
    assert_int_equal(machine_add(b->m, "balloon", &virtio_balloon_class, &balloon, error, sizeof error), 0);
    for (unsigned i = 0; i < 2; i++) {
        b->cpus[i] = (struct cpu){.index = i,
                                  .n_cpus = 2,
                                  .memory = machine_memory(b->m),
                                  .bus = machine_bus(b->m),
                                  .cpuid = table,
                                  .tsc_khz = 2000000};
        assert_int_equal(machine_attach_cpu(b->m, &b->cpus[i], i, kick, NULL), 0);
    }
    if (!restored)
        assert_int_equal(machine_boot(b->m, error, sizeof error), 0);
}

static void port_out(struct board *b, uint16_t port, uint64_t value, unsigned size)
{
    bus_write(machine_bus(b->m), BUS_PORT, port, value, size);
}

/* As a guest would have left it: timers run, lines are routed, a disk is in use. */
static void use(struct board *b)
{
    struct bus *bus = machine_bus(b->m);

    port_out(b, 0x43, 0x34, 1);
    port_out(b, 0x40, 0, 1);
    port_out(b, 0x40, 0, 1); /* 55 ms, which pass between two looks on the busiest of hosts only */
    port_out(b, 0x20, 0x11, 1), port_out(b, 0x21, 0x30, 1), port_out(b, 0x21, 4, 1), port_out(b, 0x21, 1, 1),
        port_out(b, 0x21, 0xfb, 1);
    port_out(b, 0x70, 0x0b, 1), port_out(b, 0x71, 0x42, 1);
    port_out(b, 0x3fc, 0x0b, 1), port_out(b, 0x3f9, 5, 1), port_out(b, 0x3ff, 0x5a, 1);
    port_out(b, 0x602, 0x100, 2);
    port_out(b, 0x640, 0, 1);
    pthread_mutex_lock(&bus->lock);
    machine_cpus_set(b->m, 2);
    pthread_mutex_unlock(&bus->lock);
    bus_write(bus, BUS_MEM, 0xfec00000, 0x14, 4);
    bus_write(bus, BUS_MEM, 0xfec00010, 0x31, 4);
    bus_write(bus, BUS_MEM, 0xfed00010, 1, 4);
    bus_write(bus, BUS_MEM, 0xfee000f0, 0x1ff, 4);
    bus_write(bus, BUS_MEM, 0xfee00380, 1000000, 4);
    for (unsigned slot = 1; slot < 7; slot++)
        bus_write(bus, BUS_MEM, 0xe0000000 + (slot << 15) + 4, 6, 2); /* memory and bus master */
}

/* What counts time goes on; and some note that they were restored. */
static bool moves(const struct section *s)
{
    static const char *const kinds[] = {"machine", "i8254", "lapic",     "hpet",        "rtc",
                                        "acpi-pm", "cpu",   "uart16550", "virtio-vsock"};

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(s->kind, kinds[i]) == 0)
            return true;
    return false;
}

static void save(struct board *b, struct sections *s)
{
    pthread_mutex_lock(&machine_bus(b->m)->lock);
    assert_int_equal(machine_save(b->m, s), 0);
    pthread_mutex_unlock(&machine_bus(b->m)->lock);
}

static int restore(struct board *b, const struct sections *s)
{
    pthread_mutex_lock(&machine_bus(b->m)->lock);
    int err = machine_restore(b->m, s, error, sizeof error);
    pthread_mutex_unlock(&machine_bus(b->m)->lock);
    return err;
}

static void every_device_comes_back(void **state)
{
    struct board a, b;
    struct sections first = {0}, second = {0};

    make(&a, false, true);
    use(&a);
    save(&a, &first);
    memset((uint8_t *)first.all[0].bytes + first.all[0].size - 16, 0, 16); /* its host's clocks: time stands still */
    make(&b, true, true);
    memcpy(machine_memory(b.m)->base, machine_memory(a.m)->base, 1 << 20);
    if (restore(&b, &first))
        fail_msg("%s", error);
    save(&b, &second);
    assert_int_equal(first.n, second.n);
    for (unsigned i = 0; i < first.n; i++) {
        const struct section *x = &first.all[i], *y = &second.all[i];
        assert_string_equal(x->kind, y->kind);
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->size, y->size);
        if (!moves(x) && memcmp(x->bytes, y->bytes, x->size) != 0)
            fail_msg("%s (%s) is not what it was", x->name, x->kind);
    }
    assert_int_equal(bus_read(machine_bus(b.m), BUS_PORT, 0x3ff, 1), 0x5a);
    assert_int_equal(bus_read(machine_bus(b.m), BUS_PORT, 0x21, 1), 0xfb);
    assert_int_equal(machine_cpus_present(b.m), 2);
    assert_int_equal(bus_read(machine_bus(b.m), BUS_PORT, 0x60c, 1), 1); /* and the guest has not heard of it yet */
    sections_free(&first);
    sections_free(&second);
    machine_destroy(a.m);
    machine_destroy(b.m);
}

static uint64_t host_khz(void)
{
    uint64_t ns = clock_ns(), tsc = __builtin_ia32_rdtsc();
    usleep(50000);
    tsc = __builtin_ia32_rdtsc() - tsc, ns = clock_ns() - ns;
    return tsc * 1000000 / ns;
}

/* By how much the power-management timer and the TSC have moved on for the guest, in ms, over a pause of `slept` ms
 * that by the snapshot began `earlier` ns before. */
static void pause_for(unsigned slept, uint64_t khz, uint64_t earlier, uint64_t *timer, uint64_t *tsc)
{
    enum { TMR = 0x608, TMR_HZ = 3579545 };
    struct board a, b;
    struct sections s = {0};
    uint64_t host_ns;

    make(&a, false, true);
    make(&b, true, true);
    for (unsigned i = 0; i < 2; i++)
        a.cpus[i].tsc_khz = b.cpus[i].tsc_khz = khz;
    *timer = bus_read(machine_bus(a.m), BUS_PORT, TMR, 4);
    *tsc = cpu_guest_tsc(&a.cpus[0]);
    save(&a, &s);
    struct section *shape = &s.all[0];
    assert_string_equal(shape->name, "shape");
    memcpy(&host_ns, shape->bytes + shape->size - 8, 8);
    host_ns -= earlier;
    memcpy((uint8_t *)shape->bytes + shape->size - 8, &host_ns, 8);
    usleep(slept * 1000);
    if (restore(&b, &s))
        fail_msg("%s", error);
    *timer = (uint32_t)(bus_read(machine_bus(b.m), BUS_PORT, TMR, 4) - *timer) * 1000ull / TMR_HZ;
    *tsc = (cpu_guest_tsc(&b.cpus[0]) - *tsc) / khz;
    sections_free(&s);
    machine_destroy(a.m);
    machine_destroy(b.m);
}

/* On the host that it was saved on time passes; where the clocks say anything else it stands still. */
static void a_short_pause_passes(void **state)
{
    const uint64_t khz = host_khz();
    uint64_t timer, tsc;

    pause_for(300, khz, 0, &timer, &tsc);
    assert_true(timer >= 299 && timer < 3000);
    assert_true(tsc >= 299 && tsc < 3000);
    pause_for(300, khz, 1000000000, &timer, &tsc);
    assert_true(timer < 250);
    assert_true(tsc < 250);
}

/* The guest is told once for each time; one whose tables know nothing of it keeps what it has there. */
static void a_generation_is_another(void **state)
{
    struct board a, b, c;
    struct sections s = {0}, older = {0};
    uint8_t first[16], second[16];

    make(&a, false, false);
    memcpy(first, machine_memory(a.m)->base + GENERATION_ADDRESS, sizeof first);
    save(&a, &s);
    make(&b, true, false);
    memcpy(machine_memory(b.m)->base, machine_memory(a.m)->base, 1 << 20);
    assert_int_equal(restore(&b, &s), 0);
    assert_memory_equal(machine_memory(b.m)->base + GENERATION_ADDRESS, first, sizeof first);
    assert_int_equal(bus_read(machine_bus(b.m), BUS_PORT, 0x60c, 1), 0);
    pthread_mutex_lock(&machine_bus(b.m)->lock);
    machine_new_generation(b.m);
    pthread_mutex_unlock(&machine_bus(b.m)->lock);
    memcpy(second, machine_memory(b.m)->base + GENERATION_ADDRESS, sizeof second);
    assert_memory_not_equal(first, second, sizeof first);
    assert_int_equal(bus_read(machine_bus(b.m), BUS_PORT, 0x60c, 1), 2);

    for (unsigned i = 0; i < s.n; i++)
        if (strcmp(s.all[i].kind, "generation") != 0)
            sections_add(&older, s.all[i].kind, s.all[i].name, s.all[i].version, s.all[i].bytes, s.all[i].size);
    make(&c, true, false);
    memcpy(machine_memory(c.m)->base, machine_memory(a.m)->base, 1 << 20);
    assert_int_equal(restore(&c, &older), 0);
    machine_new_generation(c.m);
    assert_memory_equal(machine_memory(c.m)->base + GENERATION_ADDRESS, first, sizeof first);
    machine_destroy(a.m);
    machine_destroy(b.m);
    machine_destroy(c.m);
    sections_free(&s);
    sections_free(&older);
}

static void another_machine_is_refused(void **state)
{
    struct board a, b;
    struct sections s = {0};

    make(&a, false, true);
    save(&a, &s);
    make(&b, true, false);
    assert_int_equal(restore(&b, &s), -EINVAL);
    assert_non_null(strstr(error, "nvme.0"));
    machine_destroy(b.m);
    make(&b, true, true);
    s.all[s.n - 1].version++;
    assert_int_equal(restore(&b, &s), -ENOTSUP);
    s.all[s.n - 1].version--;
    machine_destroy(b.m);
    make(&b, true, true);
    s.all[s.n - 1].size--; /* an older guise's */
    assert_int_equal(restore(&b, &s), 0);
    machine_destroy(b.m);
    machine_destroy(a.m);
    sections_free(&s);
}

/* What comes in is anybody's: nothing of it may be followed out of bounds. */
static void noise_is_survived(void **state)
{
    struct board a, b;
    uint64_t x = 88172645463325252ull;

    make(&a, false, true);
    use(&a);
    for (unsigned round = 0; round < 60; round++) {
        struct sections s = {0};
        save(&a, &s);
        for (unsigned i = 0; i < s.n; i++)
            for (uint32_t k = 0; k < s.all[i].size && strcmp(s.all[i].kind, "machine") != 0; k++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                if (x % (round + 2) == 0 && strcmp(s.all[i].kind, "cpu") != 0 && strcmp(s.all[i].kind, "cpuid") != 0)
                    s.all[i].bytes[k] = (uint8_t)(x >> 40);
            }
        make(&b, true, true);
        restore(&b, &s);
        use(&b);
        machine_destroy(b.m);
        sections_free(&s);
    }
    machine_destroy(a.m);
}

static int make_files(void **state)
{
    static const char *const names[] = {"one", "two", "three"};
    char path[128];

    make_bzimage(image, "", 0);
    int fd = mkstemp(kernel_path), bad = fd < 0 || write(fd, image, sizeof image) != sizeof image || close(fd);
    bad |= !mkdtemp(directory) || cpuid_table_create(&table, 2, 2000000);
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        fd = open(path, O_RDWR | O_CREAT, 0600);
        bad |= fd < 0 || ftruncate(fd, 1 << 20) || close(fd);
    }
    return bad;
}

static int remove_files(void **state)
{
    char command[128];

    cpuid_table_destroy(table);
    snprintf(command, sizeof command, "rm -rf %s %s", directory, kernel_path);
    return system(command);
}

#define T(name) cmocka_unit_test(name)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_vcpu_comes_back),          T(one_from_elsewhere_is_checked),
        T(records_are_checked),        T(a_missing_feature_is_named),
        T(records_are_checked),        T(what_an_engine_hides_was_not_shown),
        T(records_are_checked),        T(the_clock_of_a_table_can_be_set),
        T(every_device_comes_back),    T(a_short_pause_passes),
        T(another_machine_is_refused), T(noise_is_survived),
        T(a_generation_is_another),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
