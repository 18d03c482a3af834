/* "stats": counters since the start, of the process and of each device. */
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backends/disk.h"
#include "backends/net.h"
#include "base/timestamp.h"
#include "memory/template.h"
#include "vm/commands.h"
#include "vm/life.h"

/* Resident pages: the second number of /proc/self/statm. */
static uint64_t resident_bytes(const struct vm *vm)
{
    unsigned long long total, resident = 0;
    char text[128];
    ssize_t len = pread(vm->config->life->statm, text, sizeof text - 1, 0);

    text[len > 0 ? len : 0] = 0;
    if (sscanf(text, "%llu %llu", &total, &resident) != 2)
        resident = 0;
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static json_int_t microseconds(const struct timeval *t)
{
    return (json_int_t)t->tv_sec * 1000000 + t->tv_usec;
}

static void add(json_t *to, const char *key, uint64_t value)
{
    json_object_set_new(to, key, json_integer((json_int_t)value));
}

static void add_process(json_t *all, const struct vm *vm)
{
    struct rusage use;
    uint64_t exits = 0, idle = 0, own, shared;

    getrusage(RUSAGE_SELF, &use);
    for (unsigned i = 0; i < vm_vcpus(vm->config); i++) {
        exits += vm->vcpus[i].exits; /* a torn number would be wrong once, in a statistic */
        idle += vm->vcpus[i].idle_ns;
    }
    json_object_set_new(all, "cpu_user_us", json_integer(microseconds(&use.ru_utime)));
    json_object_set_new(all, "cpu_system_us", json_integer(microseconds(&use.ru_stime)));
    add(all, "memory_rss_bytes", resident_bytes(vm));
    add(all, "memory_bytes", vm->config->memory_bytes);
    memory_usage(machine_memory(vm->machine), &own, &shared);
    add(all, "memory_private_bytes", own);
    add(all, "memory_shared_bytes", shared);
    add(all, "vcpu_exits", exits);
    add(all, "vcpu_idle_us", idle / 1000);
}

static void add_disks(json_t *all, const struct vm *vm)
{
    json_t *disks = json_array();
    uint64_t read = 0, written = 0;

    for (unsigned i = 0; i < vm->n_disks; i++) {
        const struct disk_counters *c = &vm->disks[i]->counters;
        json_array_append_new(disks, json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "path", vm->disks[i]->spec.path,
                                               "reads", (json_int_t)c->reads, "writes", (json_int_t)c->writes,
                                               "flushes", (json_int_t)c->flushes, "read_bytes",
                                               (json_int_t)c->read_bytes, "written_bytes", (json_int_t)c->written_bytes,
                                               "errors", (json_int_t)c->errors));
        read += c->read_bytes;
        written += c->written_bytes;
    }
    add(all, "disk_read_bytes", read);
    add(all, "disk_written_bytes", written);
    json_object_set_new(all, "disks", disks);
}

static void add_nets(json_t *all, const struct vm *vm)
{
    json_t *nets = json_array();
    uint64_t sent = 0, received = 0;

    for (unsigned i = 0; i < vm->n_nets; i++) {
        const struct net_counters *c = net_counters(vm->nets[i]);
        json_array_append_new(nets,
                              json_pack("{s:I, s:I, s:I, s:I}", "sent_frames", (json_int_t)c->sent_frames, "sent_bytes",
                                        (json_int_t)c->sent_bytes, "received_frames", (json_int_t)c->received_frames,
                                        "received_bytes", (json_int_t)c->received_bytes));
        sent += c->sent_bytes;
        received += c->received_bytes;
    }
    add(all, "net_sent_bytes", sent);
    add(all, "net_received_bytes", received);
    json_object_set_new(all, "nets", nets);
}

json_t *command_stats(struct control_call *call)
{
    const struct vm *vm = call->opaque;
    json_t *all = json_object();

    add(all, "uptime_ms", timestamp_ms() - vm->config->life->run.started_ms);
    add_process(all, vm);
    add_disks(all, vm);
    add_nets(all, vm);
    json_object_set_new(all, "balloon", vm->balloon ? balloon_describe(vm) : json_null());
    return all;
}
