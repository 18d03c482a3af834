/*
 * The guest's side of share.sh.  Prints `ok NAME` and `not ok NAME REASON`.
 *
 *   share semantics DIR       what a local file system does, this one does
 *   share model DIR N SEED    N random operations on a file, each compared with what they do to an array
 *   share tree DIR N          N files in many directories: made, read back, listed, renamed
 *   share lock DIR            locks with share-host.py on the other side
 *   share bench DIR           how fast it is, for bench/share.sh
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static int failures;

__attribute__((format(printf, 3, 4))) static void check(const char *name, bool good, const char *format, ...)
{
    va_list args;

    if (good) {
        printf("ok %s\n", name);
        return;
    }
    printf("not ok %s ", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf(" (%s)\n", strerror(errno));
    if (++failures > 20)
        exit(1); /* the folder is gone, or worse */
}

static void put(const char *name, const char *text)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        check("put", false, "cannot write %s", name);
    close(fd);
}

static const char *get(const char *name)
{
    static char text[256];
    int fd = open(name, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    return n < 0 ? strerror(errno) : text;
}

static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_ino == y.st_ino && x.st_nlink == y.st_nlink;
}

static void names_and_links(void)
{
    struct stat st;
    char target[64] = "";

    put("old", "old");
    put("new", "new");
    int fd = open("old", O_RDWR);
    check("rename-over-an-open-file", rename("new", "old") == 0 && !strcmp(get("old"), "new"), "%s", get("old"));
    char text[8] = "";
    check("the-open-file-is-the-old-one", pread(fd, text, 3, 0) == 3 && !strcmp(text, "old"), "%s", text);
    check("and-has-no-name-left", fstat(fd, &st) == 0 && st.st_nlink == 0, "%d links", (int)st.st_nlink);
    check("it-can-still-grow", pwrite(fd, "longer", 6, 3) == 6 && fstat(fd, &st) == 0 && st.st_size == 9, "no");
    close(fd);
    check("hard-link", link("old", "hard") == 0 && same_file("old", "hard"), "not the same");
    put("hard", "both");
    check("both-names-one-file", !strcmp(get("old"), "both"), "%s", get("old"));
    check("one-name-less", unlink("old") == 0 && stat("hard", &st) == 0 && st.st_nlink == 1, "no");
    check("symlink", symlink("hard", "soft") == 0 && readlink("soft", target, sizeof target) == 4, "%s", target);
    check("symlink-is-followed-here", !strcmp(get("soft"), "both"), "%s", get("soft"));
    mkdir("d", 0755);
    mkdir("d/e", 0755);
    put("d/e/f", "f");
    check("rename-a-directory", rename("d", "moved") == 0 && !strcmp(get("moved/e/f"), "f"), "%s", get("moved/e/f"));
    check("not-into-itself", rename("moved", "moved/e/x") < 0 && errno == EINVAL, "it went");
    check("not-empty", rmdir("moved") < 0 && errno == ENOTEMPTY, "it went");
    check("exclusive", open("hard", O_CREAT | O_EXCL | O_WRONLY, 0644) < 0 && errno == EEXIST, "opened");
    check("fifo", mkfifo("fifo", 0600) == 0 && stat("fifo", &st) == 0 && S_ISFIFO(st.st_mode), "no");
    check("no-devices", mknod("null", S_IFCHR | 0666, 0x103) < 0 && errno == EPERM, "made");
    char name[300];
    memset(name, 'n', 255);
    name[255] = 0;
    check("long-name", mkdir(name, 0755) == 0 && rmdir(name) == 0, "no");
    name[255] = 'n', name[256] = 0;
    check("too-long-name", mkdir(name, 0755) < 0 && errno == ENAMETOOLONG, "made");
}

