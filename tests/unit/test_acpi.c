/* ACPI and SMBIOS tables: structure, checksums, and iasl's opinion where it is installed. */
#include <stdio.h>
#include <sys/wait.h>

#include "boot/aml.h"
#include "boot/boot_int.h"
#include "boot_fixture.h"

static uint8_t sum(const uint8_t *p, size_t len)
{
    uint8_t s = 0;
    while (len--)
        s = (uint8_t)(s + *p++);
    return s;
}

static uint64_t le(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    while (n--)
        v = v << 8 | p[n];
    return v;
}

static struct memory *ram;

static const uint8_t *at(uint64_t gpa)
{
    return memory_hva(ram, gpa, 1);
}

/* With `present` of them there, the others to come; 0: all there, for ever. */
static void build_some(unsigned n_cpus, unsigned present)
{
    struct platform p = test_platform;
    p.n_cpus = n_cpus;
    if (present) {
        p.absent_cpus = ~0ull << (present & 63);
        p.cpus_port = 0x640;
        p.cpu_bits.present = 1, p.cpu_bits.inserted = 2, p.cpu_bits.leave = 4, p.cpu_bits.eject = 8,
        p.cpu_bits.refuse = 16;
    }
    assert_int_equal(memory_create(&ram, 64 << 20), 0);
    assert_int_equal(acpi_build(ram, &p), 0);
    assert_int_equal(smbios_build(ram, &p), 0);
}

static void build(unsigned n_cpus)
{
    build_some(n_cpus, 0);
}

/* The table of this signature through RSDP and XSDT (DSDT: through the FADT). */
static const uint8_t *table(const char *signature)
{
    const uint8_t *xsdt = at(le(at(BOOT_ACPI) + 24, 8));
    for (unsigned i = 0; i < (le(xsdt + 4, 4) - 36) / 8; i++) {
        const uint8_t *t = at(le(xsdt + 36 + 8 * i, 8));
        if (!memcmp(t, signature, 4))
            return t;
    }
    return !strcmp(signature, "DSDT") ? at(le(table("FACP") + 140, 8)) : NULL;
}

static void checksums_are_right(void **state)
{
    static const char *const all[] = {"FACP", "APIC", "MCFG", "HPET", "DSDT"};
    for (unsigned n = 1; n <= 64; n += 21) {
        build(n);
        const uint8_t *rsdp = at(BOOT_ACPI);
        assert_memory_equal(rsdp, "RSD PTR ", 8);
        assert_int_equal(sum(rsdp, 20), 0);
        assert_int_equal(sum(rsdp, 36), 0);
        const uint8_t *xsdt = at(le(rsdp + 24, 8));
        assert_int_equal(sum(xsdt, le(xsdt + 4, 4)), 0);
        for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
            const uint8_t *t = table(all[i]);
            assert_non_null(t);
            assert_int_equal(sum(t, le(t + 4, 4)), 0);
        }
        memory_destroy(ram);
    }
}

static void fadt_agrees_with_itself(void **state)
{
    build(1);
    const uint8_t *f = table("FACP");
    assert_int_equal(le(f + 4, 4), 276);
    assert_int_equal(le(f + 40, 4), le(f + 140, 8)); /* DSDT, 32 and 64 bits */
    assert_memory_equal(at(le(f + 36, 4)), "FACS", 4);
    assert_int_equal(le(f + 36, 4) % 64, 0);
    static const struct {
        unsigned narrow, wide, len, bits;
    } blocks[] = {{56, 148, 88, 32}, {64, 172, 89, 16}, {76, 208, 91, 32}};
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(le(f + blocks[i].narrow, 4), le(f + blocks[i].wide + 4, 8));
        assert_int_equal(f[blocks[i].len] * 8, blocks[i].bits);
        assert_int_equal(f[blocks[i].wide + 1], blocks[i].bits);
        assert_int_equal(f[blocks[i].wide], 1);
    }
    assert_int_equal(le(f + 116 + 4, 8), 0xcf9);
    assert_int_equal(f[128], 6);
    assert_int_equal(le(f + 112, 4) & (1 << 20), 0); /* hardware-reduced: no */
    memory_destroy(ram);
}

static void madt_lists_processors_and_overrides(void **state)
{
    build(64);
    const uint8_t *m = table("APIC"), *end = m + le(m + 4, 4);
    unsigned cpus = 0, ioapics = 0, overrides = 0, nmis = 0;
    for (const uint8_t *e = m + 44; e < end; e += e[1]) {
        assert_true(e[1] >= 6 && e + e[1] <= end);
        if (e[0] == 0) {
            assert_int_equal(e[2], cpus);
            assert_int_equal(e[3], cpus++);
        }
        ioapics += e[0] == 1 && le(e + 4, 4) == 0xfec00000;
        overrides += e[0] == 2 && ((e[3] == 0 && e[4] == 2) || (e[3] == 9 && e[4] == 9 && e[8] == 0x0d));
        nmis += e[0] == 4 && e[2] == 0xff && e[5] == 1;
    }
    assert_int_equal(cpus, 64);
    assert_int_equal(ioapics, 1);
    assert_int_equal(overrides, 2);
    assert_int_equal(nmis, 1);
    memory_destroy(ram);
}

