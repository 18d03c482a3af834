/* The store of images: names, digests, removal, drafts of the dead. */
#include "image_fixture.h"

#include <signal.h>
#include <sys/wait.h>

static void an_image_is_found_by_name_and_by_digest(void **state)
{
    struct image_info made = make_image("debian", "one"), found;

    assert_int_equal(image_find("debian", &found, err, sizeof err), 0);
    assert_string_equal(found.digest, made.digest);
    assert_string_equal(found.name, "debian");
    assert_int_equal(image_find(made.digest, &found, err, sizeof err), 0);
    char prefix[14] = "";
    memcpy(prefix, made.digest + 7, 6);
    assert_int_equal(image_find(prefix, &found, err, sizeof err), 0);
    assert_string_equal(found.digest, made.digest);
    assert_true(exists(found.disk) && exists(found.kernel) && exists(found.modules));
    assert_string_equal(found.initrd, "");
    assert_int_equal(found.disk_bytes, 1u << 20);
}

static void a_missing_image_is_a_sentence(void **state)
{
    struct image_info found;

    assert_int_equal(image_find("debian", &found, err, sizeof err), -ENOENT);
    assert_non_null(strstr(err, "guise image ls"));
    assert_int_equal(image_find("./none.qcow2", &found, err, sizeof err), -ENOENT);
    assert_non_null(strstr(err, "./none.qcow2"));
    assert_int_equal(chdir(top), 0);
    put("disk.raw", "x");
    assert_int_equal(image_find("disk.raw", &found, err, sizeof err), -ENOENT);
    assert_non_null(strstr(err, "./disk.raw"));
}

static void a_short_digest_of_two_images_is_refused(void **state)
{
    struct image_info info;
    char word[65];

    /* Directories are enough: the word is resolved before anything is read. */
    mkdir(below("images/sha256-%064d", 1), 0700);
    mkdir(below("images/sha256-%064d", 2), 0700);
    memset(word, '0', 6);
    word[6] = 0;
    assert_int_equal(image_find(word, &info, err, sizeof err), -ENOTUNIQ);
}

static void names_that_lead_elsewhere_are_not_followed(void **state)
{
    static const char *const names[] = {"", ".", "..", "../x", "a/b", "A", "-x", ".hidden", "sha256-00", "x y", "x\n"};
    struct image_info found;

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        assert_int_equal(image_name_check(names[i], err, sizeof err), -EINVAL);
    assert_int_equal(image_name_check("debian:12.1_x-y", err, sizeof err), 0);
    assert_int_equal(symlink("/etc", below("images/names/evil")), 0);
    assert_int_equal(image_find("evil", &found, err, sizeof err), -EBADMSG);
}

static void the_same_content_is_one_image(void **state)
{
    struct image_info one = make_image("a", "same"), other = make_image("b", "same");
    struct image_info *list;
    size_t count;

    assert_string_equal(one.digest, other.digest);
    assert_int_equal(image_list(&list, &count, err, sizeof err), 0);
    assert_int_equal(count, 2);
    assert_string_equal(list[0].name, "a");
    assert_string_equal(list[1].name, "b");
    free(list);
}

