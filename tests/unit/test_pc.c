/* The whole machine without an engine: its devices answer where the tables say, events arrive, reset works. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>

#include "boot_fixture.h"
#include "bus/bus.h"
#include "cpu/cpu.h"
#include "devices/acpi_pm.h"
#include "devices/device.h"
#include "machine/machine.h"

static uint8_t image[BZIMAGE_SIZE];
static char kernel_path[] = "/tmp/guise-kernel-XXXXXX", error[256], console[64];
static size_t console_len;
static struct machine *pc;
static struct bus *bus;
static struct cpu cpus[2];
static unsigned kicks[2];
static int last_event;

static size_t output(void *opaque, const void *data, size_t len)
{
    for (size_t i = 0; i < len && console_len < sizeof console; i++)
        console[console_len++] = ((const char *)data)[i];
    return len;
}

static void on_event(void *opaque, int event)
{
    last_event = event;
}
static void on_kick(void *opaque, unsigned i)
{
    kicks[i]++;
}

static int make_kernel(void **state)
{
    make_bzimage(image, "", 0);
    int fd = mkstemp(kernel_path);
    return fd < 0 || write(fd, image, sizeof image) != sizeof image || close(fd);
}

static int remove_kernel(void **state)
{
    return unlink(kernel_path);
}

static int make(const struct machine_config *config)
{
    console_len = 0;
    last_event = -1;
    assert_int_equal(machine_create(&pc, config, error, sizeof error), 0);
    bus = machine_bus(pc);
    machine_set_event(pc, on_event, NULL);
    memset(cpus, 0, sizeof cpus);
    for (unsigned i = 0; i < 2; i++) {
        cpus[i] = (struct cpu){.index = i, .n_cpus = 2, .memory = machine_memory(pc), .bus = bus};
        kicks[i] = 0;
        assert_int_equal(machine_attach_cpu(pc, &cpus[i], i, on_kick, NULL), 0);
    }
    assert_int_equal(machine_boot(pc, error, sizeof error), 0);
    return 0;
}

static int setup(void **state)
{
    const struct machine_config config = {
        .memory_bytes = 64 << 20, .n_cpus = 2, .kernel_path = kernel_path, .append = "test", .console_output = output};
    return make(&config);
}

static int teardown(void **state)
{
    machine_destroy(pc);
    return 0;
}

static uint64_t in(uint16_t port, unsigned size)
{
    return bus_read(bus, BUS_PORT, port, size);
}
static void out(uint16_t port, uint64_t v, unsigned size)
{
    bus_write(bus, BUS_PORT, port, v, size);
}

static void processors_start_as_they_should(void **state)
{
    assert_int_equal(cpus[0].rip, BZIMAGE_LOAD + 0x200);
    assert_false(cpus[0].halted);
    assert_true(cpus[1].wait_sipi);
    assert_non_null(cpus[0].irq);
    assert_int_equal(machine_attach_cpu(pc, &cpus[0], 2, on_kick, NULL), -EINVAL);
}

static void devices_answer(void **state)
{
    static const uint16_t ports[] = {0x20, 0x40, 0x61, 0x64, 0x71, 0xa0, 0x3fd, 0x505};
    for (unsigned i = 0; i < sizeof ports / sizeof *ports; i++)
        assert_int_not_equal(in(ports[i], 1), 0xff);
    assert_int_equal(in(0x505, 1), 3);
    assert_int_equal(in(0x604, 2) & 1, 1); /* ACPI mode */
    assert_int_equal(bus_read(bus, BUS_MEM, 0xe0008000, 4), 0x10441af4);
    assert_int_equal(bus_read(bus, BUS_MEM, 0xfed00000, 4) & 0xff00, 0xa200);
    bus_write(bus, BUS_MEM, 0xfec00000, 1, 4);
    assert_int_equal(bus_read(bus, BUS_MEM, 0xfec00010, 4) >> 16, 23);
}

static void the_console_writes(void **state)
{
    out(0x3f8, 'h', 1);
    out(0x3f8, 'i', 1);
    pthread_mutex_lock(&bus->lock);
    machine_console_flush(pc);
    assert_int_equal(machine_console_input(pc, "x", 1), 1);
    pthread_mutex_unlock(&bus->lock);
    assert_int_equal(console_len, 2);
    assert_memory_equal(console, "hi", 2);
    assert_int_equal(in(0x3f8, 1), 'x');
}

