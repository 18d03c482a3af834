/* Files from the network, by the program curl in a process of its own. */
#pragma once
#include "image/job.h"

bool download_is_url(const char *text);

/* To the new file `path`.  -ENOENT without curl. */
int download(struct job *j, const char *url, const char *path, char *err, size_t n);
