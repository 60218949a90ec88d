/* Makes the file system below one folder fail as a disk does: preloaded, and switched on by `stress_disk`.

   Operations below the folder are counted; from a number on they fail with an error, once, a few times or for ever, or
   each takes time. A write that meets a full disk first writes half, as a real one does. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CHANGES = 1, READS = 2, CREATIONS = 4 }; /* kinds of operations, and of failures */

static char root[PATH_MAX];
static int kinds, error_number;
static long first, times, pause_us, failed;
static long own_counter, *counter = &own_counter;

void stress_disk(const char *folder, int which, int number, long after, long often, long microseconds, long *count)
{
    root[0] = 0;
    kinds = which, error_number = number, first = after, times = often, pause_us = microseconds, failed = 0;
    counter = count ? count : &own_counter;
    snprintf(root, sizeof root, "%s", folder);
}

static int is_below(int folder, const char *path)
{
    char whole[2 * PATH_MAX], name[64];
    ssize_t size = 0;
    if (!root[0] || !path)
        return 0;
    if (path[0] != '/') {
        if (folder == AT_FDCWD)
            size = getcwd(whole, PATH_MAX) ? (ssize_t)strlen(whole) : 0;
        else {
            snprintf(name, sizeof name, "/proc/self/fd/%d", folder);
            size = readlink(name, whole, PATH_MAX);
        }
        if (size <= 0)
            return 0;
        whole[size++] = '/';
    }
    snprintf(whole + size, sizeof whole - size, "%s", path);
    return !strncmp(whole, root, strlen(root));
}

static int is_open_below(int file)
{
    return root[0] && file > 2 && is_below(file, "");
}

/* Count an operation; return 1, with errno set, if it fails. */
static int fails(int kind)
{
    if (!(kind & kinds))
        return 0;
    long number = __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
    if (pause_us)
        usleep(pause_us);
    if (!error_number || number <= first)
        return 0;
    if (times >= 0 && __atomic_fetch_add(&failed, 1, __ATOMIC_RELAXED) >= times)
        return 0;
    errno = error_number;
    return 1;
}

#define REAL(type, name, ...) type (*real)(__VA_ARGS__) = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int kind_of_open(int folder, const char *path, int flags)
{
    if ((flags & O_CREAT) && faccessat(folder, path, F_OK, AT_SYMLINK_NOFOLLOW))
        return CREATIONS | CHANGES;
    return flags & (O_WRONLY | O_RDWR | O_TRUNC) ? CHANGES : READS;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        REAL(int, #name, const char *, int, mode_t);                                                                   \
        return is_below(AT_FDCWD, path) && fails(kind_of_open(AT_FDCWD, path, flags)) ? -1 : real(path, flags, mode);  \
    }
#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...)                                                             \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        REAL(int, #name, int, const char *, int, mode_t);                                                              \
        if (is_below(folder, path) && fails(kind_of_open(folder, path, flags)))                                        \
            return -1;                                                                                                 \
        return real(folder, path, flags, mode);                                                                        \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    if (is_open_below(file) && fails(CHANGES)) {
        if (errno == ENOSPC && size > 1 && failed == 0 && times < 0) {
            failed = 1;
            return real(file, data, size / 2);
        }
        return -1;
    }
    return real(file, data, size);
}

#define ON_FILE(type, name, kind, given, types, names)                                                                 \
    type name given                                                                                                    \
    {                                                                                                                  \
        REAL(type, #name, types);                                                                                      \
        return is_open_below(file) && fails(kind) ? -1 : real names;                                                   \
    }
#define TYPES(...) __VA_ARGS__
ON_FILE(ssize_t, writev, CHANGES, (int file, const struct iovec *parts, int count),
        TYPES(int, const struct iovec *, int), (file, parts, count))
ON_FILE(ssize_t, pwrite64, CHANGES, (int file, const void *data, size_t size, off64_t place),
        TYPES(int, const void *, size_t, off64_t), (file, data, size, place))
ON_FILE(int, ftruncate64, CHANGES, (int file, off64_t size), TYPES(int, off64_t), (file, size))
ON_FILE(int, fsync, CHANGES, (int file), TYPES(int), (file))
ON_FILE(int, fdatasync, CHANGES, (int file), TYPES(int), (file))
ON_FILE(ssize_t, read, READS, (int file, void *data, size_t size), TYPES(int, void *, size_t), (file, data, size))
ON_FILE(ssize_t, pread64, READS, (int file, void *data, size_t size, off64_t place),
        TYPES(int, void *, size_t, off64_t), (file, data, size, place))

#define ON_PATH(type, wrong, name, kind, folder, place, given, types, names)                                           \
    type name given                                                                                                    \
    {                                                                                                                  \
        REAL(type, #name, types);                                                                                      \
        return is_below(folder, place) && fails(kind) ? wrong : real names;                                            \
    }
ON_PATH(int, -1, rename, CHANGES, AT_FDCWD, to, (const char *from, const char *to), TYPES(const char *, const char *),
        (from, to))
ON_PATH(int, -1, link, CREATIONS | CHANGES, AT_FDCWD, to, (const char *from, const char *to),
        TYPES(const char *, const char *), (from, to))
ON_PATH(int, -1, linkat, CREATIONS | CHANGES, other, to, (int folder, const char *from, int other, const char *to,
        int flags), TYPES(int, const char *, int, const char *, int), (folder, from, other, to, flags))
ON_PATH(int, -1, unlink, CHANGES, AT_FDCWD, path, (const char *path), TYPES(const char *), (path))
ON_PATH(int, -1, unlinkat, CHANGES, folder, path, (int folder, const char *path, int flags),
        TYPES(int, const char *, int), (folder, path, flags))
ON_PATH(int, -1, mkdir, CREATIONS | CHANGES, AT_FDCWD, path, (const char *path, mode_t mode),
        TYPES(const char *, mode_t), (path, mode))
ON_PATH(int, -1, stat64, READS, AT_FDCWD, path, (const char *path, struct stat64 *found),
        TYPES(const char *, struct stat64 *), (path, found))
ON_PATH(int, -1, lstat64, READS, AT_FDCWD, path, (const char *path, struct stat64 *found),
        TYPES(const char *, struct stat64 *), (path, found))
ON_PATH(DIR *, NULL, opendir, READS, AT_FDCWD, path, (const char *path), TYPES(const char *), (path))

/* The names with and without 64 are the same on 64-bit systems. */
int stat(const char *path, struct stat *found) { return stat64(path, (struct stat64 *)found); }
int lstat(const char *path, struct stat *found) { return lstat64(path, (struct stat64 *)found); }
ssize_t pwrite(int file, const void *data, size_t size, off_t place) { return pwrite64(file, data, size, place); }
ssize_t pread(int file, void *data, size_t size, off_t place) { return pread64(file, data, size, place); }
int ftruncate(int file, off_t size) { return ftruncate64(file, size); }
