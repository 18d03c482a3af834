/* PCI: both doors to configuration space, BARs, INTx, MSI-X, the reset register. */
#include "machine_fixture.h"

struct toy {
    struct pci_state state;
    struct pci_function f;
    uint64_t last;
};

static uint64_t toy_read(void *opaque, uint64_t offset, unsigned size)
{
    return 0x1000 + offset;
}
static void toy_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    ((struct toy *)opaque)->last = value;
}
static const struct bus_ops toy_ops = {.read = toy_read, .write = toy_write};

/* BAR 0: 64-bit, 64 KiB.  BAR 2: MSI-X with 3 vectors.  BAR 3: 32 ports. */
static void toy_add(struct fixture *f, struct toy *t)
{
    const struct pci_identity id = {.vendor = 0x1234, .device = 0x5678, .class_code = 0x020000, .intx = true};
    memset(t, 0, sizeof *t);
    pci_function_init(&t->f, &t->state, "toy", &id);
    pci_bar_init(&t->f, 0, PCI_BAR_MEM64, 0x10000, &toy_ops, t);
    pci_msix_init(&t->f, 2, 3);
    pci_bar_init(&t->f, 3, PCI_BAR_PORT, 32, &toy_ops, t);
    assert_int_equal(pci_add(f->env.pci, &t->f), 0);
}

static struct fixture fx;
static struct toy toy;

static int setup(void **state)
{
    fixture_open(&fx);
    toy_add(&fx, &toy);
    return 0;
}

static int teardown(void **state)
{
    pci_function_destroy(&toy.f);
    fixture_close(&fx);
    return 0;
}

static void port_door(void **state)
{
    port_out(&fx, 0xcf8, 0x80000800, 4);
    assert_int_equal(port_in(&fx, 0xcf8, 4), 0x80000800);
    assert_int_equal(port_in(&fx, 0xcfc, 4), 0x56781234);
    assert_int_equal(port_in(&fx, 0xcfe, 2), 0x5678);
    assert_int_equal(port_in(&fx, 0xcff, 1), 0x56);
    port_out(&fx, 0xcfb, 1, 1); /* not a 4-byte write: Linux tries this */
    assert_int_equal(port_in(&fx, 0xcf8, 4), 0x80000800);
    port_out(&fx, 0xcf8, 0x00000800, 4); /* not enabled */
    assert_int_equal(port_in(&fx, 0xcfc, 4), 0xffffffff);
    port_out(&fx, 0xcf8, 0x80010000, 4); /* bus 1 */
    assert_int_equal(port_in(&fx, 0xcfc, 4), 0xffffffff);
    port_out(&fx, 0xcf8, 0x80001000, 4); /* empty slot */
    assert_int_equal(port_in(&fx, 0xcfc, 4), 0xffffffff);
}

static void ecam_door(void **state)
{
    assert_int_equal(cfg_in(&fx, 1, 0, 4), 0x56781234);
    assert_int_equal(cfg_in(&fx, 0, 0x0a, 2), 0x0600);
    assert_int_equal(cfg_in(&fx, 1, 0x100, 4), 0xffffffff); /* no extended space */
    assert_int_equal(cfg_in(&fx, 1, 0xfff, 1), 0xff);
    assert_int_equal(cfg_in(&fx, 5, 0, 4), 0xffffffff);
    assert_true(mem_in(&fx, PCI_ECAM_BASE + 0x8000, 8) == ((uint64_t)cfg_in(&fx, 1, 4, 4) << 32 | 0x56781234));
}

static void read_only_registers_hold(void **state)
{
    for (unsigned reg = 0; reg < 256; reg += 4)
        if (reg != 4) /* decoding stays off */
            cfg_out(&fx, 1, reg, 0xffffffff, 4);
    assert_int_equal(cfg_in(&fx, 1, 0, 4), 0x56781234);
    assert_int_equal(cfg_in(&fx, 1, 8, 4), 0x02000000);
    assert_int_equal(cfg_in(&fx, 1, 0x0e, 1), 0);
    assert_int_equal(cfg_in(&fx, 1, 0x3d, 1), 1);
    assert_int_equal(cfg_in(&fx, 1, 0x20, 4), 0); /* no BAR 4 */
}

