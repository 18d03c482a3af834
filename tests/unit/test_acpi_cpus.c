/* CPUs that come and go: the registers, who is told what, reset, garbage; and the general-purpose event they raise. */
#include "board.h"
#include "devices/acpi_cpus.h"
#include "devices/acpi_pm.h"

static struct board *b;
static unsigned notified, connected[64], disconnected[64], left[64], refused[64];

static void on_notify(void *opaque)
{
    notified++;
}

static void on_connect(void *opaque, unsigned i, bool present)
{
    assert_true(i < 64);
    present ? connected[i]++ : disconnected[i]++;
}

static void on_answer(void *opaque, unsigned i, bool gone)
{
    assert_true(i > 0 && i < 64); /* it is never CPU 0 */
    gone ? left[i]++ : refused[i]++;
}

static void forget(void)
{
    notified = 0;
    memset(connected, 0, sizeof connected);
    memset(disconnected, 0, sizeof disconnected);
    memset(left, 0, sizeof left);
    memset(refused, 0, sizeof refused);
}

static void begin(unsigned n_cpus, unsigned n_present)
{
    const struct acpi_cpus_config config = {
        .n_cpus = n_cpus, .n_present = n_present, .notify = on_notify, .connect = on_connect, .answer = on_answer};

    forget();
    b = board_create(&acpi_cpus_class, &config);
}

static uint8_t in(unsigned i)
{
    return (uint8_t)bus_read(b->bus, BUS_PORT, ACPI_CPUS_PORT + i, 1);
}

static void out(unsigned i, uint8_t value)
{
    bus_write(b->bus, BUS_PORT, ACPI_CPUS_PORT + i, value, 1);
}

static void the_first_are_there(void **state)
{
    begin(4, 2);
    assert_int_equal(acpi_cpus_present(&b->device), 3);
    assert_int_equal(bus_read(b->bus, BUS_PORT, ACPI_CPUS_PORT, 4), 0x00000101);
    assert_int_equal(connected[0] + connected[1], 2);
    assert_int_equal(disconnected[2] + disconnected[3], 2);
    assert_int_equal(in(4), 0);
    assert_int_equal(in(63), 0);
    assert_int_equal(notified, 0);
    board_destroy(b);
    begin(64, 64);
    assert_int_equal(acpi_cpus_present(&b->device), ~0ull);
    assert_int_equal(in(63), ACPI_CPU_PRESENT);
    board_destroy(b);
}

static void one_is_inserted(void **state)
{
    begin(4, 1);
    forget();
    acpi_cpus_insert(&b->device, 2);
    assert_int_equal(notified, 1);
    assert_int_equal(connected[2], 1);
    assert_int_equal(in(2), ACPI_CPU_PRESENT | ACPI_CPU_INSERTED);
    assert_int_equal(in(1), 0);
    out(1, ACPI_CPU_INSERTED);
    out(2, ACPI_CPU_LEAVE);
    assert_int_equal(in(2), ACPI_CPU_PRESENT | ACPI_CPU_INSERTED);
    out(2, ACPI_CPU_INSERTED);
    assert_int_equal(in(2), ACPI_CPU_PRESENT);
    assert_int_equal(acpi_cpus_present(&b->device), 5);
    board_destroy(b);
}

static void one_is_let_go(void **state)
{
    begin(4, 3);
    forget();
    acpi_cpus_ask(&b->device, 2, true);
    assert_int_equal(notified, 1);
    assert_int_equal(in(2), ACPI_CPU_PRESENT | ACPI_CPU_LEAVE);
    assert_int_equal(acpi_cpus_leaving(&b->device), 4);
    out(2, ACPI_CPU_LEAVE);
    assert_int_equal(in(2), ACPI_CPU_PRESENT);
    assert_int_equal(acpi_cpus_leaving(&b->device), 4);
    assert_int_equal(left[2] + disconnected[2], 0);
    out(2, ACPI_CPU_EJECT);
    assert_int_equal(in(2), 0);
    assert_int_equal(left[2], 1);
    assert_int_equal(disconnected[2], 1);
    assert_int_equal(acpi_cpus_leaving(&b->device), 0);
    out(2, ACPI_CPU_EJECT); /* it is not there */
    assert_int_equal(left[2], 1);
    board_destroy(b);
}

static void a_request_is_refused_or_taken_back(void **state)
{
    begin(4, 3);
    acpi_cpus_ask(&b->device, 2, true);
    out(2, ACPI_CPU_REFUSE);
    assert_int_equal(refused[2], 1);
    assert_int_equal(in(2), ACPI_CPU_PRESENT);
    assert_int_equal(acpi_cpus_leaving(&b->device), 0);
    out(2, ACPI_CPU_REFUSE); /* nobody has asked */
    assert_int_equal(refused[2], 1);
    acpi_cpus_ask(&b->device, 2, true);
    acpi_cpus_ask(&b->device, 2, false);
    assert_int_equal(in(2), ACPI_CPU_PRESENT);
    assert_int_equal(acpi_cpus_leaving(&b->device), 0);
    out(1, ACPI_CPU_EJECT); /* unasked */
    assert_int_equal(left[1], 1);
    board_destroy(b);
}

