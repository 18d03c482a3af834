/* Removing a directory with all that is in it. */
#pragma once

/* Follows no symbolic link.  0 (also when there is nothing), or -errno of the first thing that could not be removed. */
int tree_remove(const char *path);