static void files_of_an_image_are_read_only(void **state)
{
    struct image_info info = make_image("a", "x");
    struct stat st;

    assert_int_equal(stat(info.disk, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0444);
    assert_int_equal(stat(info.directory, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0555);
}

static void removing_a_name_keeps_the_image_while_it_has_another(void **state)
{
    struct image_info info = make_image("a", "x"), found;
    bool deleted;

    assert_int_equal(image_tag("a", "b", err, sizeof err), 0);
    assert_int_equal(image_remove("a", &deleted, err, sizeof err), 0);
    assert_false(deleted);
    assert_int_equal(image_find("a", &found, err, sizeof err), -ENOENT);
    assert_int_equal(image_find("b", &found, err, sizeof err), 0);
    assert_int_equal(image_remove("b", &deleted, err, sizeof err), 0);
    assert_true(deleted);
    assert_false(exists(info.directory));
}

static void removing_by_digest_takes_all_names(void **state)
{
    struct image_info info = make_image("a", "x"), found;
    bool deleted;

    assert_int_equal(image_tag("a", "b", err, sizeof err), 0);
    assert_int_equal(image_remove(info.digest, &deleted, err, sizeof err), 0);
    assert_true(deleted);
    assert_int_equal(image_find("b", &found, err, sizeof err), -ENOENT);
    assert_false(exists(below("images/names/a")));
}

static void an_image_that_a_vm_has_stays(void **state)
{
    struct image_info info = make_image("a", "x");
    char text[200];
    bool deleted;

    mkdir(below("vms"), 0700);
    mkdir(below("vms/busy"), 0700);
    snprintf(text, sizeof text, "{\"image\": \"%s\"}", info.digest);
    put(below("vms/busy/vm.json"), text);
    assert_int_equal(image_remove("a", &deleted, err, sizeof err), -EBUSY);
    assert_non_null(strstr(err, "busy"));
    assert_true(exists(info.disk) && exists(below("images/names/a")));
    unlink(below("vms/busy/vm.json"));
    assert_int_equal(image_remove("a", &deleted, err, sizeof err), 0);
}

static void an_image_that_is_held_stays(void **state)
{
    struct image_info info = make_image("a", "x");
    bool deleted;
    int held = image_hold(&info, err, sizeof err), again = image_hold(&info, err, sizeof err);

    assert_true(held >= 0 && again >= 0);
    assert_int_equal(image_remove("a", &deleted, err, sizeof err), -EBUSY);
    close(held);
    assert_int_equal(image_remove("a", &deleted, err, sizeof err), -EBUSY);
    close(again);
    assert_int_equal(image_remove("a", &deleted, err, sizeof err), 0);
    assert_int_equal(image_hold(&info, err, sizeof err), -ENOENT);
}

static void a_changed_byte_is_noticed(void **state)
{
    struct image_info info = make_image("a", "content");

    assert_int_equal(image_verify(&info, err, sizeof err), 0);
    chmod(info.disk, 0600);
    int fd = open(info.disk, O_WRONLY);
    assert_int_equal(pwrite(fd, "C", 1, 0), 1);
    close(fd);
    assert_int_equal(image_verify(&info, err, sizeof err), -EBADMSG);
}

static void a_draft_of_a_dead_process_is_swept_and_one_of_a_living_not(void **state)
{
    struct store_draft mine, next;
    int ready[2], status;

    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct store_draft d;
        fill_draft(&d, "x");
        if (write(ready[1], d.path, sizeof d.path) != sizeof d.path)
            _exit(1);
        pause();
        _exit(0);
    }
    char path[IMAGE_PATH_SIZE];
    assert_int_equal(read(ready[0], path, sizeof path), sizeof path);
    assert_int_equal(store_draft(&mine, err, sizeof err), 0);
    assert_true(exists(path));
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    assert_int_equal(store_draft(&next, err, sizeof err), 0);
    assert_false(exists(path));
    assert_true(exists(mine.path));
    store_discard(&mine);
    store_discard(&next);
    assert_false(exists(mine.path));
}

static void a_failed_publish_leaves_nothing(void **state)
{
    struct store_draft d;
    struct image_info info, *list;
    size_t count;
    char path[2 * IMAGE_PATH_SIZE];

    fill_draft(&d, "x");
    snprintf(path, sizeof path, "%s/kernel", d.path);
    unlink(path);
    assert_int_equal(store_publish(&d, "a", &info, err, sizeof err), -ENOENT);
    assert_false(exists(d.path));
    assert_int_equal(image_list(&list, &count, err, sizeof err), 0);
    assert_int_equal(count, 0);
    free(list);
}

static void a_damaged_image_is_named_when_asked_for_and_left_out_of_lists(void **state)
{
    struct image_info info = make_image("a", "x"), found, *list;
    size_t count;

    chmod(info.directory, 0700);
    put(below("images/%s/metadata.json", info.digest), "{\"schema_version\": 1}");
    assert_int_equal(image_find("a", &found, err, sizeof err), -EBADMSG);
    assert_non_null(strstr(err, "damaged"));
    assert_int_equal(image_list(&list, &count, err, sizeof err), 0);
    assert_int_equal(count, 0);
    free(list);
}

static void a_disk_named_by_path_is_found_until_it_changes(void **state)
{
    struct image_info info = make_image(NULL, "x"), newer, found;
    char key[FILE_KEY_SIZE], path[128];

    snprintf(path, sizeof path, "%s/disk", top);
    put(path, "one");
    assert_int_equal(file_key(path, key, err, sizeof err), 0);
    file_remember(images, key, info.digest);
    assert_int_equal(image_find(path, &found, err, sizeof err), 0);
    assert_string_equal(found.digest, info.digest);
    put(path, "changed");
    assert_int_equal(image_find(path, &found, err, sizeof err), -ENOENT);
    /* The image of the older state goes when there is a newer one. */
    newer = make_image(NULL, "y");
    assert_int_equal(file_key(path, key, err, sizeof err), 0);
    file_remember(images, key, newer.digest);
    assert_false(exists(info.directory));
    assert_int_equal(image_find(path, &found, err, sizeof err), 0);
    assert_string_equal(found.digest, newer.digest);
}

static void a_symbolic_link_is_removed_and_not_followed(void **state)
{
    mkdir(below("victim"), 0700);
    put(below("victim/file"), "x");
    mkdir(below("tree"), 0700);
    char target[128];
    snprintf(target, sizeof target, "%s/victim", top);
    assert_int_equal(symlink(target, below("tree/link")), 0);
    assert_int_equal(files_remove(below("tree")), 0);
    assert_false(exists(below("tree")));
    assert_true(exists(below("victim/file")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(an_image_is_found_by_name_and_by_digest),
        STORE_TEST(a_missing_image_is_a_sentence),
        STORE_TEST(a_short_digest_of_two_images_is_refused),
        STORE_TEST(names_that_lead_elsewhere_are_not_followed),
        STORE_TEST(the_same_content_is_one_image),
        STORE_TEST(files_of_an_image_are_read_only),
        STORE_TEST(removing_a_name_keeps_the_image_while_it_has_another),
        STORE_TEST(removing_by_digest_takes_all_names),
        STORE_TEST(an_image_that_a_vm_has_stays),
        STORE_TEST(an_image_that_is_held_stays),
        STORE_TEST(a_changed_byte_is_noticed),
        STORE_TEST(a_draft_of_a_dead_process_is_swept_and_one_of_a_living_not),
        STORE_TEST(a_failed_publish_leaves_nothing),
        STORE_TEST(a_damaged_image_is_named_when_asked_for_and_left_out_of_lists),
        STORE_TEST(a_disk_named_by_path_is_found_until_it_changes),
        STORE_TEST(a_symbolic_link_is_removed_and_not_followed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
