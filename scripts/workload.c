/* A machine full of processes and shared memory, for benchmarks.
 *
 *     workload DIRECTORY PROCESSES MAPPINGS FDS OBJECTS HELD HOLDERS [PREFIX]
 *
 * Makes OBJECTS files PREFIX00000000, PREFIX00000001, ... of a page each in DIRECTORY, and PROCESSES
 * processes. Each of those has MAPPINGS private mappings of a file and FDS descriptors beside what every
 * process has: of files and of pipes, in turn. The first HELD objects are held: object N by
 * HOLDERS processes from number N on (modulo PROCESSES), by a mapping, a descriptor, or both, in turn.
 *
 * When everything is there, the pids are printed, one a line, and an empty line. At the end of
 * standard input, or of this process, all of them end; the files stay. */

#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

enum { PAGE = 4096 };

static const char *prefix = "bench-";

static int object(long number, int flags) {
    char name[256];
    snprintf(name, sizeof name, "%s%08lx", prefix, number);
    int fd = open(name, flags, 0600);
    if (fd < 0)
        err(1, "%s", name);
    return fd;
}

static void map(int fd, int protection, int flags) {
    if (mmap(NULL, PAGE, protection, flags, fd, 0) == MAP_FAILED)
        err(1, "mmap");
}

/* What one process has. */
static void fill(long self, long processes, long mappings, long fds, long held, long holders) {
    /* Neighbours of the same kind would become one mapping. */
    int file = open("/proc/self/exe", O_RDONLY);
    if (file < 0)
        err(1, "/proc/self/exe");
    for (long i = 0; i < mappings; i++)
        map(file, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE, MAP_PRIVATE);
    close(file);
    for (long i = 0; i < fds; i++) {
        int both[2];
        if (i % 2 == 0) {
            if (open("/proc/self/exe", O_RDONLY) < 0)
                err(1, "/proc/self/exe");
        } else if (pipe(both) == 0) {
            close(both[1]);
        } else {
            err(1, "pipe");
        }
    }
    for (long j = 0; j < holders; j++)
        for (long n = (self + processes - j % processes) % processes; n < held; n += processes) {
            int fd = object(n, O_RDWR);
            if (n % 3 != 1)
                map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
            if (n % 3 == 0)
                close(fd);
        }
}

int main(int count, char **words) {
    if (count != 8 && count != 9)
        errx(2, "DIRECTORY PROCESSES MAPPINGS FDS OBJECTS HELD HOLDERS [PREFIX]");
    if (count == 9)
        prefix = words[8];
    long processes = atol(words[2]), mappings = atol(words[3]), fds = atol(words[4]);
    long objects = atol(words[5]), held = atol(words[6]), holders = atol(words[7]);
    if (chdir(words[1]))
        err(1, "%s", words[1]);
    struct rlimit limit = {.rlim_cur = 1 << 16, .rlim_max = 1 << 16};
    setrlimit(RLIMIT_NOFILE, &limit);
    for (long n = 0; n < objects; n++) {
        int fd = object(n, O_RDWR | O_CREAT | O_EXCL);
        if (ftruncate(fd, PAGE))
            err(1, "ftruncate");
        close(fd);
    }
    int ready[2];
    if (pipe(ready))
        err(1, "pipe");
    signal(SIGCHLD, SIG_IGN);
    pid_t parent = getpid();
    for (long i = 0; i < processes; i++) {
        pid_t pid = fork();
        if (pid < 0)
            err(1, "fork");
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(1);
            close(ready[0]);
            int null = open("/dev/null", O_RDWR);
            dup2(null, 0);
            dup2(null, 1);
            close(null);
            fill(i, processes, mappings, fds, held, holders);
            if (write(ready[1], "", 1) != 1)
                _exit(1);
            close(ready[1]);
            for (;;)
                pause();
        }
        printf("%d\n", pid);
    }
    close(ready[1]);
    char byte;
    for (long i = 0; i < processes; i++)
        if (read(ready[0], &byte, 1) != 1)
            errx(1, "a process has ended");
    puts("");
    fflush(stdout);
    while (read(0, &byte, 1) > 0) {
    }
    return 0;
}
