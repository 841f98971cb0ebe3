/* The system calls that `rtrack list` cannot do without, and nothing else: what they alone take.
 *
 *     minimal none|all DIRECTORY
 *
 * Of each file in DIRECTORY what it is (statx) and whether somebody has it open or mapped (a write
 * lease, which is given back); of each process its stat, its mount namespace and its root. With
 * `all` also its status and its executable, its shared mappings (PROCMAP_QUERY, Linux 6.11), its
 * descriptors (readlink), and of those that lead to DIRECTORY which inode they are of (fdinfo). One
 * thread; nothing is kept, judged or printed but how much was found. */

#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct query {
    unsigned long size, flags, address, start, end, vma_flags, page_size, offset, inode;
    unsigned major, minor, name_size, build_id_size;
    unsigned long name, build_id;
};
#define PROCMAP_QUERY _IOWR('f', 17, struct query)
#define F_SETSIG_LINUX 10

static char text[1 << 16], link_[4096];
static long objects, held, mappings, descriptors;

static void slurp(int dir, const char *name) {
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, text, sizeof text) < 0)
        text[0] = 0;
    if (fd >= 0)
        close(fd);
}

/* Every entry of a directory; `each` is given its descriptor and a name. */
static void list(int dir, void (*each)(int, const char *)) {
    static char rooms[3][1 << 15];
    static int level;
    char *room = rooms[level++];
    for (long length; (length = syscall(SYS_getdents64, dir, room, sizeof rooms[0])) > 0;)
        for (char *at = room; at < room + length; at += ((struct dirent64 *)at)->d_reclen) {
            const char *name = ((struct dirent64 *)at)->d_name;
            if (name[0] != '.')
                each(dir, name);
        }
    level--;
}

static int own;

static void object(int dir, const char *name) {
    struct statx stat;
    if (statx(dir, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &stat))
        return;
    objects++;
    int path = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    statx(path, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &stat);
    char number[16];
    snprintf(number, sizeof number, "%d", path);
    int fd = openat(own, number, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    fcntl(fd, F_SETSIG_LINUX, SIGURG);
    if (fcntl(fd, F_SETLEASE, F_WRLCK) == 0)
        fcntl(fd, F_SETLEASE, F_UNLCK);
    else
        held++;
    close(fd);
    close(path);
}

static const char *where;
static int process_, all;

static void descriptor(int dir, const char *fd) {
    long length = readlinkat(dir, fd, link_, sizeof link_ - 1);
    if (length < 0)
        return;
    link_[length] = 0;
    if (strncmp(link_, where, strlen(where)) == 0) {
        char name[300];
        snprintf(name, sizeof name, "fdinfo/%s", fd);
        slurp(process_, name);
        descriptors++;
    }
}

static void process(int proc, const char *pid) {
    if (pid[0] < '0' || pid[0] > '9')
        return;
    process_ = openat(proc, pid, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (process_ < 0)
        return;
    slurp(process_, "stat");
    struct statx stat;
    if (readlinkat(process_, "ns/mnt", link_, sizeof link_) < 0 ||
        statx(process_, "root", 0, STATX_INO | STATX_MNT_ID, &stat))
        link_[0] = 0;
    if (all) {
        slurp(process_, "status");
        if (readlinkat(process_, "exe", link_, sizeof link_) < 0)
            link_[0] = 0;
        int maps = openat(process_, "maps", O_RDONLY | O_CLOEXEC);
        struct query query = {.size = sizeof query, .flags = 0x10 | 0x20 | 0x08};
        while (maps >= 0 && ioctl(maps, PROCMAP_QUERY, &query) == 0) {
            mappings++;
            unsigned long next = query.end;
            memset(&query, 0, sizeof query);
            query = (struct query){.size = sizeof query, .flags = 0x10 | 0x20 | 0x08, .address = next};
        }
        if (maps >= 0)
            close(maps);
        int fds = openat(process_, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fds >= 0) {
            list(fds, descriptor);
            close(fds);
        }
    }
    close(process_);
}

int main(int count, char **words) {
    if (count != 3)
        errx(2, "none|all DIRECTORY");
    all = strcmp(words[1], "all") == 0;
    where = words[2];
    int dir = open(where, O_RDONLY | O_DIRECTORY), proc = open("/proc", O_RDONLY | O_DIRECTORY);
    own = open("/proc/self/fd", O_PATH | O_DIRECTORY);
    if (dir < 0 || proc < 0 || own < 0)
        err(1, "open");
    list(dir, object);
    list(proc, process);
    printf("%ld objects, %ld held, %ld mappings, %ld descriptors\n", objects, held, mappings,
           descriptors);
    return 0;
}