static void cpu_0_stays(void **state)
{
    begin(4, 4);
    out(0, ACPI_CPU_EJECT);
    assert_int_equal(in(0), ACPI_CPU_PRESENT);
    assert_int_equal(disconnected[0], 0);
    bus_write(b->bus, BUS_PORT, ACPI_CPUS_PORT, 0x08080808, 4);
    assert_int_equal(acpi_cpus_present(&b->device), 1);
    board_destroy(b);
}

static void a_reset_keeps_them_and_ends_requests(void **state)
{
    begin(4, 2);
    acpi_cpus_insert(&b->device, 2);
    acpi_cpus_ask(&b->device, 1, true);
    b->device.class->reset(&b->device);
    assert_int_equal(acpi_cpus_present(&b->device), 5);
    assert_int_equal(left[1], 1);
    assert_int_equal(in(2), ACPI_CPU_PRESENT);
    board_destroy(b);
}

static void without_there_are_no_registers(void **state)
{
    begin(4, 0);
    assert_int_equal(b->bus->n_ranges[BUS_PORT], 0);
    assert_int_equal(acpi_cpus_present(&b->device), 15);
    board_destroy(b);
}

static void what_is_restored_holds(void **state)
{
    begin(4, 1);
    acpi_cpus_insert(&b->device, 3);
    uint64_t saved[4];
    memcpy(saved, (char *)b->device.state + acpi_cpus_class.save_offset, sizeof saved);
    assert_int_equal(acpi_cpus_class.save_size, sizeof saved);
    board_destroy(b);
    begin(4, 1);
    forget();
    memcpy((char *)b->device.state + acpi_cpus_class.save_offset, saved, sizeof saved);
    acpi_cpus_class.post_restore(&b->device);
    assert_int_equal(in(3), ACPI_CPU_PRESENT | ACPI_CPU_INSERTED);
    assert_int_equal(connected[0] + connected[3], 2);
    assert_int_equal(disconnected[1] + disconnected[2], 2);
    board_destroy(b);
}

static void a_strangers_state_is_checked(void **state)
{
    begin(4, 1);
    memset((char *)b->device.state + acpi_cpus_class.save_offset, 0xff, acpi_cpus_class.save_size);
    acpi_cpus_class.post_restore(&b->device);
    assert_int_equal(acpi_cpus_present(&b->device), 15);
    assert_int_equal(acpi_cpus_leaving(&b->device), 14);
    memset((char *)b->device.state + acpi_cpus_class.save_offset, 0, acpi_cpus_class.save_size);
    acpi_cpus_class.post_restore(&b->device);
    assert_int_equal(acpi_cpus_present(&b->device), 1);
    board_destroy(b);
}

static void garbage_does_no_harm(void **state)
{
    begin(5, 3);
    board_garbage(b, BUS_PORT, ACPI_CPUS_PORT, ACPI_CPUS_MAX, 3);
    board_garbage_state(b, BUS_PORT, ACPI_CPUS_PORT, ACPI_CPUS_MAX);
    assert_true(acpi_cpus_present(&b->device) & 1);
    assert_int_equal(acpi_cpus_present(&b->device) >> 5, 0);
    board_destroy(b);
}

/* --- the event by which the guest hears of it (acpi_pm.c) ------------------------------------------------ */

static void a_general_purpose_event_interrupts(void **state)
{
    b = board_create(&acpi_pm_class, NULL);
    acpi_pm_event(&b->device, 0);
    assert_false(b->level[ACPI_SCI_GSI]); /* not enabled */
    assert_int_equal(bus_read(b->bus, BUS_PORT, ACPI_GPE0, 2), 0x0001);
    bus_write(b->bus, BUS_PORT, ACPI_GPE0 + 1, 0x01, 1);
    assert_true(b->level[ACPI_SCI_GSI]);
    bus_write(b->bus, BUS_PORT, ACPI_GPE0, 0xfe, 1);
    assert_true(b->level[ACPI_SCI_GSI]);
    bus_write(b->bus, BUS_PORT, ACPI_GPE0, 0x01, 1);
    assert_false(b->level[ACPI_SCI_GSI]);
    assert_int_equal(bus_read(b->bus, BUS_PORT, ACPI_GPE0, 2), 0x0100);
    acpi_pm_event(&b->device, 0);
    assert_true(b->level[ACPI_SCI_GSI]);
    b->device.class->reset(&b->device);
    assert_false(b->level[ACPI_SCI_GSI]);
    assert_int_equal(bus_read(b->bus, BUS_PORT, ACPI_GPE0, 2), 0);
    board_destroy(b);
}

#define T(name) cmocka_unit_test(name)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(the_first_are_there),
        T(one_is_inserted),
        T(one_is_let_go),
        T(a_request_is_refused_or_taken_back),
        T(cpu_0_stays),
        T(a_reset_keeps_them_and_ends_requests),
        T(without_there_are_no_registers),
        T(what_is_restored_holds),
        T(a_strangers_state_is_checked),
        T(garbage_does_no_harm),
        T(a_general_purpose_event_interrupts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
