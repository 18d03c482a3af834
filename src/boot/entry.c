/* The boot processor's state at the kernel's first instruction, hidden segment parts included. */
#include <string.h>

#include "boot/boot_int.h"
#include "cpu/cpu.h"

#define SELECTOR_CODE 0x10
#define SELECTOR_DATA 0x18
#define TYPE_CODE (SEG_CODE | SEG_READABLE | SEG_ACCESSED)
#define TYPE_DATA (SEG_WRITABLE | SEG_ACCESSED)
#define TYPE_TSS_BUSY 0xb
#define PTE_TABLE 0x03u /* present, writable */
#define PTE_LARGE 0x83u
#define PAGE 4096u

/* Null, null, code, data: the selectors that the Linux protocol prescribes (__BOOT_CS, __BOOT_DS). */
static void put_gdt(struct memory *m, bool long_mode)
{
    const uint64_t gdt[] = {0, 0, long_mode ? 0x00af9b000000ffffull : 0x00cf9b000000ffffull, 0x00cf93000000ffffull};
    memory_write(m, BOOT_GDT, gdt, sizeof gdt);
}

/* The first 4 GiB one to one, in 2 MiB pages. */
static void put_page_tables(struct memory *m)
{
    uint64_t *table = memory_hva(m, BOOT_PAGE_TABLES, 6 * PAGE);

    memset(table, 0, 6 * PAGE);
    table[0] = (BOOT_PAGE_TABLES + PAGE) | PTE_TABLE;
    for (uint64_t i = 0; i < 4; i++)
        table[512 + i] = (BOOT_PAGE_TABLES + (2 + i) * PAGE) | PTE_TABLE;
    for (uint64_t i = 0; i < 4 * 512; i++)
        table[2 * 512 + i] = i << 21 | PTE_LARGE;
}

static void set_segments(struct cpu *cpu, bool long_mode)
{
    const struct segment data = {
        .selector = SELECTOR_DATA, .limit = 0xffffffff, .attr = TYPE_DATA | SEG_S | SEG_P | SEG_DB | SEG_G};
    for (unsigned i = 0; i < 6; i++)
        cpu->seg[i] = data;
    cpu->seg[CS] = (struct segment){
        .selector = SELECTOR_CODE,
        .limit = 0xffffffff,
        .attr = (uint16_t)(TYPE_CODE | SEG_S | SEG_P | SEG_G | (long_mode ? SEG_L : SEG_DB))};
    cpu->tr = (struct segment){.limit = 0x67, .attr = TYPE_TSS_BUSY | SEG_P};
    cpu->gdtr = (struct descriptor_table){.base = BOOT_GDT, .limit = 4 * 8 - 1};
    cpu->idtr = (struct descriptor_table){0};
    cpu->cpl = 0;
}

void boot_set_cpu(const struct boot_entry *entry, struct cpu *cpu)
{
    bool long_mode = entry->protocol == BOOT_LINUX64;

    put_gdt(cpu->memory, long_mode);
    set_segments(cpu, long_mode);
    cpu->rflags = FL_ONE;
    cpu->rip = entry->rip;
    cpu->gpr[long_mode ? RSI : RBX] = entry->info;
    cpu->cr0 = CR0_PE | CR0_ET;
    if (long_mode) {
        put_page_tables(cpu->memory);
        cpu->cr0 |= CR0_PG | CR0_NE | CR0_WP | CR0_MP;
        cpu->cr3 = BOOT_PAGE_TABLES;
        cpu->cr4 = CR4_PAE;
        cpu->efer = EFER_LME | EFER_LMA;
    }
    if (cpu->ops && cpu->ops->mode_changed)
        cpu->ops->mode_changed(cpu);
    if (cpu->ops && cpu->ops->tlb_flush_all)
        cpu->ops->tlb_flush_all(cpu, true);
}
