/*
 * The computer: memory, bus, event loop, the ordered array of devices, and the tables that
 * describe them to the guest.  pc.c shows the whole machine.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "devices/device.h"

struct machine_config {
    uint64_t memory_bytes;            /* rounded up to pages */
    unsigned n_cpus;                  /* 1..64 that there can be, each of which has a vCPU */
    unsigned n_present;               /* so many at the start, and then they may come and go; 0: all, for ever */
    const char *kernel_path, *append; /* append may be NULL */
    const char *const *initrd_paths;  /* unpacked one over the other */
    unsigned n_initrds;               /* at most BOOT_INITRDS_MAX */
    /* Console: bytes the guest writes leave through output, which says how many it took, and wait holds a CPU that
     * writes on (uart16550.h); input arrives by machine_console_input. */
    size_t (*console_output)(void *opaque, const void *data, size_t len);
    bool (*console_wait)(void *opaque);
    void *console_opaque;
};

struct machine;
struct sections;
struct cpu;

/* Builds it, and opens the kernel's files: machine_boot or machine_restore is what comes next.  `config` is copied, the
 * strings are kept by reference.  0, or -errno with one sentence in error. */
int machine_create(struct machine **out, const struct machine_config *config, char *error, size_t error_size);
void machine_destroy(struct machine *m);
/* Adds a device behind those that every machine has, in the order of the calls; before a vCPU runs.  `name` is kept
 * by reference, `config` is the class's own and read during the call.  0, or -errno with one sentence in error. */
int machine_add(struct machine *m, const char *name, const struct device_class *class, const void *config, char *error,
                size_t error_size);
struct memory *machine_memory(struct machine *m);
struct bus *machine_bus(struct machine *m);
struct loop *machine_loop(struct machine *m);
/* Connects vCPU i, gives it its local APIC.  `kick` is called, lock held or not, after cpu->request was set. */
int machine_attach_cpu(struct machine *m, struct cpu *cpu, unsigned i, void (*kick)(void *opaque, unsigned i),
                       void *opaque);

/* Loads the kernel, which looks into files that may be a stranger's, and gives the vCPUs their boot state (BSP: kernel
 * entry; APs: wait for SIPI).  None of them runs.  0, or -errno with one sentence in error. */
int machine_boot(struct machine *m, char *error, size_t error_size);

/* Where that put the kernel's image, physically and as the kernel sees it; false: the kernel unpacks itself. */
bool machine_kernel(const struct machine *m, uint64_t *gpa, uint64_t *gva, uint64_t *size);

/* Below: bus lock held. */

/* Bytes typed; returns how many were taken (the rest: try again when on_space is called). */
size_t machine_console_input(struct machine *m, const void *data, size_t len);
void machine_set_console_space(struct machine *m, void (*on_space)(void *opaque), void *opaque);
/* Hands over what the guest wrote and was held back, to make larger pieces or for want of room; returns how much is
 * left. */
size_t machine_console_flush(struct machine *m);
/* --- CPUs that come and go: `config` had n_present --- */
bool machine_cpus_vary(const struct machine *m);
/* How many there are, less those that the guest has been asked to let go; how many when it has let none of them go. */
unsigned machine_cpus_wanted(const struct machine *m);
unsigned machine_cpus_present(const struct machine *m);
/* There are to be `count`, 1..n_cpus: what is missing is there at once, what is too much the guest is asked to let go,
 * those with the highest numbers first.  What it was asked before and `count` allows is taken back. */
void machine_cpus_set(struct machine *m, unsigned count);
/* Called (lock held) when the guest has let CPU i go, asked or not, or refuses to when asked. */
void machine_set_cpu_answer(struct machine *m, void (*answer)(void *opaque, unsigned i, bool left), void *opaque);

/* Presses the power button: what the operating system then does is its own decision. */
void machine_power_button(struct machine *m);
/* Power-on again with the same kernel; no vCPU runs.  0, or -errno with a sentence: the kernel's file
 * cannot be read any more. */
int machine_reset(struct machine *m, char *error, size_t error_size);
/* Called (lock held) for poweroff, reset, panic. */
void machine_set_event(struct machine *m, void (*event)(void *opaque, int event), void *opaque);
/* Accesses by range, most used first. */
void machine_stats(struct machine *m, FILE *out);

/* --- snapshots (save.c); no vCPU runs --- */
/* Lets devices finish what they are at and adds the sections of the machine: all but the contents of memory and the
 * vCPUs' SIMD state.  0/-errno. */
int machine_save(struct machine *m, struct sections *out);
/* The reverse, on a machine of the same configuration that has not run, with its memory's contents in place: the
 * devices go on at once.  0, or -errno with a sentence's rest ("it has 2 CPUs, ..."), and then the machine is of no
 * use. */
int machine_restore(struct machine *m, const struct sections *in, char *err, size_t n);
/* It goes on from a state that has been gone on from before, or may be: its guest is told (devices/generation.h). */
void machine_new_generation(struct machine *m);
/* Whether that will do: as far as it can fail it does so here.  Devices stay as they are. */
int machine_restore_check(struct machine *m, const struct sections *in, char *err, size_t n);