static void attributes(void)
{
    struct timespec times[2] = {{1234567890, 123456789}, {1034567890, 987654321}};
    struct stat st;
    struct statvfs v;
    char value[16] = "";

    put("a", "hello");
    check("times",
          utimensat(AT_FDCWD, "a", times, 0) == 0 && stat("a", &st) == 0 && st.st_mtim.tv_sec == 1034567890 &&
              st.st_mtim.tv_nsec == 987654321 && st.st_atim.tv_nsec == 123456789,
          "%ld.%ld", (long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    check("modes", chmod("a", 06751) == 0 && stat("a", &st) == 0 && st.st_mode == (S_IFREG | 06751), "%o", st.st_mode);
    check("owners", chown("a", 1000, 1001) == 0 && stat("a", &st) == 0 && st.st_uid == 1000 && st.st_gid == 1001,
          "%d:%d", (int)st.st_uid, (int)st.st_gid);
    check("chown-takes-the-bits", !(st.st_mode & S_ISUID), "%o", st.st_mode);
    check("root-needs-no-mode", chmod("a", 0) == 0 && !strcmp(get("a"), "hello"), "%s", get("a"));
    check("a-link's-owner", symlink("a", "al") == 0 && lchown("al", 5, 5) == 0, "no");
    check("attribute", setxattr("a", "user.x", "value", 5, 0) == 0 && getxattr("a", "user.x", value, 16) == 5, "%s",
          value);
    check("attribute-list", listxattr("a", value, 16) == 7 && !strcmp(value, "user.x"), "%s", value);
    check("statvfs", statvfs(".", &v) == 0 && v.f_blocks > 0 && v.f_namemax == 255, "no");
}

static void as_somebody(void)
{
    struct stat st;
    int status;

    mkdir("sticky", 0);
    chmod("sticky", 01777);
    put("sticky/roots", "");
    mkdir("closed", 0700);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        bool good = setgid(1000) == 0 && setuid(1000) == 0;
        put("sticky/mine", "mine");
        check("a-user's-file-is-his", good && stat("sticky/mine", &st) == 0 && st.st_uid == 1000 && st.st_gid == 1000,
              "%d:%d", (int)st.st_uid, (int)st.st_gid);
        check("his-mode", chmod("sticky/mine", 0600) == 0 && !strcmp(get("sticky/mine"), "mine"), "no");
        check("not-root's", unlink("sticky/roots") < 0 && (errno == EPERM || errno == EACCES), "gone");
        check("not-through-a-closed-directory", open("closed/x", O_CREAT | O_WRONLY, 0644) < 0 && errno == EACCES,
              "made");
        check("not-given-away", chown("sticky/mine", 0, 0) < 0 && errno == EPERM, "given");
        fflush(stdout);
        _exit(failures > 0);
    }
    waitpid(child, &status, 0);
    failures += status != 0;
}

static void data(void)
{
    struct stat st;

    put("log", "");
    int a = open("log", O_WRONLY | O_APPEND), b = open("log", O_WRONLY | O_APPEND);
    bool good = true;
    for (int i = 0; i < 50; i++)
        good &= write(i % 2 ? a : b, "line\n", 5) == 5;
    check("append-by-two", good && stat("log", &st) == 0 && st.st_size == 250, "%d", (int)st.st_size);
    close(a), close(b);
    int fd = open("map", O_RDWR | O_CREAT, 0644);
    check("grow", ftruncate(fd, 100000) == 0, "no");
    char *p = mmap(NULL, 100000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check("map", p != MAP_FAILED && p[99999] == 0, "no");
    memset(p, 'm', 100000);
    check("msync", msync(p, 100000, MS_SYNC) == 0, "no");
    munmap(p, 100000);
    char buf[5] = "";
    check("a-mapping's-data", pread(fd, buf, 4, 99996) == 4 && !strcmp(buf, "mmmm"), "%s", buf);
    check("hole",
          fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 8192) == 0 && pread(fd, buf, 4, 8192) == 4 &&
              !buf[0] && pread(fd, buf, 4, 16384) == 4 && buf[0] == 'm',
          "no");
    check("fsync", fsync(fd) == 0 && fdatasync(fd) == 0, "no");
    close(fd);
    fd = open(".", O_RDONLY | O_DIRECTORY);
    check("fsync-of-a-directory", fsync(fd) == 0 && syncfs(fd) == 0, "no");
    close(fd);
    check("a-temporary-file", (fd = open(".", O_TMPFILE | O_RDWR, 0600)) >= 0 || errno == EOPNOTSUPP, "no");
    close(fd);
}

static void in_guest_locks(void)
{
    struct flock fl = {.l_type = F_WRLCK};
    int fd = open("lock", O_RDWR | O_CREAT, 0644), status;

    check("lock", fcntl(fd, F_SETLK, &fl) == 0, "no");
    fflush(stdout);
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        int mine = open("lock", O_RDWR);
        struct flock other = {.l_type = F_WRLCK}, ask = {.l_type = F_WRLCK};
        check("held-by-another", fcntl(mine, F_SETLK, &other) < 0 && (errno == EAGAIN || errno == EACCES), "got it");
        check("by-whom", fcntl(mine, F_GETLK, &ask) == 0 && ask.l_type == F_WRLCK && ask.l_pid == parent, "%d",
              ask.l_pid);
        check("waits-for-it", fcntl(mine, F_SETLKW, &other) == 0, "no");
        fflush(stdout);
        _exit(failures > 0);
    }
    usleep(300000);
    close(fd); /* lets go */
    waitpid(child, &status, 0);
    failures += status != 0;
    fd = open("lock", O_RDWR);
    int second = open("lock", O_RDWR);
    check("flock",
          flock(fd, LOCK_EX) == 0 && flock(second, LOCK_EX | LOCK_NB) < 0 && flock(fd, LOCK_UN) == 0 &&
              flock(second, LOCK_EX | LOCK_NB) == 0,
          "no");
    close(fd), close(second);
}

