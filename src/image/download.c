#include "image/download.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"

bool download_is_url(const char *text)
{
    static const char *const schemes[] = {"http://", "https://", "ftp://", "file://"};

    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
        if (strncmp(text, schemes[i], strlen(schemes[i])) == 0)
            return true;
    return false;
}

/* curl's own meter, for want of a terminal a line of "Key: value" headers: the last Content-Length is the file's. */
static void watch(void *context, struct job *j, const char *log)
{
    struct stat st;
    uint64_t total = 0;

    for (const char *line = log; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strncasecmp(line, "content-length:", 15) == 0)
            total = strtoull(line + 15, NULL, 10);
    job_progress(j, stat(context, &st) ? 0 : (uint64_t)st.st_size, total);
}

/* Only from the network to the network: a server cannot send us to a file of this host. */
int download(struct job *j, const char *url, const char *path, char *err, size_t n)
{
    bool file = strncmp(url, "file://", 7) == 0;
    const char *const argv[] = {"curl",
                                "--fail",
                                "--silent",
                                "--show-error",
                                "--location",
                                "--proto",
                                file ? "=file" : "=http,https,ftp",
                                "--proto-redir",
                                "=http,https",
                                "--retry",
                                "3",
                                "--dump-header",
                                "/dev/stderr",
                                "--output",
                                path,
                                "--url",
                                url,
                                NULL};

    job_stage(j, "downloading");
    if (!job_has_program("curl"))
        return error_set(err, n, -ENOENT, "to fetch from the network guise needs the package curl: install it");
    return job_run(j, &(struct job_tool){.argv = argv, .watch = watch, .context = (void *)(uintptr_t)path}, err, n);
}
