/* The options of a machine: what the command line, a saved configuration and a configuration file can say about it. */
#include <stddef.h>

#include "backends/chr.h"
#include "backends/disk.h"
#include "backends/share.h"
#include "backends/vsock_host.h"
#include "backends/net.h"
#include "engine/engine.h"
#include "vm/attach.h"
#include "vm/vm.h"
#include "vm/vm_int.h"

/* Below the least no Linux gets far enough to say so; the most is what the page walk's tests cover. */
#define LEAST_MEMORY (32ull << 20)
#define MOST_MEMORY (1ull << 40)

static const struct option_word engine_words[] = {{"auto", 0},
                                                  {"soft", 0},
                                                  {"soft,direct=on", 0},
                                                  {"soft,direct=off", 0},
                                                  {"soft,direct=always", 0},
                                                  {"soft,direct=random", 0},
                                                  {"kvm", 0},
                                                  {0}};
static const struct option_word sandbox_words[] = {{"on", 0}, {"require", 0}, {"off", 0}, {0}};
static const struct option_word course_words[] = {{"on", 0}, {"off", 0}, {0}};
static const struct option_word log_words[] = {
    {"translate", ENGINE_LOG_TRANSLATE},
    {"exc", ENGINE_LOG_EXC},
    {"irq", ENGINE_LOG_IRQ},
    {"device", ENGINE_LOG_DEVICE},
    {0},
};

#define AT(field) offsetof(struct vm_config, field)
/* clang-format off */
const struct option_spec vm_options[] = {
    {.name = "kernel", .letter = 'k', .kind = OPTION_FILE, .offset = AT(kernel_path), .value = "FILE",
     .help = "the kernel: a bzImage or a PVH ELF file"},
    {.name = "initrd", .letter = 'i', .kind = OPTION_LIST, .offset = AT(initrds), .value = "FILE",
     .help = "the initial file system; several are unpacked one over the other"},
    {.name = "append", .letter = 'a', .kind = OPTION_STRING, .offset = AT(append), .value = "STRING",
     .help = "the kernel command line, as in console=ttyS0"},
    {.name = "memory", .letter = 'm', .kind = OPTION_SIZE, .offset = AT(memory_bytes), .value = "SIZE",
     .help = "the guest's memory, with a unit (512M unless told)", .min = LEAST_MEMORY, .max = MOST_MEMORY,
     .examples = "256M 512M 1G 2G 4G"},
    {.name = "cpus", .letter = 'c', .kind = OPTION_NUMBER, .offset = AT(n_cpus), .value = "N[,max=M]",
     .help = "virtual CPUs (1 unless told); with max, `guise cpus` can make it 1 to M", .min = 1, .max = VM_MAX_CPUS,
     .most = AT(max_cpus)},
    {.name = "disk", .letter = 'd', .kind = OPTION_LIST, .offset = AT(disks), .value = "PATH[,WORD]...",
     .help = "a disk of the guest: a file or block device", .check = disk_check},
    {.name = "engine", .kind = OPTION_WORD, .offset = AT(engine), .value = "NAME",
     .help = "what executes the guest (auto unless told)", .words = engine_words},
    {.name = "net", .kind = OPTION_LIST, .offset = AT(nets), .value = "NETWORK",
     .help = "a network card: none, user, tap:NAME, switch:PATH, vde:PATH", .examples = "none user tap: switch: vde:",
     .check = net_check},
    {.name = "publish", .letter = 'p', .kind = OPTION_LIST, .offset = AT(publish), .value = "PORTS",
     .help = "lead a port of the host to the guest: [IP:]HOST:GUEST[/udp]", .check = net_publish_check},
    {.name = "no-reboot", .kind = OPTION_FLAG, .offset = AT(no_reboot),
     .help = "a reset ends the run"},
    {.name = "serial", .letter = 's', .kind = OPTION_STRING, .offset = AT(serial), .value = "WHERE",
     .help = "stdio (unless told), null, file:PATH, log:PATH or socket:PATH",
     .examples = "stdio null file: log: socket:",
     .check = chr_check},
    {.name = "port", .kind = OPTION_LIST, .offset = AT(ports), .value = "NAME=WHERE",
     .help = "a virtio console's port; hvc0 is a console", .check = ports_check},
    {.name = "vsock", .kind = OPTION_STRING, .offset = AT(vsock_path), .value = "PATH[,cid=N]",
     .help = "connect the guest's vsock to a Unix socket", .check = vsock_host_check},
    {.name = "balloon", .kind = OPTION_FLAG, .offset = AT(balloon),
     .help = "memory that the guest does not use goes back to the host"},
    {.name = "share", .letter = 'v', .kind = OPTION_LIST, .offset = AT(shares), .value = "DIR[:PATH][:ro]",
     .help = "share a directory with the guest", .check = share_check},
    {.name = "sandbox", .kind = OPTION_WORD, .offset = AT(sandbox), .value = "WHEN",
     .help = "confine the process: on (unless told), require, off", .words = sandbox_words},
    {.name = "code-cache", .kind = OPTION_SIZE, .offset = AT(code_cache_bytes), .value = "SIZE",
     .help = "for the software engine's translations (18M to 63M, as is needed, unless told)", .min = 1ull << 20, .max = 1ull << 30,
     .examples = "16M 32M 64M"},
    {.name = "course", .kind = OPTION_WORD, .offset = AT(course), .value = "WHEN",
     .help = "translate ahead what the kernel needed the last time: on (unless told), off", .words = course_words},
    {.name = "stress", .kind = OPTION_NUMBER, .offset = AT(stress), .value = "SEED",
     .help = "test the software engine: drop translations at random", .min = 1, .max = UINT32_MAX},
    {.name = "stats", .kind = OPTION_FLAG, .offset = AT(stats),
     .help = "print at the end where time went"},
    {.name = "log", .letter = 'l', .kind = OPTION_SET, .offset = AT(log_items), .value = "ITEM,...",
     .help = "log these, on stderr", .words = log_words},
    {.name = "log-file", .kind = OPTION_FILE, .offset = AT(log_path), .value = "FILE",
     .help = "log there instead"},
    {0},
};
/* clang-format on */
