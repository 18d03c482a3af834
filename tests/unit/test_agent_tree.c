/* Trees: hostile senders, deep and odd ones; what a destination means. */
#include "agent_fixture.h"

#include <sys/xattr.h>

#include "agent/tree.h"

static char why[ERROR_SIZE], work[] = "/tmp/guise-tree-XXXXXX";

static int enter_work(void **state)
{
    return mkdtemp(work) && chdir(work) == 0 ? 0 : -1;
}

static int leave_work(void **state)
{
    char command[128];

    snprintf(command, sizeof(command), "chmod -R u+rwx %s; rm -rf %s", work, work);
    return chdir("/") || system(command);
}

static const struct tree_watch nobody = {0};

/* The bytes that a hand-written sender has queued, to a receiver whose target is `path`. */
static int receive(struct stream *from, const char *path, const char *name, uint64_t flags)
{
    struct tree_target t;
    struct stream to;
    int ends[2], r = tree_target_open(path, name, !*name, &t, why, sizeof(why));

    if (r)
        return r;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    if (fork() == 0) {
        from->fd = ends[0];
        close(ends[1]);
        _exit(stream_send(from) != 0);
    }
    close(ends[0]);
    stream_init(&to, ends[1]);
    r = tree_receive(&to, &t, flags, &nobody, why, sizeof(why));
    tree_target_close(&t);
    stream_release(&to);
    stream_release(from);
    close(ends[1]);
    wait(NULL);
    return r;
}

static void begin(struct stream *s)
{
    stream_init(s, -1);
}

static void entry(struct stream *s, const char *name, unsigned kind, const char *target)
{
    stream_begin(s, FRAME_ENTRY);
    stream_text(s, FIELD_NAME, name);
    stream_number(s, FIELD_KIND, kind);
    stream_number(s, FIELD_MODE, 06755);
    stream_text(s, FIELD_TARGET, target);
    stream_end(s);
}

static void data(struct stream *s, uint64_t offset, const char *text)
{
    uint8_t bytes[64];

    put_le(bytes, offset, 8);
    memcpy(bytes + 8, text, strlen(text));
    stream_put(s, FRAME_DATA, bytes, 8 + strlen(text));
}

static void leave(struct stream *s)
{
    stream_put(s, FRAME_LEAVE, NULL, 0);
}

static void end(struct stream *s)
{
    stream_put(s, FRAME_END, NULL, 0);
}

static void names_that_lead_elsewhere_are_refused(void **state)
{
    static const char *const names[] = {"..", ".", "", "a/b", "/etc/passwd", "../victim", "a/../../victim"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct stream s;
        begin(&s);
        entry(&s, "top", TREE_DIRECTORY, NULL);
        entry(&s, names[i], TREE_FILE, NULL);
        data(&s, 0, "x");
        leave(&s);
        end(&s);
        assert_int_equal(receive(&s, "names", "top", 0), -EPROTO);
        assert_non_null(strstr(why, "leads elsewhere"));
    }
    assert_int_equal(access("victim", F_OK), -1);

    /* A zero byte in it makes no name at all. */
    struct stream s;
    begin(&s);
    entry(&s, "top", TREE_DIRECTORY, NULL);
    stream_begin(&s, FRAME_ENTRY);
    stream_bytes(&s, FIELD_NAME, "a\0b", 3);
    stream_number(&s, FIELD_KIND, TREE_FILE);
    stream_end(&s);
    assert_int_equal(receive(&s, "names", "top", 0), -EPROTO);
}

static void links_of_the_tree_are_not_followed(void **state)
{
    struct stream s;

    assert_int_equal(mkdir("outside", 0755), 0);
    begin(&s);
    entry(&s, "top", TREE_DIRECTORY, NULL);
    entry(&s, "way", TREE_SYMLINK, "../outside");
    entry(&s, "way", TREE_DIRECTORY, NULL); /* "into" the link */
    entry(&s, "file", TREE_FILE, NULL);
    leave(&s);
    leave(&s);
    end(&s);
    assert_true(receive(&s, "links", "top", 0) < 0);
    assert_int_equal(access("outside/file", F_OK), -1);

    /* A file of a link's name replaces the link. */
    assert_int_equal(symlink("../victim", "links/there"), 0);
    begin(&s);
    entry(&s, "top", TREE_DIRECTORY, NULL);
    entry(&s, "there", TREE_FILE, NULL);
    data(&s, 0, "x");
    leave(&s);
    end(&s);
    assert_int_equal(receive(&s, "links/.", "", 0), 0);
    assert_int_equal(access("victim", F_OK), -1);
}

