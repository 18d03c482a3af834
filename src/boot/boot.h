/*
 * What firmware would have done: the kernel in memory, the tables that describe the machine, and the
 * boot processor at the kernel's first instruction.
 *
 * Two ways in, told apart by the file itself: a bzImage is entered by the 64-bit Linux boot protocol, an ELF
 * file by its PVH note.  Low memory while it lasts (all of it free again once the kernel runs):
 *
 *   0x00400 BIOS data area   0x00500 GDT          0x06000 random seed     0x07000 zero page
 *   0x08000 PVH start info   0x09000 page tables  0x10000 command line
 *   0x9fc00 EBDA             0xe0000 ACPI tables  0xf0000 SMBIOS tables
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct memory;
struct cpu;

#define BOOT_MAX_CPUS 64u
#define BOOT_INITRDS_MAX 4u

/* The machine as its tables describe it; filled by the machine, so that an address is written once. */
struct platform {
    unsigned n_cpus;      /* possible ones, 1..BOOT_MAX_CPUS; APIC id = index */
    uint64_t absent_cpus; /* bits: of these, who is not there yet */
    uint16_t cpus_port;   /* their registers, a byte each; 0: CPUs do not come and go */
    struct {
        uint8_t present, inserted, leave, eject, refuse; /* a register's bits: devices/acpi_cpus.h */
    } cpu_bits;
    uint64_t lapic_base, ioapic_base, hpet_base;
    uint64_t ecam_base, ecam_size; /* 1 MiB a bus, from bus 0 */
    uint64_t mmio32_base, mmio32_size, mmio64_base, mmio64_size;
    unsigned pci_gsi_base, pci_gsi_count; /* INTx pin p of slot s is GSI base + (s + p) % count */
    uint16_t pm1a_event, pm1a_control, pm_timer, reset_port, pvpanic_port, uart_port;
    uint16_t gpe0; /* status and enable, a byte each; event 0: look at the CPUs' registers; 1: another generation */
    uint64_t generation; /* where the machine's generation ID is: devices/generation.h */
    uint8_t pm_ports;
    uint8_t sci_gsi, s5_type, reset_value, uart_irq;
    uint8_t century; /* index of the century in CMOS RAM, 0: none */
};

struct boot_source {
    const char *kernel_path; /* for messages */
    int kernel_fd;
    int initrd_fds[BOOT_INITRDS_MAX]; /* loaded one behind the other, as the kernel unpacks them: the last one wins */
    unsigned n_initrds;
    const char *append; /* command line, may be NULL */
};

enum boot_protocol { BOOT_LINUX64, BOOT_PVH };

/* Where a kernel is that the host has unpacked. */
struct boot_image {
    uint64_t gpa, gva, size; /* 0: it unpacks itself */
};

struct boot_entry {
    enum boot_protocol protocol;
    uint64_t rip;
    uint64_t info; /* gpa of the zero page (rsi) or of hvm_start_info (ebx) */
    struct boot_image image;
};

/* Writes everything into RAM.  0, or -errno with one sentence in error. */
int boot_load(struct memory *m, const struct boot_source *source, const struct platform *platform,
              struct boot_entry *entry, char *error, size_t error_size);

/* Puts a vCPU that cpu_reset has prepared at the entry. */
void boot_set_cpu(const struct boot_entry *entry, struct cpu *cpu);