static void events(void **state)
{
    out(0x604, 3 << 10 | 1 << 13, 2); /* some other sleep state */
    assert_int_equal(last_event, -1);
    out(0x604, ACPI_S5_TYPE << 10 | 1 << 13, 2);
    assert_int_equal(last_event, MACHINE_POWEROFF);
    out(0xcf9, 6, 1);
    assert_int_equal(last_event, MACHINE_RESET);
    out(0x505, 2, 1);
    assert_int_equal(last_event, MACHINE_RESET);
    out(0x505, 1, 1);
    assert_int_equal(last_event, MACHINE_PANIC);
}

static void pm_timer_runs(void **state)
{
    uint32_t first = (uint32_t)in(0x608, 4);
    usleep(20000);
    uint32_t passed = (uint32_t)in(0x608, 4) - first;
    assert_in_range(passed, 71590, 71590 * 20);
}

static void pm1_enable_and_power_button(void **state)
{
    out(0x602, 0x0100, 2);
    assert_int_equal(in(0x602, 2), 0x0100);
    assert_int_equal(in(0x603, 1), 0x01);
    out(0x602, 0xffff, 2);
    assert_int_equal(in(0x602, 2), 0x0721);
    out(0x600, 0xffff, 2);
    assert_int_equal(in(0x600, 2), 0);
    out(0x60a, 0xffff, 2); /* the timer is read-only */
}

/* The timer's line is pin 2; a level on GSI 0 shows up there, not on pin 0. */
static void the_timer_is_pin_2(void **state)
{
    bus_write(bus, BUS_MEM, 0xfee000f0, 0x1ff, 4);
    for (unsigned pin = 0; pin < 4; pin++) {
        bus_write(bus, BUS_MEM, 0xfec00000, 0x10 + 2 * pin, 4);
        bus_write(bus, BUS_MEM, 0xfec00010, 0x50 + pin, 4);
    }
    out(0x43, 0x34, 1); /* channel 0, rate generator */
    out(0x40, 0xff, 1);
    out(0x40, 0x01, 1);
    out(0x43, 0x30, 1); /* one shot: the output goes low, then high */
    out(0x40, 1, 1);
    out(0x40, 0, 1);
    struct loop_timer stop;
    loop_timer_init(&stop, (void (*)(void *))loop_stop, machine_loop(pc));
    pthread_mutex_lock(&bus->lock);
    loop_timer_set(machine_loop(pc), &stop, clock_ns() + 20000000);
    pthread_mutex_unlock(&bus->lock);
    loop_run(machine_loop(pc));
    assert_true(cpus[0].irq->pending(cpus[0].irq_opaque));
    assert_int_equal(cpus[0].irq->acknowledge(cpus[0].irq_opaque), 0x52);
}

static void reset_starts_again(void **state)
{
    uint8_t code[2] = {1, 2};
    memory_write(machine_memory(pc), BZIMAGE_LOAD + 0x200, code, 2);
    cpus[0].rip = 0x1234;
    cpus[0].cr4 = 0;
    cpus[1].wait_sipi = 0;
    bus_write(bus, BUS_MEM, 0xe0008004, 7, 2);
    out(0x602, 0x0100, 2);
    pthread_mutex_lock(&bus->lock);
    assert_int_equal(machine_reset(pc, error, sizeof error), 0);
    pthread_mutex_unlock(&bus->lock);
    assert_int_equal(cpus[0].rip, BZIMAGE_LOAD + 0x200);
    assert_true(cpu_64bit(&cpus[0]));
    assert_true(cpus[1].wait_sipi);
    memory_read(machine_memory(pc), BZIMAGE_LOAD + 0x200, code, 2);
    assert_int_equal(code[0], 0xf4);
    assert_int_equal(bus_read(bus, BUS_MEM, 0xe0008004, 2), 0);
    assert_int_equal(in(0x602, 2), 0);
}

/* One of two CPUs is there at first. */
static int setup_hotplug(void **state)
{
    const struct machine_config config = {
        .memory_bytes = 64 << 20, .n_cpus = 2, .n_present = 1, .kernel_path = kernel_path, .console_output = output};
    return make(&config);
}

static void init_and_sipi(unsigned to)
{
    bus_write(bus, BUS_MEM, 0xfee00310, to << 24, 4);
    bus_write(bus, BUS_MEM, 0xfee00300, 0x4500, 4);
    bus_write(bus, BUS_MEM, 0xfee00300, 0x4610, 4);
    bus_write(bus, BUS_MEM, 0xfee00300, 0xc4610, 4); /* all others */
}

static unsigned answers, answer_cpu;
static bool answer_left;

static void on_answer(void *opaque, unsigned i, bool left)
{
    answers++;
    answer_cpu = i;
    answer_left = left;
}