static void bar_sizes(void **state)
{
    cfg_out(&fx, 1, 0x10, 0xffffffff, 4);
    cfg_out(&fx, 1, 0x14, 0xffffffff, 4);
    assert_int_equal(cfg_in(&fx, 1, 0x10, 4), 0xffff0004);
    assert_int_equal(cfg_in(&fx, 1, 0x14, 4), 0xffffffff);
    cfg_out(&fx, 1, 0x18, 0xffffffff, 4);
    assert_int_equal(cfg_in(&fx, 1, 0x18, 4), 0xfffff000);
    cfg_out(&fx, 1, 0x1c, 0xffffffff, 4);
    assert_int_equal(cfg_in(&fx, 1, 0x1c, 4), 0xffffffe1);
}

static void bar_appears_moves_and_vanishes(void **state)
{
    uint64_t first = cfg_in(&fx, 1, 0x10, 4) & ~0xfu;
    assert_true(first >= PCI_MMIO32_BASE);
    assert_int_equal(mem_in(&fx, first + 8, 4), 0xffffffff);
    cfg_out(&fx, 1, 4, PCI_COMMAND_MEMORY, 2);
    assert_int_equal(mem_in(&fx, first + 8, 4), 0x1008);
    cfg_out(&fx, 1, 0x14, 0x10, 4); /* to 64 GiB and some */
    assert_int_equal(mem_in(&fx, first + 8, 4), 0xffffffff);
    assert_int_equal(mem_in(&fx, 0x1000000000ull + first + 8, 4), 0x1008);
    mem_out(&fx, 0x1000000000ull + first, 77, 4);
    assert_int_equal(toy.last, 77);
    cfg_out(&fx, 1, 4, 0, 2);
    assert_int_equal(mem_in(&fx, 0x1000000000ull + first + 8, 4), 0xffffffff);
}

static void port_bar(void **state)
{
    uint16_t at = cfg_in(&fx, 1, 0x1c, 4) & 0xffe0;
    cfg_out(&fx, 1, 4, PCI_COMMAND_IO, 2);
    assert_int_equal(port_in(&fx, at + 4, 2), 0x1004);
    cfg_out(&fx, 1, 0x1c, 0x12345601, 4); /* beyond 64 Ki ports */
    assert_int_equal(port_in(&fx, at + 4, 2), 0xffff);
}

/* Sizing with decoding on, an address of zero, one that wraps, one on top of another device. */
static void hostile_bar_addresses(void **state)
{
    cfg_out(&fx, 1, 4, PCI_COMMAND_MEMORY | PCI_COMMAND_IO, 2);
    cfg_out(&fx, 1, 0x10, 0xffffffff, 4);
    cfg_out(&fx, 1, 0x14, 0xffffffff, 4);
    assert_false(toy.f.bars[0].mapped);
    cfg_out(&fx, 1, 0x10, 0, 4);
    cfg_out(&fx, 1, 0x14, 0, 4);
    assert_false(toy.f.bars[0].mapped);
    cfg_out(&fx, 1, 0x10, (uint32_t)PCI_ECAM_BASE, 4);
    assert_false(toy.f.bars[0].mapped);
    assert_int_equal(cfg_in(&fx, 1, 0, 4), 0x56781234);
    cfg_out(&fx, 1, 0x10, 0xd0000000, 4);
    assert_true(toy.f.bars[0].mapped);
}