/* --- a file and an array ---------------------------------------------------------------------------------------- */

#define MODEL_MAX (256u << 10)
static uint8_t model[MODEL_MAX], buffer[MODEL_MAX];
static size_t model_size;
static uint64_t seed;

static uint32_t roll(uint32_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return n ? (uint32_t)(seed >> 20) % n : 0;
}

static void grow_model(size_t end)
{
    if (end > model_size) {
        memset(model + model_size, 0, end - model_size);
        model_size = end;
    }
}

/* One operation on both; what it was, or NULL when they differ. */
static const char *step(int fd, int append)
{
    size_t at = roll(MODEL_MAX - 1), n = 1 + roll(roll(2) ? 100 : MODEL_MAX - (uint32_t)at);
    if (n > MODEL_MAX - at)
        n = MODEL_MAX - at;
    for (size_t i = 0; i < n; i++)
        buffer[i] = (uint8_t)roll(256);
    switch (roll(9)) {
    case 0:
    case 1:
        grow_model(at + n);
        memcpy(model + at, buffer, n);
        return pwrite(fd, buffer, n, (off_t)at) == (ssize_t)n ? "write" : NULL;
    case 2:
    case 3: {
        ssize_t got = pread(fd, buffer, n, (off_t)at), want = at >= model_size ? 0 : (ssize_t)(model_size - at);
        if (want > (ssize_t)n)
            want = (ssize_t)n;
        return got == want && !memcmp(buffer, model + at, (size_t)want) ? "read" : NULL;
    }
    case 4:
        if (at > model_size)
            grow_model(at);
        model_size = at;
        return ftruncate(fd, (off_t)at) == 0 ? "truncate" : NULL;
    case 5: {
        if (model_size < 2)
            return "map nothing";
        at %= model_size;
        n = n > model_size - at ? model_size - at : n;
        uint8_t *p = mmap(NULL, model_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            return NULL;
        bool same = !memcmp(p, model, model_size);
        memcpy(p + at, buffer, n);
        memcpy(model + at, buffer, n);
        munmap(p, model_size);
        return same ? "map" : NULL;
    }
    case 6:
        if (at < model_size)
            memset(model + at, 0, n < model_size - at ? n : model_size - at);
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)n) == 0 ? "punch" : NULL;
    case 7:
        if (model_size + n > MODEL_MAX)
            return "append nothing";
        at = model_size;
        grow_model(at + n);
        memcpy(model + at, buffer, n);
        return write(append, buffer, n) == (ssize_t)n ? "append" : NULL;
    default: {
        off_t from = (off_t)roll((uint32_t)model_size / 2), to = (off_t)(model_size - model_size / 4);
        size_t length = model_size / 4;
        if (!length)
            return "copy nothing";
        if ((size_t)from + length > (size_t)to)
            length = (size_t)(to - from);
        ssize_t got = copy_file_range(fd, &(off_t){from}, fd, &(off_t){to}, length, 0);
        if (got < 0)
            return NULL;
        memmove(model + to, model + from, (size_t)got);
        return "copy";
    }
    }
}