static void a_cpu_that_is_not_there_hears_nothing(void **state)
{
    atomic_store(&cpus[1].request, 0);
    init_and_sipi(1);
    assert_int_equal(atomic_load(&cpus[1].request), 0);
    machine_cpus_set(pc, 2);
    assert_int_equal(machine_cpus_present(pc), 2);
    assert_int_equal(in(0x60c, 1), 1);
    init_and_sipi(1);
    assert_true(atomic_load(&cpus[1].request) & REQ_SIPI);
}

static void a_cpu_that_is_let_go_stops(void **state)
{
    machine_set_cpu_answer(pc, on_answer, NULL);
    answers = 0;
    machine_cpus_set(pc, 2);
    machine_cpus_set(pc, 1);
    assert_int_equal(machine_cpus_present(pc), 2);
    assert_int_equal(machine_cpus_wanted(pc), 1);
    assert_int_equal(in(0x641, 1), 7);
    cpus[1].wait_sipi = cpus[1].halted = 0;
    atomic_store(&cpus[1].request, 0);
    out(0x641, 8, 1);
    assert_true(atomic_load(&cpus[1].request) & REQ_INIT);
    assert_int_equal(machine_cpus_present(pc), 1);
    assert_int_equal(answers, 1);
    assert_int_equal(answer_cpu, 1);
    assert_true(answer_left);
    atomic_store(&cpus[1].request, 0);
    init_and_sipi(1);
    assert_int_equal(atomic_load(&cpus[1].request), 0);
}

static void what_was_asked_is_taken_back(void **state)
{
    machine_cpus_set(pc, 2);
    machine_cpus_set(pc, 1);
    machine_cpus_set(pc, 2);
    assert_int_equal(machine_cpus_wanted(pc), 2);
    assert_int_equal(in(0x641, 1), 3);
    assert_int_equal(in(0x640, 1), 1);
}

/* The flags of a CPU in the MADT, where it was put. */
static uint32_t madt_flags(unsigned i)
{
    const uint8_t *area = memory_hva(machine_memory(pc), 0xe0000, 0x10000);
    const uint8_t *t = memmem(area, 0x10000, "APIC", 4);
    uint32_t flags;

    while (memcmp(t + 10, "GUISE", 5)) /* the header's, not the XSDT's word */
        t = memmem(t + 1, 0x1000, "APIC", 4);
    memcpy(&flags, t + 44 + 8 * i + 4, 4);
    return flags;
}

static void the_tables_say_who_is_there(void **state)
{
    assert_int_equal(madt_flags(0), 1);
    assert_int_equal(madt_flags(1), 2);
    machine_cpus_set(pc, 2);
    pthread_mutex_lock(&bus->lock);
    assert_int_equal(machine_reset(pc, error, sizeof error), 0);
    pthread_mutex_unlock(&bus->lock);
    assert_int_equal(machine_cpus_present(pc), 2);
    assert_int_equal(madt_flags(1), 1);
}

static void creation_fails_with_a_sentence(void **state)
{
    struct machine *m = NULL;
    struct machine_config config = {.memory_bytes = 64 << 20, .n_cpus = 1, .kernel_path = "/nonexistent"};
    assert_true(machine_create(&m, &config, error, sizeof error) < 0);
    assert_non_null(strstr(error, "/nonexistent"));
    config.kernel_path = kernel_path;
    const char *const initrds[] = {"/nonexistent-too"};
    config.initrd_paths = initrds;
    config.n_initrds = 1;
    assert_true(machine_create(&m, &config, error, sizeof error) < 0);
    assert_non_null(strstr(error, "initrd"));
    config.n_initrds = 0;
    config.n_cpus = 65;
    assert_true(machine_create(&m, &config, error, sizeof error) < 0);
    assert_null(m);
    config.n_cpus = 1;
    config.memory_bytes = 1 << 20; /* the kernel needs more */
    assert_int_equal(machine_create(&m, &config, error, sizeof error), 0);
    assert_true(machine_boot(m, error, sizeof error) < 0);
    assert_non_null(strstr(error, "memory"));
    machine_destroy(m);
}

#define H(name) cmocka_unit_test_setup_teardown(name, setup_hotplug, teardown)
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(processors_start_as_they_should),
        T(devices_answer),
        T(the_console_writes),
        T(events),
        T(pm_timer_runs),
        T(pm1_enable_and_power_button),
        T(the_timer_is_pin_2),
        T(reset_starts_again),
        H(a_cpu_that_is_not_there_hears_nothing),
        H(a_cpu_that_is_let_go_stops),
        H(what_was_asked_is_taken_back),
        H(the_tables_say_who_is_there),
        cmocka_unit_test(creation_fails_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, make_kernel, remove_kernel);
}