static void the_first_entrys_name_is_the_receivers(void **state)
{
    struct stream s;

    begin(&s);
    entry(&s, "../../victim", TREE_FILE, NULL);
    data(&s, 0, "x");
    end(&s);
    assert_int_equal(receive(&s, "mine", "other", 0), 0);
    assert_int_equal(access("mine", F_OK), 0);
}

static void broken_trees_are_refused(void **state)
{
    static const struct {
        const char *frames; /* d f l: entries; x y z: data at 0, 1, 8; L leave, E end, ?: a frame of something else */
        const char *sentence;
    } broken[] = {
        {"E", "nothing to copy"},
        {"L", "never entered"},
        {"x", "no file"},
        {"dE", "inside a directory"},
        {"dLL", "never entered"},
        {"dLf", "outside of the tree"},
        {"ff", "outside of the tree"},
        {"dx", "no file"},
        {"fzx", "not in order"},
        {"fxy", NULL},
        {"fyx", "not in order"},
        {"lx", "no file"},
        {"k", "unknown kind"},
        {"m", "without a target"},
        {"?", "no place there"},
        {"d?", "no place there"},
    };

    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        struct stream s;
        begin(&s);
        for (const char *f = broken[i].frames; *f; f++)
            switch (*f) {
            case 'd':
                entry(&s, "d", TREE_DIRECTORY, NULL);
                break;
            case 'f':
                entry(&s, "f", TREE_FILE, NULL);
                break;
            case 'l':
                entry(&s, "l", TREE_SYMLINK, "t");
                break;
            case 'm':
                entry(&s, "m", TREE_SYMLINK, NULL);
                break;
            case 'k':
                entry(&s, "k", 77, NULL);
                break;
            case 'x':
                data(&s, 0, "x");
                break;
            case 'y':
                data(&s, 1, "y");
                break;
            case 'z':
                data(&s, 8, "z");
                break;
            case 'L':
                leave(&s);
                break;
            case 'E':
                end(&s);
                break;
            default:
                stream_put(&s, FRAME_STDOUT, "?", 1);
            }
        if (!broken[i].sentence)
            end(&s);
        char path[32];
        snprintf(path, sizeof(path), "broken%zu", i);
        int r = receive(&s, path, "top", 0);
        if (broken[i].sentence) {
            assert_true(r < 0);
            assert_non_null(strstr(why, broken[i].sentence));
        } else {
            assert_int_equal(r, 0);
        }
    }
}

static void offsets_do_not_wrap(void **state)
{
    static const uint64_t offsets[] = {UINT64_MAX, (uint64_t)INT64_MAX, 1ull << 63};

    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        struct stream s;
        begin(&s);
        entry(&s, "f", TREE_FILE, NULL);
        data(&s, offsets[i], "xyz");
        end(&s);
        assert_true(receive(&s, "wrap", "f", 0) < 0);
    }
    struct stream s;
    begin(&s);
    entry(&s, "f", TREE_FILE, NULL);
    stream_put(&s, FRAME_DATA, "short", 5);
    assert_int_equal(receive(&s, "wrap", "f", 0), -EPROTO);
}

static void depth_is_bounded(void **state)
{
    struct stream s;

    begin(&s);
    for (int i = 0; i < TREE_DEPTH_MAX + 1; i++)
        entry(&s, "d", TREE_DIRECTORY, NULL);
    assert_int_equal(receive(&s, "deep", "d", 0), -EPROTO);
    begin(&s);
    for (int i = 0; i < TREE_DEPTH_MAX; i++)
        entry(&s, "d", TREE_DIRECTORY, NULL);
    for (int i = 0; i < TREE_DEPTH_MAX; i++)
        leave(&s);
    end(&s);
    assert_int_equal(receive(&s, "deep2", "d", 0), 0);
}

static unsigned mode_of(const char *path)
{
    struct stat st;

    assert_int_equal(lstat(path, &st), 0);
    return st.st_mode & 07777;
}

static void special_bits_need_to_be_asked_for(void **state)
{
    for (int owners = 0; owners < 2; owners++) {
        struct stream s;
        begin(&s);
        entry(&s, "f", TREE_FILE, NULL);
        end(&s);
        assert_int_equal(receive(&s, "bits", "f", owners ? TREE_OWNERS : 0), 0);
        if (geteuid() == 0 || !owners)
            assert_int_equal(mode_of("bits"), owners ? 06755 : 0755);
    }
}

