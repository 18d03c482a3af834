#include "host/probe.h"

#include <asm/hwcap2.h>
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/sandbox.h"

#define CGROUP2_MAGIC 0x63677270

static void say(char *to, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void say(char *to, size_t size, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vsnprintf(to, size, format, ap);
    va_end(ap);
}

#define FOUND(r, ...) say((r)->found, sizeof((r)->found), __VA_ARGS__)
#define WHY(r, ...) say((r)->why, sizeof((r)->why), __VA_ARGS__)
#define FIX(r, ...) say((r)->fix, sizeof((r)->fix), __VA_ARGS__)

/* A small file's first `size - 1` bytes without the last newline; "" if it cannot be read. */
static bool read_text(const char *path, char *to, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, to, size - 1);

    if (fd >= 0)
        close(fd);
    to[n < 0 ? 0 : n] = 0;
    if (n > 0 && to[n - 1] == '\n')
        to[n - 1] = 0;
    return n >= 0;
}

static bool read_u64(const char *path, uint64_t *value)
{
    char text[64], *end;

    if (!read_text(path, text, sizeof(text)))
        return false;
    *value = strtoull(text, &end, 10);
    return end != text;
}

/* The number behind "name" in a "name: value" file such as /proc/meminfo; 0 if there is none. */
static uint64_t field(const char *path, const char *name)
{
    char line[256];
    uint64_t value = 0;
    FILE *f = fopen(path, "re");

    while (f && fgets(line, sizeof(line), f))
        if (strncmp(line, name, strlen(name)) == 0)
            value = strtoull(line + strlen(name), NULL, 10);
    if (f)
        fclose(f);
    return value;
}