static void absent_processors_may_come(void **state)
{
    build(4);
    const uint8_t *f = table("FACP");
    assert_int_equal(le(f + 80, 4), 0x60c); /* for the generation ID */
    assert_int_equal(f[92], 2);
    memory_destroy(ram);
    build_some(4, 2);
    f = table("FACP");
    assert_int_equal(le(f + 80, 4), 0x60c); /* GPE0: narrow, length, wide */
    assert_int_equal(f[92], 2);
    assert_int_equal(le(f + 220 + 4, 8), 0x60c);
    const uint8_t *e = table("APIC") + 44;
    for (unsigned i = 0; i < 4; i++, e += 8)
        assert_int_equal(le(e + 4, 4), i < 2 ? 1 : 2); /* enabled, online capable */
    memory_destroy(ram);
}

static void wrong_platforms_are_refused(void **state)
{
    struct platform p = test_platform;
    assert_int_equal(memory_create(&ram, 64 << 20), 0);
    p.n_cpus = 0;
    assert_true(acpi_build(ram, &p) < 0);
    p.n_cpus = 65;
    assert_true(acpi_build(ram, &p) < 0);
    memory_destroy(ram);
}

/* Disassembles and compiles again: no error, no warning, and nearly the same table (iasl packs integers and
 * names its own compiler). */
static void iasl_agrees(void **state)
{
    static const unsigned counts[][2] = {{1, 0}, {64, 0}, {4, 1}, {64, 63}};
    if (system("command -v iasl >/dev/null 2>&1")) {
        skip();
        return;
    }
    for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
        char directory[] = "/tmp/guise-acpi-XXXXXX", path[64], command[512];
        assert_non_null(mkdtemp(directory));
        build_some(counts[i][0], counts[i][1]);
        const uint8_t *dsdt = table("DSDT");
        snprintf(path, sizeof path, "%s/dsdt.aml", directory);
        FILE *f = fopen(path, "w");
        assert_int_equal(fwrite(dsdt, 1, le(dsdt + 4, 4), f), le(dsdt + 4, 4));
        fclose(f);
        snprintf(command, sizeof command,
                 "cd %s && iasl -d dsdt.aml >log 2>&1 && iasl -p again dsdt.dsl >log 2>&1 && "
                 "grep -q '0 Errors, 0 Warnings' log; status=$?; [ $status = 0 ] || cat log; rm -rf %s; exit $status",
                 directory, directory);
        int status = system(command);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        memory_destroy(ram);
    }
}

static void aml_lengths(void **state)
{
    static const struct {
        unsigned body, lead;
    } cases[] = {{0, 1}, {62, 1}, {63, 2}, {4093, 2}, {4094, 3}, {100000, 3}};
    static uint8_t data[200000];
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct aml a = {.data = data, .size = sizeof data};
        size_t open = aml_if(&a);
        for (unsigned n = 0; n < cases[i].body; n++)
            aml_byte(&a, 0xa3);
        aml_close(&a, open);
        assert_int_equal(a.len, 1 + cases[i].lead + cases[i].body);
        unsigned n = data[1] >> 6, length = n ? data[1] & 0xf : data[1] & 0x3f;
        for (unsigned k = 0; k < n; k++)
            length |= (unsigned)data[2 + k] << (4 + 8 * k);
        assert_int_equal(n + 1, cases[i].lead);
        assert_int_equal(length, cases[i].lead + cases[i].body);
    }
}

static void aml_overflow_is_noticed(void **state)
{
    uint8_t small[16];
    for (size_t size = 0; size <= sizeof small; size++) {
        memset(small, 0x5a, sizeof small);
        struct aml a = {.data = small, .size = size};
        size_t open = aml_device(&a, "DEV");
        aml_name(&a, "_HID");
        aml_eisa_id(&a, "PNP0501");
        aml_close(&a, open);
        assert_int_equal(a.overflow, size < 17); /* 2 + 1 + 4 + 5 + 5 */
        assert_true(a.len <= size);
        for (size_t i = size; i < sizeof small; i++)
            assert_int_equal(small[i], 0x5a);
    }
}

static void smbios_structures(void **state)
{
    static const uint8_t types[] = {0, 1, 3, 4, 16, 17, 19, 32, 127};
    build(2);
    const uint8_t *e = at(BOOT_SMBIOS), *s = at(le(e + 0x18, 4)), *end = s + le(e + 0x16, 2);
    assert_memory_equal(e, "_SM_", 4);
    assert_int_equal(sum(e, e[5]), 0);
    assert_int_equal(sum(e + 16, 15), 0);
    assert_int_equal(le(e + 0x1c, 2), sizeof types);
    for (unsigned i = 0; i < sizeof types; i++) {
        assert_true(s < end);
        assert_int_equal(s[0], types[i]);
        for (s += s[1]; s[0] || s[1]; s++)
            assert_true(s < end);
        s += 2;
    }
    assert_ptr_equal(s, end);
    memory_destroy(ram);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checksums_are_right),
        cmocka_unit_test(fadt_agrees_with_itself),
        cmocka_unit_test(madt_lists_processors_and_overrides),
        cmocka_unit_test(absent_processors_may_come),
        cmocka_unit_test(wrong_platforms_are_refused),
        cmocka_unit_test(iasl_agrees),
        cmocka_unit_test(aml_lengths),
        cmocka_unit_test(aml_overflow_is_noticed),
        cmocka_unit_test(smbios_structures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
