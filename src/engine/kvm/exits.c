/* Why a guest stops: the table of KVM's exit reasons is the summary. */
#include <string.h>

#include "bus/bus.h"
#include "engine/kvm/kvm_int.h"

enum { MSR_TSC = 0x10, MSR_APIC_BASE = 0x1b, MSR_TSC_ADJUST = 0x3b, MSR_TSC_DEADLINE = 0x6e0 };
#define APIC_BASE_ENABLE (1ull << 11)

/* --- ports and memory -------------------------------------------------------------------------- */

static int exit_io(struct vcpu *v)
{
    struct kvm_run *run = v->run;
    struct bus *bus = v->cpu.bus;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    unsigned size = run->io.size;

    v->unfinished = true;
    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        uint64_t value = 0;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            memcpy(&value, data, size);
            bus_write(bus, BUS_PORT, run->io.port, value, size);
        } else {
            value = bus_read(bus, BUS_PORT, run->io.port, size);
            memcpy(data, &value, size);
        }
    }
    return VCPU_GO_ON;
}

/* KVM cuts an access at page boundaries into up to 8 bytes of any length; the bus takes naturally
 * sized ones. */
static int exit_mmio(struct vcpu *v)
{
    struct kvm_run *run = v->run;
    struct bus *bus = v->cpu.bus;
    uint64_t gpa = run->mmio.phys_addr;
    unsigned len = run->mmio.len <= 8 ? run->mmio.len : 8;

    v->unfinished = true;
    for (unsigned done = 0, size; done < len; done += size, gpa += size) {
        uint64_t value = 0;
        for (size = 8; size > len - done; size /= 2)
            ;
        if (run->mmio.is_write) {
            memcpy(&value, run->mmio.data + done, size);
            bus_write(bus, BUS_MEM, gpa, value, size);
        } else {
            value = bus_read(bus, BUS_MEM, gpa, size);
            memcpy(run->mmio.data + done, &value, size);
        }
    }
    return VCPU_GO_ON;
}

/* --- MSRs --------------------------------------------------------------------------------------- */

static bool msr_is_apic(uint32_t index)
{
    return index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE || (index >= 0x800 && index <= 0x8ff);
}

/* An MSR that KVM knows and whose access it found wrong is the guest's #GP; those it does not know are
 * looked up in the architecture's own table. */
static bool msr_refused(const struct kvm_run *run)
{
    return run->msr.reason == KVM_MSR_EXIT_REASON_INVAL && !msr_is_apic(run->msr.index);
}

static int exit_rdmsr(struct vcpu *v)
{
    struct cpu *c = &v->cpu;
    struct kvm_run *run = v->run;
    uint64_t value = 0;
    bool good;
    v->unfinished = true;
    c->cpl = 0; /* or the access would not have come this far; struct cpu may be stale */
    if (msr_is_apic(run->msr.index))
        good = c->irq->read_msr(c->irq_opaque, run->msr.index, &value);
    else
        good = !msr_refused(run) && cpu_rdmsr(c, run->msr.index, &value) == CPU_OK;
    run->msr.error = !good;
    run->msr.data = value;
    return VCPU_GO_ON;
}

static bool write_apic_msr(struct vcpu *v, uint32_t index, uint64_t value)
{
    struct cpu *c = &v->cpu;
    if (!c->irq->write_msr(c->irq_opaque, index, value))
        return false;
    v->irq_check = true; /* an EOI, a new priority, an IPI to itself */
    if (index == MSR_APIC_BASE && (value ^ v->known.sregs.apic_base) & APIC_BASE_ENABLE)
        vcpu_set_apic_base(v);
    return true;
}

static int exit_wrmsr(struct vcpu *v)
{
    struct kvm_run *run = v->run;
    uint32_t index = run->msr.index;
    bool good;
    v->unfinished = true;
    v->cpu.cpl = 0; /* as above */
    if (msr_is_apic(index))
        good = write_apic_msr(v, index, run->msr.data);
    else
        good = !msr_refused(run) && cpu_wrmsr(&v->cpu, index, run->msr.data) == CPU_OK;
    if (good && (index == MSR_TSC || index == MSR_TSC_ADJUST) && vcpu_set_tsc(v))
        return ENGINE_EXIT_ERROR;
    run->msr.error = !good;
    return v->error[0] ? ENGINE_EXIT_ERROR : VCPU_GO_ON;
}