static void directories_that_were_there_keep_their_mode(void **state)
{
    for (int owners = 0; owners < 2; owners++) {
        struct stream s;
        (void)!system("mkdir -p before/mine && chmod 700 before before/mine && touch -d @1000000000 before/mine");
        begin(&s);
        entry(&s, "top", TREE_DIRECTORY, NULL);
        entry(&s, "mine", TREE_DIRECTORY, NULL);
        leave(&s);
        entry(&s, "new", TREE_DIRECTORY, NULL);
        leave(&s);
        leave(&s);
        end(&s);
        assert_int_equal(receive(&s, "before/.", "", owners ? TREE_OWNERS : 0), 0);
        assert_int_equal(mode_of("before"), 0700);
        assert_int_equal(mode_of("before/mine") & 0777, owners ? 0755 : 0700);
        assert_int_equal(mode_of("before/new") & 0777, 0755);
    }
}

static void devices_and_directories_do_not_give_way(void **state)
{
    struct stream s;

    assert_int_equal(mkdir("full", 0755), 0);
    assert_int_equal(mkdir("full/f", 0755), 0);
    begin(&s);
    entry(&s, "f", TREE_FILE, NULL);
    end(&s);
    assert_int_equal(receive(&s, "full", "f", 0), -EISDIR);
    if (geteuid() == 0 && mknod("full/null", S_IFCHR | 0600, 0x103) == 0) {
        begin(&s);
        entry(&s, "null", TREE_FILE, NULL);
        end(&s);
        assert_int_equal(receive(&s, "full", "null", 0), -EEXIST);
        assert_true(mode_of("full/null") == 0600);
    }
}

static void destinations_mean_what_cp_means(void **state)
{
    static const struct {
        const char *path, *source, *name;
        bool contents;
        int r;
    } cases[] = {
        {"there", "src", "src", false, 0},
        {"there/", "src", "src", false, 0},
        {"new", "src", "new", false, 0},
        {"there/new", "src", "new", false, 0},
        {"new/", "src", "new", false, 0},
        {"there", "", "", true, 0},
        {"new", "", "new", true, 0},
        {"none/new", "src", NULL, false, -ENOENT},
        {"file/new", "src", NULL, false, -ENOTDIR},
        {"file", "src", "file", false, 0},
        {".", "src", "src", false, 0},
        {"", "src", NULL, false, -ENOENT},
        {"none/.", "src", NULL, false, -ENOENT},
    };

    assert_int_equal(mkdir("there", 0755), 0);
    close(open("file", O_CREAT | O_WRONLY, 0644));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tree_target t;
        assert_int_equal(tree_target_open(cases[i].path, cases[i].source, cases[i].contents, &t, why, sizeof(why)),
                         cases[i].r);
        if (cases[i].r == 0)
            assert_string_equal(t.name, cases[i].name);
        tree_target_close(&t);
    }

    static const struct {
        const char *path, *name;
    } sources[] = {{"a/b", "b"}, {"a/b//", "b"}, {"b", "b"},   {"/", ""},
                   {".", ""},    {"a/.", ""},    {"a/..", ""}, {"..a", "..a"}};
    for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]); i++) {
        char name[256];
        tree_source_name(sources[i].path, name, sizeof(name));
        assert_string_equal(name, sources[i].name);
    }
}

