/*
 * The courses that kernels take when they boot (engine/soft/course.h), from one boot to the next: a file for each
 * kernel in the user's cache directory, of which there are so many at most.  What is in it is advice that anybody may
 * have written; so it is found by what the kernel's file begins and ends with, and is not believed.
 *
 * Who finds none notes one, if it has the lock on the file.  One that is half written is not whole, and is noted again.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/path.h"
#include "host/sandbox.h"
#include "host/thread.h"
#include "vm/confine.h"
#include "vm/vm_int.h"

#define SAMPLE 65536u
#define FILES_MAX 32u
#define KEY_SIZE 32u

/* By its beginning, which has its version, and its end; and whether it has several CPUs, for Linux patches what it
 * locks with. */
static bool kernel_key(const char *path, bool several, char key[KEY_SIZE])
{
    uint8_t *sample = malloc(SAMPLE);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    bool found = false;

    if (sample && fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode)) {
        const off_t tail = st.st_size > (off_t)SAMPLE ? st.st_size - (off_t)SAMPLE : 0;
        const ssize_t n = pread(fd, sample, SAMPLE, 0);
        const uint32_t begins = n > 0 ? crc32c((uint32_t)st.st_size, sample, (size_t)n) : 0;
        const ssize_t m = pread(fd, sample, SAMPLE, tail);
        found = n > 0 && m > 0;
        if (found)
            snprintf(key, KEY_SIZE, "%08x%08x%s", begins, crc32c(0, sample, (size_t)m), several ? "-smp" : "");
    }
    if (fd >= 0)
        close(fd);
    free(sample);
    return found;
}

/* The one that was used longest ago makes room for another. */
static void make_room(int directory)
{
    char oldest[NAME_MAX + 1] = "";
    struct timespec when = {0};
    unsigned n = 0;
    DIR *d = fdopendir(dup(directory));

    for (const struct dirent *entry; d && (entry = readdir(d));) {
        struct stat st;
        if (entry->d_name[0] == '.' || fstatat(directory, entry->d_name, &st, AT_SYMLINK_NOFOLLOW))
            continue;
        if (!n++ || st.st_mtim.tv_sec < when.tv_sec) {
            when = st.st_mtim;
            snprintf(oldest, sizeof oldest, "%s", entry->d_name);
        }
    }
    if (n >= FILES_MAX)
        (void)unlinkat(directory, oldest, 0);
    if (d)
        closedir(d);
}

static int open_directory(void)
{
    char path[PATH_MAX], error[256];

    if (path_cache(path, sizeof path - sizeof "/courses", error, sizeof error))
        return -1;
    strcat(path, "/courses");
    if (mkdir(path, 0700) && errno != EEXIST)
        return -1;
    return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
}

/* Of the one that boots on several CPUs of the host's only: for one, it would be as much work. */
static bool is_wanted(const struct vm *vm)
{
    cpu_set_t cpus;

    return vm->ops->set_course && !(vm->config->course && !strcmp(vm->config->course, "off")) &&
           !sched_getaffinity(0, sizeof cpus, &cpus) && CPU_COUNT(&cpus) > 1;
}

void course_open(struct vm *vm)
{
    char key[KEY_SIZE];
    int directory = -1;

    if (!is_wanted(vm) || !kernel_key(vm->config->kernel_path, vm_vcpus(vm->config) > 1, key) ||
        (directory = open_directory()) < 0)
        return;
    int fd = openat(directory, key, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) {
        make_room(directory);
        fd = openat(directory, key, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    }
    if (fd >= 0)
        (void)futimens(fd, NULL);
    close(directory);
    vm->course_fd = fd;
}

static void *course_main(void *opaque)
{
    struct vm *vm = opaque;

    prctl(PR_SET_NAME, "course");
    if (sandbox_thread(vm->sandbox, SANDBOX_WORKER) == 0)
        vm->ops->serve_course(vm->engine);
    return NULL;
}

void course_start(struct vm *vm)
{
    struct engine_course c = {.fd = vm->course_fd};

    if (vm->course_fd < 0)
        return;
    vm->course_fd = -1;
    if (!machine_kernel(vm->machine, &c.gpa, &c.gva, &c.size))
        close(c.fd);
    else if (!vm->ops->set_course(vm->engine, &c))
        vm->course_runs = !thread_start(&vm->course, NULL, course_main, vm);
}

void course_stop(struct vm *vm)
{
    if (vm->engine && vm->ops->set_course)
        (void)vm->ops->set_course(vm->engine, NULL);
    if (vm->course_runs)
        pthread_join(vm->course, NULL);
    vm->course_runs = false;
    if (vm->course_fd >= 0)
        close(vm->course_fd);
    vm->course_fd = -1;
}