static void intx_goes_to_the_slots_line_and_is_shared(void **state)
{
    struct toy others[4];
    for (unsigned i = 0; i < 4; i++)
        toy_add(&fx, &others[i]); /* slots 2-5; slot 5 shares with slot 1 */
    assert_int_equal(cfg_in(&fx, 1, 0x3c, 1), 17);
    pci_set_intx(&toy.f, true);
    assert_true(fx.level[17]);
    assert_int_equal(cfg_in(&fx, 1, 6, 2) & PCI_STATUS_INTX, PCI_STATUS_INTX);
    pci_set_intx(&others[0].f, true);
    assert_true(fx.level[18]);
    pci_set_intx(&others[3].f, true);
    pci_set_intx(&toy.f, false);
    assert_true(fx.level[17]);
    pci_function_destroy(&others[3].f);
    assert_false(fx.level[17]);
    for (unsigned i = 0; i < 3; i++)
        pci_function_destroy(&others[i].f);
    assert_false(fx.level[18]);
}

static void intx_disable_bit(void **state)
{
    pci_set_intx(&toy.f, true);
    cfg_out(&fx, 1, 4, PCI_COMMAND_INTX_OFF, 2);
    assert_false(fx.level[17]);
    assert_true(cfg_in(&fx, 1, 6, 2) & PCI_STATUS_INTX);
    cfg_out(&fx, 1, 4, 0, 2);
    assert_true(fx.level[17]);
}

/* Enables MSI-X with vector n = { 0xfee00000 + n * 0x1000, 0x40 + n }, unmasked; returns the table. */
static uint64_t enable_msix(uint16_t control)
{
    unsigned cap = find_capability(&fx, 1, PCI_CAP_MSIX, 0);
    assert_int_equal(cfg_in(&fx, 1, cap + 2, 2) & 0x7ff, 2);
    cfg_out(&fx, 1, 4, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    uint64_t table = cfg_in(&fx, 1, 0x18, 4);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(mem_in(&fx, table + 16 * i + 12, 4), 1); /* masked at reset */
        mem_out(&fx, table + 16 * i, 0xfee00000 + i * 0x1000, 8);
        mem_out(&fx, table + 16 * i + 8, 0x40 + i, 4);
        mem_out(&fx, table + 16 * i + 12, 0, 4);
    }
    cfg_out(&fx, 1, cap + 2, control, 2);
    return table;
}

static void msix_sends(void **state)
{
    pci_msix_notify(&toy.f, 1);
    assert_int_equal(fx.n_msi, 0); /* not enabled */
    enable_msix(0x8000);
    pci_msix_notify(&toy.f, 1);
    assert_int_equal(fx.n_msi, 1);
    assert_int_equal(fx.msi_address, 0xfee01000);
    assert_int_equal(fx.msi_data, 0x41);
    pci_msix_notify(&toy.f, 3); /* beyond the table */
    pci_msix_notify(&toy.f, 0xffff);
    assert_int_equal(fx.n_msi, 1);
    pci_set_intx(&toy.f, true); /* INTx is silent while MSI-X is on */
    assert_false(fx.level[17]);
}

static void msix_masks_remember(void **state)
{
    uint64_t table = enable_msix(0xc000);
    pci_msix_notify(&toy.f, 2);
    assert_int_equal(fx.n_msi, 0);
    assert_int_equal(mem_in(&fx, table + 0x800, 8), 4);
    mem_out(&fx, table + 0x800, 0, 8); /* read-only */
    assert_int_equal(mem_in(&fx, table + 0x800, 4), 4);
    mem_out(&fx, table + 2 * 16 + 12, 1, 4);
    cfg_out(&fx, 1, find_capability(&fx, 1, PCI_CAP_MSIX, 0) + 2, 0x8000, 2);
    assert_int_equal(fx.n_msi, 0);
    mem_out(&fx, table + 2 * 16 + 12, 0, 4);
    assert_int_equal(fx.n_msi, 1);
    assert_int_equal(fx.msi_data, 0x42);
    assert_int_equal(mem_in(&fx, table + 0x800, 8), 0);
}