static void run_model(unsigned n)
{
    int fd = open("model", O_RDWR | O_CREAT | O_TRUNC, 0644), append = open("model", O_WRONLY | O_APPEND);
    unsigned i;
    const char *what = "open";
    struct stat st;

    for (i = 0; i < n && fd >= 0; i++) {
        const char *now = step(fd, append);
        if (now && i % 64 == 0 && (fsync(fd) || fstat(fd, &st) || (size_t)st.st_size != model_size))
            now = NULL;
        if (!now)
            break;
        what = now;
    }
    check("a-file-is-like-an-array", i == n, "step %u after %s", i, what);
    close(fd);
    fd = open("model", O_RDONLY);
    ssize_t got = read(fd, buffer, sizeof buffer);
    check("and-stays-so", got == (ssize_t)model_size && !memcmp(buffer, model, model_size), "%zd", got);
    uint32_t sum = 0;
    for (size_t k = 0; k < model_size; k++)
        sum = sum * 31 + model[k];
    printf("model %zu %u\n", model_size, sum);
}

/* --- many files -------------------------------------------------------------------------------------------------- */

static unsigned count(const char *name)
{
    DIR *d = opendir(name);
    unsigned n = 0;
    for (struct dirent *e; d && (e = readdir(d));)
        n += e->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}

static void run_tree(unsigned n)
{
    char name[64], other[64], text[64];
    unsigned good = 0, found = 0, directories = n / 100;

    mkdir("tree", 0755);
    for (unsigned i = 0; i < n; i++) {
        snprintf(name, sizeof name, "tree/d%u", i % directories);
        if (i < directories)
            mkdir(name, 0755);
        snprintf(name, sizeof name, "tree/d%u/file-%u", i % directories, i);
        put(name, name);
    }
    for (unsigned i = 0; i < n; i++) {
        snprintf(name, sizeof name, "tree/d%u/file-%u", i % directories, i);
        snprintf(text, sizeof text, "%s", get(name));
        good += !strcmp(text, name);
    }
    check("many-files", good == n, "%u of %u", good, n);
    for (unsigned i = 0; i < directories; i++) {
        snprintf(name, sizeof name, "tree/d%u", i);
        found += count(name);
    }
    check("all-are-listed", found == n && count("tree") == directories, "%u of %u", found, n);
    snprintf(name, sizeof name, "tree/d%u", directories - 1);
    for (unsigned i = 0, gone = 0; i < n; i += 10, gone++) {
        snprintf(name, sizeof name, "tree/d%u/file-%u", i % directories, i);
        snprintf(other, sizeof other, "tree/moved-%u", i);
        if (rename(name, other))
            check("rename", false, "%s", name);
    }
    check("a-tenth-is-moved", count("tree") == directories + n / 10, "%u", count("tree"));
}

/* --- locks between the host and the guest ------------------------------------------------------------------------ */

/* Waits for a file that the other side makes. */
static void await(const char *name)
{
    for (unsigned i = 0; i < 3000 && access(name, F_OK); i++)
        usleep(10000);
}