/* Runs fn in a child; its exit status, or -1 if it was killed. */
static int in_child(int (*fn)(void))
{
    int status;
    pid_t pid = fork();

    if (pid == 0)
        _exit(fn());
    while (pid > 0 && waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* --- processor ------------------------------------------------------------------------------------ */

struct cpu_bit {
    const char *name;
    unsigned leaf, subleaf;
    char reg; /* a, b, c, d */
    unsigned bit;
};

/* CPUID (SDM vol. 2A, table 3-8). */
static bool has_bit(const struct cpu_bit *b)
{
    unsigned eax, ebx, ecx, edx;

    if (!__get_cpuid_count(b->leaf, b->subleaf, &eax, &ebx, &ecx, &edx))
        return false;
    unsigned value = b->reg == 'a' ? eax : b->reg == 'b' ? ebx : b->reg == 'c' ? ecx : edx;
    return value >> b->bit & 1;
}

/* Splits a table of bits into "present" and "absent" word lists; returns how many are absent. */
static unsigned list_bits(const struct cpu_bit *bits, size_t n, char *present, size_t np, char *absent, size_t na)
{
    unsigned missing = 0;

    present[0] = absent[0] = 0;
    for (size_t i = 0; i < n; i++) {
        bool has = has_bit(&bits[i]);
        char *to = has ? present : absent;
        size_t size = has ? np : na, used = strlen(to);
        snprintf(to + used, size - used, "%s%s", used ? " " : "", bits[i].name);
        missing += !has;
    }
    return missing;
}

static void probe_cpu(struct probe_result *r)
{
    uint32_t name[13] = {0};
    cpu_set_t set;
    int cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;

    for (unsigned i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002 + i, &name[4 * i], &name[4 * i + 1], &name[4 * i + 2], &name[4 * i + 3]))
            memcpy(name, "unnamed", 8);
    FOUND(r, "%s, %d usable CPU%s", (char *)name, cpus, cpus == 1 ? "" : "s");
    if (cpus == 1) {
        r->level = PROBE_LIMITED;
        WHY(r, "the guest shares the one CPU with its devices' thread");
        FIX(r, "give this container or machine a second CPU (cpuset, taskset) for smoother latency");
    }
}

static void probe_cpu_base(struct probe_result *r)
{
    static const struct cpu_bit bits[] = {
        {"SSE3", 1, 0, 'c', 0},    {"SSSE3", 1, 0, 'c', 9},         {"CX16", 1, 0, 'c', 13},
        {"SSE4.1", 1, 0, 'c', 19}, {"SSE4.2", 1, 0, 'c', 20},       {"MOVBE", 1, 0, 'c', 22},
        {"POPCNT", 1, 0, 'c', 23}, {"XSAVE", 1, 0, 'c', 26},        {"BMI1", 7, 0, 'b', 3},
        {"BMI2", 7, 0, 'b', 8},    {"LAHF", 0x80000001, 0, 'c', 0}, {"NX", 0x80000001, 0, 'd', 20},
    };
    char absent[128];

    if (!list_bits(bits, sizeof(bits) / sizeof(bits[0]), r->found, sizeof(r->found), absent, sizeof(absent)))
        return;
    r->level = PROBE_MISSING;
    WHY(r, "translated code uses %s, which this CPU does not have or an outer hypervisor hides", absent);
    FIX(r, "use an x86-64-v3 machine (2013 or later); in a virtual machine choose the CPU model \"host\"");
}

static void probe_fsgsbase(struct probe_result *r)
{
    static const struct cpu_bit bit = {"FSGSBASE", 7, 0, 'b', 0};
    bool cpu = has_bit(&bit), kernel = getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;

    FOUND(r, "CPU %s, kernel %s", cpu ? "yes" : "no", kernel ? "yes" : "no");
    if (kernel)
        return;
    r->level = PROBE_LIMITED;
    WHY(r, "programs that run directly get the bases of FS and GS by system calls, which cost time where they change");
    FIX(r, cpu ? "run Linux 5.9 or later, without \"nofsgsbase\" on its command line; in a virtual machine under PVM "
                 "nothing can be done"
               : "use a newer CPU (2012 or later), or the CPU model \"host\" in a virtual machine");
}

static void probe_simd(struct probe_result *r)
{
    static const struct cpu_bit bits[] = {
        {"AVX", 1, 0, 'c', 28}, {"AVX2", 7, 0, 'b', 5},     {"FMA", 1, 0, 'c', 12}, {"AES", 1, 0, 'c', 25},
        {"SHA", 7, 0, 'b', 29}, {"AVX512F", 7, 0, 'b', 16}, {"VAES", 7, 0, 'c', 9}, {"GFNI", 7, 0, 'c', 8},
    };
    char absent[128];

    list_bits(bits, sizeof(bits) / sizeof(bits[0]), r->found, sizeof(r->found), absent, sizeof(absent));
    if (has_bit(&bits[1]))
        return;
    r->level = PROBE_LIMITED;
    WHY(r, "guests see the host's vector instructions and no others: programs built for x86-64-v3 will not run");
    FIX(r, "use a CPU with AVX2, or the CPU model \"host\" in a virtual machine");
}

static void probe_tsc(struct probe_result *r)
{
    static const struct cpu_bit invariant = {"invariant", 0x80000007, 0, 'd', 8};
    char source[32];
    bool stable = has_bit(&invariant), used;

    read_text("/sys/devices/system/clocksource/clocksource0/current_clocksource", source, sizeof(source));
    used = strcmp(source, "tsc") == 0 || strcmp(source, "kvm-clock") == 0 || strncmp(source, "hyperv", 6) == 0;
    FOUND(r, "%s, the kernel keeps time by %s", stable ? "invariant" : "not declared invariant",
          *source ? source : "an unknown clock");
    if (used)
        return;
    r->level = PROBE_LIMITED;
    WHY(r, "the host's kernel does not trust the TSC, on which guests' clocks are built: their time may drift");
    FIX(r, "nothing if the TSC really is unstable; else choose the clock source \"tsc\" on the host");
}

/* --- memory --------------------------------------------------------------------------------------- */

/* The directory of our cgroup in a pure cgroup v2 host, or false. */
static bool cgroup_directory(char *to, size_t size)
{
    char text[1024], *line;
    struct statfs fs;

    if (statfs("/sys/fs/cgroup", &fs) < 0 || fs.f_type != CGROUP2_MAGIC)
        return false;
    if (!read_text("/proc/self/cgroup", text, sizeof(text)) || !(line = strstr(text, "0::")))
        return false;
    line[strcspn(line, "\n")] = 0;
    return (size_t)snprintf(to, size, "/sys/fs/cgroup%s", line + 3) < size;
}

/* The bytes that our cgroup may still take, or UINT64_MAX. */
static uint64_t cgroup_memory_left(void)
{
    char dir[600], path[700];
    uint64_t max, current;

    if (!cgroup_directory(dir, sizeof(dir)))
        return UINT64_MAX;
    snprintf(path, sizeof(path), "%s/memory.max", dir);
    if (!read_u64(path, &max)) /* "max", or the root cgroup */
        return UINT64_MAX;
    snprintf(path, sizeof(path), "%s/memory.current", dir);
    if (!read_u64(path, &current))
        return max;
    return current < max ? max - current : 0;
}

static void probe_memory(struct probe_result *r)
{
    uint64_t total = field("/proc/meminfo", "MemTotal:") << 10, left = field("/proc/meminfo", "MemAvailable:") << 10;
    uint64_t cgroup = cgroup_memory_left();

    FOUND(r, "%" PRIu64 " MiB available of %" PRIu64 " MiB", left >> 20, total >> 20);
    if (cgroup < left) {
        FOUND(r, "%" PRIu64 " MiB, by this control group's limit", cgroup >> 20);
        left = cgroup;
    }
    if (left >= 640ull << 20)
        return;
    r->level = PROBE_LIMITED;
    WHY(r, "a small Linux guest wants 512 MiB, and guise up to 100 MiB for itself");
    FIX(r, "free memory, raise the limit, or use a smaller --memory");
}

static void probe_overcommit(struct probe_result *r)
{
    static const char *const modes[] = {"heuristic", "always", "never"};
    uint64_t mode = 0;

    read_u64("/proc/sys/vm/overcommit_memory", &mode);
    FOUND(r, "%s (vm.overcommit_memory=%" PRIu64 ")", modes[mode > 2 ? 0 : mode], mode);
    if (mode != 2)
        return;
    r->level = PROBE_LIMITED;
    WHY(r, "the kernel refuses memory beyond its commit limit, even while much of it is free");
    FIX(r, "sysctl vm.overcommit_memory=0, or raise vm.overcommit_ratio");
}

static void probe_limits(struct probe_result *r)
{
    struct rlimit as;

    getrlimit(RLIMIT_AS, &as);
    if (as.rlim_cur == RLIM_INFINITY) {
        FOUND(r, "unlimited");
        return;
    }
    FOUND(r, "%" PRIu64 " MiB", (uint64_t)as.rlim_cur >> 20);
    r->level = PROBE_LIMITED;
    WHY(r, "guest memory, code cache and tables are mapped in full at the start and count against it");
    FIX(r, "ulimit -v unlimited");
}

static void probe_mappings(struct probe_result *r)
{
    uint64_t n = 0;

    read_u64("/proc/sys/vm/max_map_count", &n);
    FOUND(r, "%" PRIu64 " a process (vm.max_map_count)", n);
    if (n >= 65530)
        return;
    r->level = PROBE_LIMITED;
    WHY(r, "fewer mappings than Linux's default: direct execution mirrors a guest's page tables by mappings");
    FIX(r, "sysctl vm.max_map_count=65530 or more");
}

/* The code cache as the engine makes it: one memfd, written through one mapping, run through another. */
static int run_from_memfd(void)
{
    static const uint8_t code[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov eax, 42; ret */
    int fd = (int)syscall(SYS_memfd_create, "guise-probe", 0x1u /* MFD_CLOEXEC */ | 0x10u /* MFD_EXEC */);
    int (*fn)(void);

    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 there is no MFD_EXEC, and every memfd is executable */
        fd = (int)syscall(SYS_memfd_create, "guise-probe", 0x1u);
    if (fd < 0 || ftruncate(fd, 4096) < 0)
        return 1;
    void *rw = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void *rx = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    if (rw == MAP_FAILED || rx == MAP_FAILED)
        return 2;
    memcpy(rw, code, sizeof(code));
    memcpy(&fn, &rx, sizeof(fn));
    return fn() == 42 ? 0 : 3;
}

static void probe_code_cache(struct probe_result *r)
{
    uint64_t noexec = 0;
    int status = in_child(run_from_memfd);

    read_u64("/proc/sys/vm/memfd_noexec", &noexec);
    FOUND(r, "writing and running one memfd by two mappings %s (vm.memfd_noexec=%" PRIu64 ")",
          status == 0 ? "works" : "fails", noexec);
    if (status == 0)
        return;
    r->level = PROBE_MISSING;
    WHY(r, "translated code lives in a memory file that is executable but never writable at the same address");
    FIX(r, noexec ? "sysctl vm.memfd_noexec=0 (or 1) in this PID namespace"
                  : "allow memfd_create and executable shared mappings (SELinux execmem, seccomp profile)");
}

/* --- isolation ------------------------------------------------------------------------------------ */

/* Inside user, PID, network, mount and IPC namespaces of our own? */
static int enter_namespaces(void)
{
    char map[64];
    unsigned uid = getuid();
    int n = snprintf(map, sizeof(map), "0 %u 1\n", uid);

    if (unshare(CLONE_NEWUSER) < 0)
        return errno == ENOSPC ? 2 : 1;
    int fd = open("/proc/self/uid_map", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, map, (size_t)n) != n)
        return 3;
    return unshare(CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC) < 0 ? 4 : 0;
}

static void probe_namespaces(struct probe_result *r)
{
    static const char *const outcomes[] = {
        "user, PID, network, mount and IPC namespaces can be made",       "user namespaces are refused",
        "user namespaces are limited to none (user.max_user_namespaces)", "a user namespace's id map is refused",
        "user namespaces can be made, others inside are refused",
    };
    int status = in_child(enter_namespaces);

    FOUND(r, "%s", outcomes[status < 0 || status > 4 ? 1 : status]);
    if (status == 0)
        return;
    r->level = PROBE_LIMITED;
    WHY(r, "who is not root builds images by fakechroot only, and without landlock qemu-nbd is confined less");
    FIX(r, "install the packages fakechroot and fakeroot; or sysctl kernel.unprivileged_userns_clone=1 or "
           "user.max_user_namespaces; in a container, allow unshare in "
           "its seccomp and AppArmor profiles");
}

static void probe_cgroup(struct probe_result *r)
{
    char dir[600], path[700], controllers[128], *lacking = "";

    r->level = PROBE_LIMITED;
    WHY(r, "shares and limits of CPU, memory and disk cannot be given to a VM through control groups");
    if (!cgroup_directory(dir, sizeof(dir))) {
        FOUND(r, "no unified cgroup v2 hierarchy at /sys/fs/cgroup");
        FIX(r, "boot the host with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 in the container");
        return;
    }
    snprintf(path, sizeof(path), "%s/cgroup.controllers", dir);
    read_text(path, controllers, sizeof(controllers));
    if (!strstr(controllers, "cpu") || !strstr(controllers, "memory"))
        lacking = ", without cpu or memory";
    snprintf(path, sizeof(path), "%s/guise-probe-%d", dir, (int)getpid());
    bool made = mkdir(path, 0700) == 0;
    if (made)
        rmdir(path);
    FOUND(r, "v2, controllers: %s%s; sub-groups %s", *controllers ? controllers : "none", lacking,
          made ? "can be made" : "cannot be made");
    if (made && !*lacking) {
        r->level = PROBE_OK;
        return;
    }
    FIX(r, "run it under `systemd-run --user --scope -p Delegate=yes`, or delegate a group to this user");
}

static void probe_seccomp(struct probe_result *r)
{
    uint32_t kill = SECCOMP_RET_KILL_PROCESS;

    if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &kill) == 0) {
        FOUND(r, "filters that kill the process are available");
        return;
    }
    r->level = PROBE_LIMITED;
    FOUND(r, "no seccomp filters (%s)", strerror(errno));
    WHY(r, "a VM's process cannot give up system calls: the most important part of its sandbox is missing");
    FIX(r, "run a kernel with CONFIG_SECCOMP_FILTER, or a container that allows seccomp(2)");
}