/* A message aimed at RAM, one without bus mastering, writes of wrong size: nothing leaves. */
static void msix_hostile(void **state)
{
    uint64_t table = enable_msix(0x8000);
    mem_out(&fx, table, 0x1000, 8);
    pci_msix_notify(&toy.f, 0);
    cfg_out(&fx, 1, 4, PCI_COMMAND_MEMORY, 2);
    pci_msix_notify(&toy.f, 1);
    assert_int_equal(fx.n_msi, 0);
    mem_out(&fx, table + 16, 0xff, 1);
    mem_out(&fx, table + 18, 0xffff, 2);
    assert_int_equal(mem_in(&fx, table + 16, 8), 0xfee01000);
    mem_out(&fx, table + 3 * 16, 0x1122334455667788, 8);
    assert_int_equal(mem_in(&fx, table + 3 * 16, 8), 0);
    assert_int_equal(mem_in(&fx, table + 0x900, 8), 0);
    for (uint64_t at = 0; at < 0x1000; at++)
        for (unsigned size = 1; size <= 8; size *= 2)
            if (at + size <= 0x1000)
                mem_in(&fx, table + at, size);
}

static void reset_register(void **state)
{
    port_out(&fx, 0xcf9, 0x02, 1);
    assert_int_equal(fx.n_events, 0);
    assert_int_equal(port_in(&fx, 0xcf9, 1), 0x02);
    port_out(&fx, 0xcf9, 0x06, 1);
    assert_int_equal(fx.n_events, 1);
    assert_int_equal(fx.event, MACHINE_RESET);
    port_out(&fx, 0xcf9, 0x06, 1); /* no edge */
    assert_int_equal(fx.n_events, 1);
}

static void reset_restores_power_on(void **state)
{
    uint32_t bar = cfg_in(&fx, 1, 0x10, 4);
    enable_msix(0x8000);
    cfg_out(&fx, 1, 0x10, 0xd0000000, 4);
    pci_set_intx(&toy.f, true);
    pci_function_reset(&toy.f);
    assert_int_equal(cfg_in(&fx, 1, 4, 2), 0);
    assert_int_equal(cfg_in(&fx, 1, 0x10, 4), bar);
    assert_false(toy.f.bars[0].mapped);
    assert_false(fx.level[17]);
    assert_int_equal(toy.state.msix[1].control, 1);
}

static void saved_state_restores(void **state)
{
    enable_msix(0x8000);
    cfg_out(&fx, 1, 0x10, 0xd0000000, 4);
    struct pci_state saved = toy.state;
    pci_function_reset(&toy.f);
    toy.state = saved;
    pci_function_restored(&toy.f);
    assert_int_equal(mem_in(&fx, 0xd0000008, 4), 0x1008);
    pci_msix_notify(&toy.f, 0);
    assert_int_equal(fx.n_msi, 1);
}

static void slots_run_out(void **state)
{
    static struct toy many[32];
    unsigned n = 0;
    const struct pci_identity id = {.vendor = 1};
    for (; n < 32; n++) {
        pci_function_init(&many[n].f, &many[n].state, "many", &id);
        if (pci_add(fx.env.pci, &many[n].f))
            break;
    }
    assert_int_equal(n, 30);
    while (n--)
        pci_function_destroy(&many[n].f);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(port_door),
        T(ecam_door),
        T(read_only_registers_hold),
        T(bar_sizes),
        T(bar_appears_moves_and_vanishes),
        T(port_bar),
        T(hostile_bar_addresses),
        T(intx_goes_to_the_slots_line_and_is_shared),
        T(intx_disable_bit),
        T(msix_sends),
        T(msix_masks_remember),
        T(msix_hostile),
        T(reset_register),
        T(reset_restores_power_on),
        T(saved_state_restores),
        T(slots_run_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