static void run_lock(void)
{
    struct flock fl = {.l_type = F_WRLCK}, ask = {.l_type = F_WRLCK};

    int fd = open("shared-lock", O_RDWR | O_CREAT, 0644);
    check("lock-before-the-host", fcntl(fd, F_SETLK, &fl) == 0, "no");
    put("guest-has-it", "");
    await("host-saw-it");
    fl.l_type = F_UNLCK;
    fcntl(fd, F_SETLK, &fl);
    put("guest-let-go", "");
    await("host-has-it");
    check("the-host's-lock-is-seen", fcntl(fd, F_GETLK, &ask) == 0 && ask.l_type == F_WRLCK, "%d", ask.l_type);
    put("guest-waits", "");
    fl.l_type = F_WRLCK;
    check("and-waited-for", fcntl(fd, F_SETLKW, &fl) == 0, "no");
    check("until-it-is-free", !access("host-let-go", F_OK), "too early");
}

/* --- how fast ---------------------------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Forgets what the guest has cached: what follows is asked of the other side. */
static void forget(void)
{
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
    sync();
    if (fd < 0 || write(fd, "3", 1) != 1)
        perror("drop_caches");
    close(fd);
}

static void tell(const char *what, double amount, double since)
{
    printf("%s\t%.4g\n", what, amount / (now() - since));
    fflush(stdout);
}

static void stream(size_t megabytes)
{
    static char block[1 << 20];
    int fd = open("stream", O_RDWR | O_CREAT | O_TRUNC, 0644);
    double start = now();

    for (size_t i = 0; i < megabytes && write(fd, block, sizeof block) == sizeof block; i++)
        ;
    tell("write, MB/s", (double)megabytes * 1.048576, start);
    close(fd);
    forget();
    fd = open("stream", O_RDONLY);
    start = now();
    while (read(fd, block, sizeof block) > 0)
        ;
    tell("read, MB/s", (double)megabytes * 1.048576, start);
    close(fd);
    fd = open("stream", O_WRONLY);
    start = now();
    for (unsigned i = 0; i < 3000; i++)
        if (pwrite(fd, block, 4096, (off_t)i * 4096) != 4096)
            break;
    tell("writes of 4 KiB, 1/s", 3000, start);
    close(fd);
}

static void run_bench(void)
{
    enum { N = 2000 };
    struct stat st;
    char name[32];
    double start = now();

    mkdir("small", 0755);
    for (unsigned i = 0; i < N; i++) {
        snprintf(name, sizeof name, "small/%u", i);
        put(name, name);
    }
    tell("create a small file, 1/s", N, start);
    forget();
    start = now();
    for (unsigned i = 0; i < N; i++) {
        snprintf(name, sizeof name, "small/%u", i);
        get(name);
    }
    tell("read a small file, 1/s", N, start);
    forget();
    start = now();
    for (unsigned i = 0; i < N; i++) {
        snprintf(name, sizeof name, "small/%u", i);
        stat(name, &st);
    }
    tell("stat, 1/s", N, start);
    forget();
    start = now();
    tell("list, entries/s", count("small"), start);
    start = now();
    for (unsigned i = 0; i < N; i++) {
        snprintf(name, sizeof name, "small/%u", i);
        unlink(name);
    }
    tell("unlink, 1/s", N, start);
    stream(128);
}

int main(int argc, char **argv)
{
    if (argc < 3 || chdir(argv[2]))
        return 2;
    umask(0);
    if (!strcmp(argv[1], "semantics")) {
        names_and_links();
        attributes();
        as_somebody();
        data();
        in_guest_locks();
    } else if (!strcmp(argv[1], "model")) {
        seed = strtoull(argv[4], NULL, 0) * 0x9e3779b97f4a7c15ull | 1;
        run_model((unsigned)atoi(argv[3]));
    } else if (!strcmp(argv[1], "tree")) {
        run_tree((unsigned)atoi(argv[3]));
    } else if (!strcmp(argv[1], "lock")) {
        run_lock();
    } else if (!strcmp(argv[1], "bench")) {
        run_bench();
    }
    return failures > 0;
}