static void probe_landlock(struct probe_result *r)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

    if (abi > 0) {
        FOUND(r, "ABI %ld", abi);
        return;
    }
    r->level = PROBE_LIMITED;
    FOUND(r, "none (%s)", strerror(errno));
    WHY(r, "only the list of system calls keeps a VM's process from files: one layer of isolation less");
    FIX(r, errno == EOPNOTSUPP ? "add landlock to the host's lsm= boot parameter"
                               : "run Linux 5.13 or later with landlock, and allow it in the container's profile");
}

static int enter_sandbox(void)
{
    const struct sandbox_spec spec = {.role = SANDBOX_VM_SOFT};
    struct sandbox *s;
    int done = 0;

    if (sandbox_enter(&spec, &s, NULL, 0))
        return 0;
    for (unsigned i = 0; i < SANDBOX_STEPS; i++)
        done |= sandbox_did(s, i) << i;
    return done;
}

/* Really entered, by a child. */
static void probe_sandbox(struct probe_result *r)
{
    int done = in_child(enter_sandbox);
    char steps[160] = "", missing[160] = "";

    for (unsigned i = 0; i < SANDBOX_STEPS; i++) {
        bool did = done > 0 && done & 1 << i;
        char *list = did ? steps : missing;
        size_t len = strlen(list);
        if (did || i != SANDBOX_ROOT_DIRECTORY) /* which is root's */
            snprintf(list + len, sizeof steps - len, "%s%s", len ? ", " : "", sandbox_step_name(i));
    }
    FOUND(r, "a VM's process has %s", steps[0] ? steps : "none");
    if (!missing[0])
        return;
    r->level = PROBE_LIMITED;
    FOUND(r, "a VM's process has %s; missing: %s", steps[0] ? steps : "nothing", missing);
    WHY(r, "a guest that finds a hole in guise meets less behind it; --sandbox require refuses to run so");
    FIX(r, "see the lines on seccomp and landlock; do not run guise as root in a container without user ids");
}

