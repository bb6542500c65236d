/* A libnccl.so.2 without a GPU: it moves bytes between the devices of stub_driver.c, of processes of one machine, through
 * memory that they share. In the simulator, where there is no driver, it moves bytes of the host.
 *
 * - An exchange is queued in a stream, and happens when the stub driver comes there, piece by piece, as the others do.
 * - Between two ranks messages are received in the order in which they were sent.
 * - It refuses what NCCL refuses or leaves undefined: ranks on one device, a link of other ranks than were announced,
 *   a name that is used twice, a link that is at its end or aborted, messages outside of a group, memory of another
 *   device or of the host, messages of another size than was sent, an end before all is done.
 * - A rank that is gone, or has aborted, is an error of all links to it, asynchronously: what waits for it is never done.
 *
 * Environment: STUB_NCCL_VERSION (22809), STUB_NCCL_TRACE (a file for one line a call), STUB_NCCL_KILL
 * (rank:function:n, the n-th call kills that rank), STUB_NCCL_ERROR (rank:n, the n-th exchange fails, and says so later).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { OK = 0, CUDA_ERROR = 1, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };
enum { MOST_RANKS = 16, CHUNK = 1 << 16, MOST_OPS = 4096, MAGIC = 0x5ca7cc };

typedef struct { volatile int full; uint64_t total, n; char data[CHUNK]; } Box;
typedef struct {  /* what the ranks of a link share */
    volatile int size, joined, pid[MOST_RANKS], device[MOST_RANKS], aborted[MOST_RANKS];
    Box box[MOST_RANKS][MOST_RANKS];  /* from, to */
} Common;
typedef struct { int magic, pid, file; char rest[116]; } Name;
typedef struct Comm { int alive, rank, size, device, pending, exchanges; volatile int aborted, error; Common *common; } Comm;
typedef struct { Comm *comm; int sends, peer; char *at; uint64_t n, done; void *stream; } Op;
typedef struct { int count; Op *ops; } Exchange;

static __thread int depth, count;
static __thread Op ops[MOST_OPS];
static int my_rank = -1, (*queue)(void *, int (*)(void *), void *), (*device_here)(int *);
static char *(*driver_reached)(void *, size_t, int);
static FILE *trace;
static struct { const char *name; int n; } calls[16];

#define API __attribute__((visibility("default"))) int

static void find_driver(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (!driver || queue) return;
    queue = (int (*)(void *, int (*)(void *), void *))dlsym(driver, "stub_queue");
    driver_reached = (char *(*)(void *, size_t, int))dlsym(driver, "stub_reached");
    device_here = (int (*)(int *))dlsym(driver, "cuCtxGetDevice");
}
static void say(const char *name, const char *form, ...) {
    if (!trace && getenv("STUB_NCCL_TRACE")) trace = fopen(getenv("STUB_NCCL_TRACE"), "a");
    if (!trace) return;
    char line[256]; va_list args; va_start(args, form);
    int n = snprintf(line, sizeof line, "%d %d %s ", getpid(), my_rank, name);
    n += vsnprintf(line + n, sizeof line - n - 1, form, args); va_end(args);
    line[n++] = '\n'; fwrite(line, 1, n, trace); fflush(trace);
}
static void may_die(const char *name) {  /* before the call does anything */
    int i = 0, rank, n; char point[64];
    while (calls[i].name && calls[i].name != name) i++;
    calls[i].name = name; calls[i].n++;
    const char *kill_at = getenv("STUB_NCCL_KILL");
    if (kill_at && sscanf(kill_at, "%d:%63[^:]:%d", &rank, point, &n) == 3 && rank == my_rank && n == calls[i].n
        && !strcmp(point, name)) raise(SIGKILL);
}
#define ENTER(...) may_die(__func__); say(__func__, __VA_ARGS__)
static int refuse(const char *why, int code) { say("stub: refused", "%s", why); return code; }

static char *reached(void *at, uint64_t n, int device) {
    return driver_reached ? driver_reached(at, n, device) : at;
}
static int fail(Comm *comm, int code) { if (!comm->error) comm->error = code; return 1; }

static int advance(Exchange *exchange) {  /* 0 once all of it is done */
    int left = 0;
    for (int i = 0; i < exchange->count; i++) {
        Op *op = &exchange->ops[i]; Comm *comm = op->comm; Common *common = comm->common;
        if (comm->aborted) continue;
        if (comm->error) return 1;
        int waits = 0;
        for (int j = 0; j < i; j++) {
            Op *other = &exchange->ops[j];
            waits |= other->peer == op->peer && other->sends == op->sends && other->done < other->n;
        }
        while (!waits && op->done < op->n) {
            Box *box = op->sends ? &common->box[comm->rank][op->peer] : &common->box[op->peer][comm->rank];
            if (box->full == op->sends) break;
            uint64_t n = op->sends ? (op->n - op->done < CHUNK ? op->n - op->done : CHUNK) : box->n;
            if (!op->sends && box->total != op->n) {
                refuse("messages of another size than was sent", 0);
                return fail(comm, INVALID_USAGE);
            }
            char *bytes = reached(op->at + op->done, n, comm->device);
            if (!bytes) return fail(comm, CUDA_ERROR);
            if (op->sends) { memcpy(box->data, bytes, n); box->total = op->n; box->n = n; }
            else memcpy(bytes, box->data, n);
            op->done += n;
            __sync_synchronize();
            box->full = op->sends;
        }
        if (op->done < op->n) {
            left = 1;
            if (common->aborted[op->peer] || (kill(common->pid[op->peer], 0) && errno == ESRCH)) return fail(comm, REMOTE_ERROR);
        }
    }
    return left;
}
static int happen(void *argument) {
    Exchange *exchange = argument;
    if (advance(exchange)) return 1;
    for (int i = 0; i < exchange->count; i++) exchange->ops[i].comm->pending--;
    free(exchange->ops); free(exchange);
    return 0;
}

