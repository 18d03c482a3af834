/*
 * The sandbox: how a process gives its power away before it meets a guest.
 *
 * Whatever a process needs by name (files, sockets, helper processes, /dev/kvm) it opens first; then sandbox_enter
 * takes away, in this order, as much as the host's kernel has means for:
 *
 *      limits          no core dumps with a guest's memory in them, no attaching debuggers, no locked memory
 *      environment     erased from memory: it may hold secrets
 *      no_new_privs    no program that it could start would have more rights
 *      file names      for root, unless the spec lists some, a root directory that is deleted; landlock: only those
 * listed user            root becomes a user that nobody else is capabilities    none system calls    seccomp: a list
 * for each role (sandbox_calls.c says why for each call)
 *
 * Descriptors that are open stay usable.  There is no way back, for any thread.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum sandbox_role {
    /* The whole of a VM process: the sum of what its threads do, and the event loop's own list. */
    SANDBOX_VM_SOFT,
    SANDBOX_VM_KVM,
    /* Threads of a VM process, in addition to that. */
    SANDBOX_VCPU_SOFT,
    SANDBOX_VCPU_KVM,
    SANDBOX_WORKER, /* file operations of a disk */
    SANDBOX_WRITER, /* writes what a console prints */
    /* Helper processes. */
    SANDBOX_KEEPER, /* host/keeper.h */
    SANDBOX_NET,    /* a user-mode network stack: sockets of the Internet */
    SANDBOX_SWITCH, /* a switch among VMs: a Unix socket, who makes it and who joins */
    SANDBOX_SHARE,  /* a file server: files below directories that are open */
    SANDBOX_DIRECT, /* makes processes that run guest code, which give up the rest (engine/direct/helper.c) */
    SANDBOX_ROLES,
};

enum sandbox_access {
    SANDBOX_READ = 1,   /* files, and what directories contain */
    SANDBOX_WRITE = 2,  /* existing files */
    SANDBOX_CHANGE = 4, /* what a directory contains: create, remove, rename, of any kind but devices */
    SANDBOX_REMOVE = 8, /* remove files from a directory */
    SANDBOX_EXECUTE = 16,
    SANDBOX_DEVICE = 32, /* requests to a device (ioctl) */
};

/* A file, or a directory and all below it, that may be opened by name. */
struct sandbox_path {
    const char *path;
    unsigned access;
};

struct sandbox_spec {
    enum sandbox_role role;
    const struct sandbox_path *paths; /* those that do not exist are left out */
    unsigned n_paths;
    bool network;          /* TCP stays possible (landlock knows about it) */
    bool keep_user;        /* root stays root, but for its capabilities */
    uint64_t capabilities; /* kept, of those there are: bits 1 << CAP_... */
};

/* What was done, for those who ask (`guise inspect`, doctor, tests). */
enum sandbox_step {
    SANDBOX_NO_NEW_PRIVS,
    SANDBOX_LANDLOCK,
    SANDBOX_ROOT_DIRECTORY, /* a deleted one */
    SANDBOX_USER,           /* not root: from the beginning or from now on */
    SANDBOX_CAPABILITIES,   /* none but those of the spec */
    SANDBOX_SECCOMP,
    SANDBOX_STEPS,
};

struct sandbox;

/* Enters it: the calling thread, and by the system-call list all others of the process.  0 and *out, or -errno with one
 * sentence when not even the necessary could be done (then the process is to end).  What this host's kernel does not
 * have is left out, see sandbox_missing.  out may be NULL. */
int sandbox_enter(const struct sandbox_spec *spec, struct sandbox **out, char *err, size_t n);

/* The list of system calls alone, for a helper that has its own ways with names and users: the calling thread and all
 * others, and the limits.  It has no_new_privs already.  0 (also where the kernel has no filters), or -errno with one
 * sentence. */
int sandbox_calls(enum sandbox_role role, char *err, size_t n);

/* A thread that begins (or learns that there is a sandbox now) takes its own, shorter, list.  s NULL: nothing happens.
 * 0 or -errno. */
int sandbox_thread(const struct sandbox *s, enum sandbox_role role);

/* For a process that becomes, or starts, programs which are not ours. */
enum sandbox_program {
    SANDBOX_DISK_SERVER, /* qemu-nbd */
    SANDBOX_IMAGE_MAKER, /* copies and converts strangers' disks, archives and directories */
};

/* Takes away, from the calling thread and what it starts, all files but the paths and the system's own programs and
 * libraries (*names false: this host has neither landlock nor mounts for it, so that they are still there), the ways to
 * other processes, to services and to more rights.  0, or -errno with one sentence. */
int sandbox_program(enum sandbox_program program, const struct sandbox_path *paths, unsigned n_paths, bool *names,
                    char *err, size_t n);

bool sandbox_did(const struct sandbox *s, enum sandbox_step step);
const char *sandbox_step_name(enum sandbox_step step); /* a stable word */
uid_t sandbox_user(const struct sandbox *s);
/* What a person should know about what is not there: one sentence, "" when nothing is missing. */
const char *sandbox_missing(const struct sandbox *s);

void sandbox_free(struct sandbox *s); /* forgets the description, not the sandbox */