/* --- the list ------------------------------------------------------------------------------------- */

static const struct {
    const char *id, *title;
    bool required;
    void (*fn)(struct probe_result *r);
} probes[] = {
    {"cpu", "processor", false, probe_cpu},
    {"cpu_base", "base instructions", true, probe_cpu_base},
    {"cpu_fsgsbase", "FSGSBASE", false, probe_fsgsbase},
    {"cpu_vector", "vector and crypto", false, probe_simd},
    {"tsc", "time stamp counter", false, probe_tsc},
    {"memory", "memory", false, probe_memory},
    {"overcommit", "overcommit", false, probe_overcommit},
    {"address_space", "address space limit", false, probe_limits},
    {"mappings", "mappings", false, probe_mappings},
    {"code_cache", "code cache", true, probe_code_cache},
    {"namespaces", "namespaces", false, probe_namespaces},
    {"cgroups", "control groups", false, probe_cgroup},
    {"seccomp", "seccomp", false, probe_seccomp},
    {"landlock", "landlock", false, probe_landlock},
    {"sandbox", "sandbox", false, probe_sandbox},
};
_Static_assert(sizeof(probes) / sizeof(probes[0]) <= PROBE_MAX, "PROBE_MAX is too small");

size_t host_probe(struct probe_result results[PROBE_MAX])
{
    size_t n = sizeof(probes) / sizeof(probes[0]);

    for (size_t i = 0; i < n; i++) {
        results[i] = (struct probe_result){
            .id = probes[i].id, .title = probes[i].title, .required = probes[i].required};
        probes[i].fn(&results[i]);
        if (results[i].level == PROBE_OK)
            results[i].why[0] = results[i].fix[0] = 0;
    }
    return n;
}
