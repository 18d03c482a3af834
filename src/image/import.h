/* The parts of importing: what a source is (detect.c), disks (disk.c), containers' images (oci.c). */
#pragma once
#include <jansson.h>

#include "image/job.h"
#include "image/source.h"

enum source_kind {
    SOURCE_UNKNOWN,
    SOURCE_DIRECTORY, /* of a root file system */
    SOURCE_TAR,       /* the same */
    SOURCE_OCI,       /* a layout as a directory */
    SOURCE_OCI_TAR,
    SOURCE_EXPORT, /* what image_export wrote, or a tar with nothing but a disk.raw */
    SOURCE_RAW,
    SOURCE_PACKED_RAW, /* compressed by gzip, xz or zstd */
    SOURCE_FOREIGN,    /* what qemu-img knows */
};

/* For SOURCE_FOREIGN *format is qemu-img's name of it.  -EINVAL with a sentence for what must not be used: a disk that
 * needs other files. */
int detect_source(const char *path, enum source_kind *kind, const char **format, char *err, size_t n);

/* DRAFT/disk.raw from a raw, a compressed raw, or a foreign disk. */
int disk_copy(struct job *j, const char *path, char *err, size_t n);
int disk_unpack(struct job *j, const char *path, char *err, size_t n);
int disk_convert(struct job *j, const char *path, const char *format, char *err, size_t n);

/* Takes the files of an image out of a tar archive into the draft; *whole: all of them were there, not only the disk.
 */
int export_unpack(struct job *j, const char *path, bool *whole, char *err, size_t n);

/* ---- oci.c ---- */

#define OCI_LAYERS_MAX 128

struct oci {
    struct source layers[OCI_LAYERS_MAX];
    unsigned n_layers;
    json_t *process; /* as in metadata.json; never NULL after oci_open */
};

/* Opens the layout in `directory`: the image for Linux on amd64, or the only one.  Every blob that is used has the
 * digest that it is called by. */
int oci_open(struct oci *o, const char *directory, char *err, size_t n);
void oci_close(struct oci *o);

/* Takes a layout out of a tar archive into DIRECTORY (made): nothing but what belongs to a layout. */
int oci_unpack(const char *path, const char *directory, char *err, size_t n);

/* What tests want to reach: the process of a configuration. */
json_t *oci_process(json_t *config);