/* --- the rest ------------------------------------------------------------------------------------ */

static int exit_hlt(struct vcpu *v)
{
    v->cpu.halted = 1;
    v->irq_check = true; /* what is pending ends the halt before it begins */
    return VCPU_GO_ON;
}

static int exit_nothing(struct vcpu *v)
{
    return VCPU_GO_ON;
}

static int exit_window(struct vcpu *v)
{
    v->irq_check = true;
    return VCPU_GO_ON;
}

static int exit_shutdown(struct vcpu *v)
{
    v->push_events = true; /* what led here must not linger if the machine is reset */
    return ENGINE_EXIT_SHUTDOWN;
}

static int exit_system_event(struct vcpu *v)
{
    if (v->run->system_event.type == KVM_SYSTEM_EVENT_CRASH)
        return ENGINE_EXIT_SHUTDOWN;
    return vcpu_fail(v, "KVM reports system event %u, which this machine has no device for", v->run->system_event.type);
}

static int exit_fail_entry(struct vcpu *v)
{
    return vcpu_fail(v, "the CPU refuses to enter the guest: hardware reason %#llx",
                     (unsigned long long)v->run->fail_entry.hardware_entry_failure_reason);
}

/* Suberror 1: KVM met an instruction that it must emulate and cannot; its bytes may follow. */
static int exit_internal(struct vcpu *v)
{
    const struct kvm_run *run = v->run;
    char bytes[3 * 16 + 1] = "";
    if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION && run->emulation_failure.ndata >= 3 &&
        run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
        for (unsigned i = 0; i < run->emulation_failure.insn_size && i < 15; i++)
            snprintf(bytes + 3 * i, 4, " %02x", run->emulation_failure.insn_bytes[i]);
    vcpu_export(v, false);
    return vcpu_fail(v, "KVM internal error %u at %#llx%s%s", run->internal.suberror, (unsigned long long)v->cpu.rip,
                     bytes[0] ? ", instruction" : "", bytes);
}

static const struct {
    const char *name;
    int (*handle)(struct vcpu *v);
} exit_table[VCPU_EXITS] = {
    [KVM_EXIT_UNKNOWN] = {"unknown", NULL},
    [KVM_EXIT_EXCEPTION] = {"exception", NULL},
    [KVM_EXIT_IO] = {"port", exit_io},
    [KVM_EXIT_HYPERCALL] = {"hypercall", NULL},
    [KVM_EXIT_DEBUG] = {"debug", NULL},
    [KVM_EXIT_HLT] = {"hlt", exit_hlt},
    [KVM_EXIT_MMIO] = {"memory", exit_mmio},
    [KVM_EXIT_IRQ_WINDOW_OPEN] = {"interrupt window", exit_window},
    [KVM_EXIT_SHUTDOWN] = {"shutdown", exit_shutdown},
    [KVM_EXIT_FAIL_ENTRY] = {"failed entry", exit_fail_entry},
    [KVM_EXIT_INTR] = {"signal", exit_nothing},
    [KVM_EXIT_SET_TPR] = {"task priority", exit_window}, /* the loop has passed run->cr8 on */
    [KVM_EXIT_TPR_ACCESS] = {"task priority access", NULL},
    [KVM_EXIT_INTERNAL_ERROR] = {"internal error", exit_internal},
    [KVM_EXIT_SYSTEM_EVENT] = {"system event", exit_system_event},
    [KVM_EXIT_X86_RDMSR] = {"rdmsr", exit_rdmsr},
    [KVM_EXIT_X86_WRMSR] = {"wrmsr", exit_wrmsr},
};

const char *kvm_exit_name(unsigned reason)
{
    return reason < VCPU_EXITS && exit_table[reason].name ? exit_table[reason].name : "unexpected";
}

int vcpu_handle_exit(struct vcpu *v)
{
    uint32_t reason = v->run->exit_reason;
    v->exits[reason < VCPU_EXITS ? reason : 0]++;
    if (reason < VCPU_EXITS && exit_table[reason].handle)
        return exit_table[reason].handle(v);
    return vcpu_fail(v, "KVM stopped with exit reason %u (%s), for which there is no handler", reason,
                     kvm_exit_name(reason));
}
