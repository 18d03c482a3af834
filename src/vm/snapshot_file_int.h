/* Where things are in the file of a snapshot: what its writer and its reader share. */
#pragma once
#include <string.h>

#include "base/bytes.h"
#include "vm/snapshot_file.h"

#define SNAPSHOT_VERSION 1u
#define HEADER_SIZE 64u
#define TRAILER_SIZE 64u
#define ENTRY_SIZE 96u
#define PLACE_SIZE 16u
#define HEADER_MAGIC "GUISESNP"
#define TRAILER_MAGIC "GUISEEND"
#define MAGIC_SIZE 8u
#define CHUNKS_KIND "chunks"
#define ENTRIES_MAX (SECTIONS_MAX + SNAPSHOT_EXTENTS)

enum { HEADER_VERSION = 8, HEADER_CRC = 12 };
enum { TRAILER_CRC = 8, TRAILER_ENTRIES = 12, TRAILER_TABLE = 16, TRAILER_TABLE_CRC = 24, TRAILER_LENGTH = 32 };
enum { ENTRY_NAME = 16, ENTRY_VERSION = 56, ENTRY_CRC = 60, ENTRY_OFFSET = 64, ENTRY_LENGTH = 72, ENTRY_EXTENT = 80 };

static const char *const extent_names[SNAPSHOT_EXTENTS] = {"memory", "disk"};

static inline uint64_t chunks_of(uint64_t bytes)
{
    return (bytes + SNAPSHOT_CHUNK - 1) >> SNAPSHOT_CHUNK_SHIFT;
}