/* The whole way: host, agent, and back. */
static void a_tree_survives_the_way_there_and_back(void **state)
{
    const struct agent_copy c = {.stream = -1};
    int fd = agent_start(NULL);

    assert_int_equal(
        system("mkdir -p src/sub/empty && cd src && head -c 300000 /dev/urandom >random && : >nothing && "
               "truncate -s 3M holes && printf end >>holes && ln -s random link && ln -s /nowhere dangling && "
               "mkfifo fifo && printf x >sub/file && chmod 400 sub/file && touch -d @1000000000 random sub && "
               "chmod 500 sub"),
        0);
    assert_int_equal(agent_put(fd, "src", "there2", &c, why, sizeof(why)), 0);
    close(fd);
    fd = agent_start(NULL);
    assert_int_equal(agent_get(fd, "there2", "back", &c, why, sizeof(why)), 0);
    close(fd);
    assert_int_equal(
        system("cd src && find . ! -path . -printf '%P %y %m %s %T@ %l\\n' | sort >../one; cd ../back && "
               "find . ! -path . -printf '%P %y %m %s %T@ %l\\n' | sort >../two; cd .. && "
               "sed -i 's/ d \\([0-9]*\\) [0-9]*/ d \\1/; s/ l \\([0-9]*\\) \\([0-9]*\\) [0-9.]*/ l/' one two && diff "
               "one two && "
               "cmp src/random back/random && cmp src/holes back/holes && chmod 700 src/sub back/sub there2/sub"),
        0);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

static void an_archive_keeps_attributes_and_hard_links(void **state)
{
    const struct agent_copy c = {.stream = -1, .owners = true};
    char value[16] = "";
    struct stat one, other, apart;
    int fd = agent_start(NULL);

    assert_int_equal(
        system("mkdir -p arch/sub && echo x >arch/a && ln arch/a arch/sub/b && ln arch/a arch/c && echo y >arch/d && "
               "ln arch/d outside"),
        0);
    bool attributes = setxattr("arch/d", "user.word", "hello", 5, 0) == 0 &&
                      setxattr("arch/sub", "user.dir", "d", 1, 0) == 0;
    assert_int_equal(agent_put(fd, "arch", "arch2", &c, why, sizeof(why)), 0);
    close(fd);
    fd = agent_start(NULL);
    assert_int_equal(agent_get(fd, "arch2", "arch3", &c, why, sizeof(why)), 0);
    close(fd);
    assert_int_equal(stat("arch3/a", &one) | stat("arch3/sub/b", &other) | stat("arch3/d", &apart), 0);
    assert_true(one.st_ino == other.st_ino && one.st_nlink == 3 && apart.st_nlink == 1);
    if (attributes) {
        assert_int_equal(getxattr("arch3/d", "user.word", value, sizeof(value)), 5);
        assert_memory_equal(value, "hello", 5);
        assert_int_equal(getxattr("arch3/sub", "user.dir", value, sizeof(value)), 1);
    }
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

static void hard_links_stay_in_the_tree(void **state)
{
    static const char *const targets[] = {"../outside", "..",  "",     "/etc/passwd", "nothing",
                                          "link/file",  "sub", "link", NULL};

    assert_int_equal(
        system("mkdir -p away hard/sub && echo secret >away/file && ln -s ../away hard/link && echo x >hard/mine"), 0);
    for (unsigned i = 0; i < sizeof(targets) / sizeof(targets[0]); i++) {
        struct stream s;
        begin(&s);
        entry(&s, "", TREE_DIRECTORY, NULL);
        entry(&s, "got", TREE_HARDLINK, targets[i]);
        leave(&s);
        end(&s);
        assert_int_equal(receive(&s, "hard", "", TREE_OWNERS), -EPROTO);
        assert_int_equal(access("hard/got", F_OK), -1);
    }
    struct stream s;
    begin(&s);
    entry(&s, "got", TREE_HARDLINK, "hard/mine");
    end(&s);
    assert_int_equal(receive(&s, "got", "got", TREE_OWNERS), -EPROTO);
}

static void attributes_of_the_system_are_refused(void **state)
{
    static const char value[] = "trusted.x\0y", broken[] = "user.broken";
    struct stream s;

    begin(&s);
    stream_begin(&s, FRAME_ENTRY);
    stream_text(&s, FIELD_NAME, "f");
    stream_number(&s, FIELD_KIND, TREE_FILE);
    stream_bytes(&s, FIELD_XATTR, value, sizeof(value) - 1);
    stream_bytes(&s, FIELD_XATTR, broken, sizeof(broken) - 1);
    stream_end(&s);
    end(&s);
    assert_int_equal(receive(&s, "system", "f", TREE_OWNERS), 0);
    assert_int_equal(listxattr("system", NULL, 0), 0);
}

static void a_refusal_arrives_in_the_middle_of_much(void **state)
{
    const struct agent_copy c = {.stream = -1};
    int fd = agent_start(NULL);

    assert_int_equal(system("mkdir much && head -c 30000000 /dev/zero >much/a && mkdir -p taken/much/a"), 0);
    assert_int_equal(agent_put(fd, "much", "taken", &c, why, sizeof(why)), -EISDIR);
    assert_non_null(strstr(why, "cannot write a"));
    close(fd);
    wait(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_that_lead_elsewhere_are_refused),
        cmocka_unit_test(links_of_the_tree_are_not_followed),
        cmocka_unit_test(the_first_entrys_name_is_the_receivers),
        cmocka_unit_test(broken_trees_are_refused),
        cmocka_unit_test(offsets_do_not_wrap),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(special_bits_need_to_be_asked_for),
        cmocka_unit_test(directories_that_were_there_keep_their_mode),
        cmocka_unit_test(devices_and_directories_do_not_give_way),
        cmocka_unit_test(destinations_mean_what_cp_means),
        cmocka_unit_test(a_tree_survives_the_way_there_and_back),
        cmocka_unit_test(an_archive_keeps_attributes_and_hard_links),
        cmocka_unit_test(hard_links_stay_in_the_tree),
        cmocka_unit_test(attributes_of_the_system_are_refused),
        cmocka_unit_test(a_refusal_arrives_in_the_middle_of_much),
    };
    signal(SIGPIPE, SIG_IGN);
    alarm(50);
    return cmocka_run_group_tests(tests, enter_work, leave_work);
}