API ncclGetVersion(int *out) {
    *out = getenv("STUB_NCCL_VERSION") ? atoi(getenv("STUB_NCCL_VERSION")) : 22809;
    return OK;
}
__attribute__((visibility("default"))) const char *ncclGetErrorString(int code) {
    static const char *const words[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error",
                                        "invalid argument", "invalid usage", "remote process exited or there was a network error"};
    return code >= 0 && code < 7 ? words[code] : "unknown result code";
}
API ncclGetUniqueId(Name *out) {
    ENTER("");
    int file = memfd_create("stub-nccl", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, sizeof(Common))) return SYSTEM_ERROR;
    *out = (Name){.magic = MAGIC, .pid = getpid(), .file = file};
    return OK;
}
API ncclCommInitRank(Comm **out, int size, Name name, int rank) {
    my_rank = rank;
    ENTER("%d %d", size, rank);
    find_driver();
    if (name.magic != MAGIC || rank < 0 || rank >= size || size > MOST_RANKS) return INVALID_ARGUMENT;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", name.pid, name.file);
    int file = open(path, O_RDWR | O_CLOEXEC), device = rank;
    Common *common = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (common == MAP_FAILED) return SYSTEM_ERROR;
    if (device_here && device_here(&device)) return CUDA_ERROR;
    int others = __sync_val_compare_and_swap(&common->size, 0, size);
    if (others && others != size) return refuse("another number of ranks", INVALID_USAGE);
    common->device[rank] = device;
    if (!__sync_bool_compare_and_swap(&common->pid[rank], 0, getpid())) return refuse("a name that is used twice", INVALID_USAGE);
    __sync_add_and_fetch(&common->joined, 1);
    while (common->joined < size) usleep(200);  /* for ever, if one does not come */
    for (int a = 0; a < size; a++)
        for (int b = 0; b < a; b++)
            if (common->device[a] == common->device[b]) return refuse("two ranks on one device", INVALID_USAGE);
    *out = calloc(1, sizeof **out);
    **out = (Comm){.alive = 1, .rank = rank, .size = size, .device = device, .common = common};
    return OK;
}
static int usable(Comm *comm) {
    if (!comm || !comm->alive || comm->aborted) return 0;
    int here = comm->device;
    return !device_here || (!device_here(&here) && here == comm->device);
}
API ncclCommGetAsyncError(Comm *comm, int *out) {
    if (!usable(comm)) return refuse("a link that is at its end", INVALID_ARGUMENT);
    *out = comm->error;
    return OK;
}
API ncclGroupStart(void) { ENTER(""); depth++; return OK; }
static int add(Comm *comm, int sends, void *at, size_t n, int type, int peer, void *stream) {
    if (!usable(comm)) return refuse("a link that is at its end", INVALID_ARGUMENT);
    if (!depth) return refuse("a message outside of a group", INVALID_USAGE);
    if (type != 0 && type != 1) return refuse("a type of another size than a byte", INVALID_ARGUMENT);
    if (peer < 0 || peer >= comm->size || peer == comm->rank) return refuse("a rank that is none", INVALID_ARGUMENT);
    if (count == MOST_OPS) return refuse("too many messages", INVALID_USAGE);
    if (!n || !reached(at, n, comm->device)) return refuse("memory of another device, of the host, or none", INVALID_ARGUMENT);
    ops[count++] = (Op){.comm = comm, .sends = sends, .peer = peer, .at = at, .n = n, .stream = stream};
    comm->pending++;
    return OK;
}
API ncclSend(void *at, size_t n, int type, int peer, Comm *comm, void *stream) {
    ENTER("%zu %d", n, peer);
    return add(comm, 1, at, n, type, peer, stream);
}
API ncclRecv(void *at, size_t n, int type, int peer, Comm *comm, void *stream) {
    ENTER("%zu %d", n, peer);
    return add(comm, 0, at, n, type, peer, stream);
}
API ncclGroupEnd(void) {
    ENTER("%d", count);
    if (!depth || --depth) return depth < 0 ? INVALID_USAGE : OK;
    if (!count) return OK;
    Exchange *exchange = malloc(sizeof *exchange);
    exchange->count = count; exchange->ops = malloc(sizeof *ops * count);
    memcpy(exchange->ops, ops, sizeof *ops * count);
    Comm *comm = ops[0].comm; void *stream = ops[0].stream;
    count = 0;
    int rank, n; const char *error_at = getenv("STUB_NCCL_ERROR");
    comm->exchanges++;
    if (error_at && sscanf(error_at, "%d:%d", &rank, &n) == 2 && rank == comm->rank && n == comm->exchanges)
        comm->error = SYSTEM_ERROR;
    if (queue) return queue(stream, happen, exchange) ? CUDA_ERROR : OK;
    while (happen(exchange)) {
        if (comm->error) return comm->error;
        usleep(200);
    }
    return OK;
}
API ncclCommAbort(Comm *comm) {
    if (!comm || !comm->alive) return refuse("a link that is at its end", INVALID_ARGUMENT);
    ENTER("");
    comm->aborted = comm->common->aborted[comm->rank] = 1;
    comm->alive = 0;
    return OK;
}
API ncclCommDestroy(Comm *comm) {
    if (!usable(comm)) return refuse("a link that is at its end", INVALID_ARGUMENT);
    if (comm->pending) return refuse("an end before all is done", INVALID_USAGE);
    ENTER("");
    comm->alive = 0;
    return OK;
}
