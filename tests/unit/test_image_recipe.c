/* What a build of Debian is made of: recipes, mirrors, and what may not reach mmdebstrap's command line. */
#include "image_fixture.h"

#include "image/recipe.h"

static char lines[RECIPE_SOURCES_MAX][512];

static void recipes_have_suites(void **state)
{
    assert_string_equal(recipe_find("debian")->suite, DEFAULT_SUITE);
    assert_string_equal(recipe_find("trixie")->suite, "trixie");
    assert_null(recipe_find("debia"));
    assert_null(recipe_find(""));
}

static void the_mirrors_of_the_host_are_taken_for_other_suites_too(void **state)
{
    static const char host[] = "https://example.org/apt cloud-sdk-bookworm main\n"
                               "http://mirror/debian/ bookworm main\n"
                               "http://mirror/debian/ bookworm contrib\n"
                               "http://mirror/debian/ bookworm-updates main\n"
                               "http://other/debian bookworm-backports main\n"
                               "http://sec/debian-security/ bookworm-security main\n"
                               "http://docker/linux/debian bookworm stable\n";

    assert_int_equal(recipe_sources("trixie", NULL, host, lines), 3);
    assert_string_equal(lines[0], "deb http://mirror/debian/ trixie main");
    assert_string_equal(lines[1], "deb http://mirror/debian/ trixie-updates main");
    assert_string_equal(lines[2], "deb http://sec/debian-security/ trixie-security main");
}

static void without_mirrors_the_usual_ones_are_taken(void **state)
{
    assert_int_equal(recipe_sources("bookworm", NULL, "http://archive.ubuntu.com/ubuntu noble main\n", lines), 3);
    assert_string_equal(lines[0], "deb http://deb.debian.org/debian bookworm main");
    assert_string_equal(lines[2], "deb http://deb.debian.org/debian-security bookworm-security main");
    assert_int_equal(recipe_sources("sid", NULL, NULL, lines), 1);
    assert_string_equal(lines[0], "deb http://deb.debian.org/debian sid main");
}

static void a_mirror_that_is_given_is_the_only_one(void **state)
{
    assert_int_equal(recipe_sources("bookworm", "http://m/debian", "http://x/debian bookworm main\n", lines), 2);
    assert_string_equal(lines[0], "deb http://m/debian bookworm main");
    assert_string_equal(lines[1], "deb http://m/debian bookworm-updates main");
}

static int check(struct image_build b)
{
    return recipe_check(&b, err, sizeof err);
}

static void words_that_are_options_are_refused(void **state)
{
    assert_int_equal(check((struct image_build){.name = "x"}), 0);
    assert_int_equal(check((struct image_build){.name = "x", .suite = "trixie", .include = "git,g++,libc6:amd64"}), 0);
    assert_int_equal(check((struct image_build){.name = "-x"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .suite = "--help"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .suite = ""}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .suite = "a/../b"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .include = "a b"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .include = "-a"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .include = "a,-b"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .include = "a$(reboot)"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .mirror = "gopher://x"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .mirror = "http://x y"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .hook = "/nonexistent/hook"}), -ENOENT);
    assert_int_equal(check((struct image_build){.name = "x", .hook = "/tmp"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .hook = "/etc/passwd"}), -EINVAL);
    assert_int_equal(check((struct image_build){.name = "x", .hook = "/proc/self/exe"}), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recipes_have_suites),
        cmocka_unit_test(the_mirrors_of_the_host_are_taken_for_other_suites_too),
        cmocka_unit_test(without_mirrors_the_usual_ones_are_taken),
        cmocka_unit_test(a_mirror_that_is_given_is_the_only_one),
        cmocka_unit_test(words_that_are_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
