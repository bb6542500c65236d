/* A libcuda.so.1 without a GPU: kernels compute nothing, everything else is as the CUDA driver API
 * (docs.nvidia.com/cuda/cuda-driver-api) says. So the whole host path runs, and what it does wrong is seen:
 *
 * - Memory of a device is at addresses that the host can neither read nor write: it lies elsewhere.
 * - It is the laziest GPU that the rules allow: nothing queued in a stream happens before somebody waits for it, or asks
 *   again and again whether it is done. A copy
 *   from pinned memory that was overwritten too early copies the wrong bytes; a kernel whose memory was freed too early
 *   finds it gone.
 * - It refuses what a driver refuses: calls before cuInit or without a context, handles that are dead or another
 *   context's, grids and blocks that are too large, more shared memory or registers than there are, memory that does
 *   not suffice, and during a capture all that cannot be captured.
 * - Of each launch it reads the arguments, as the machine code lays them out, and finds arrays that are not where the
 *   context may read, reach beyond their memory, or are not aligned.
 * - Memory that one process exports is the same bytes in another that opens it, there as far from the host as here. It is
 *   gone, in all of them, when it is freed, or when its process ends.
 *
 * Environment: STUB_DEVICES (1), STUB_CAPABILITY (90), STUB_MEMORY (bytes of each device), STUB_VERSION (13000),
 * STUB_NO_PEERS (1: no GPU reads the memory of another), STUB_NO_IPC (1), STUB_EXCLUSIVE (1: one process a GPU),
 * STUB_NO_GRAPHS (1: captures are refused), STUB_TRACE (a file for one line a call). Functions called stub_... are for tests.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, MAP_FAILS = 205, NOT_FOUND = 500, NOT_READY = 600,
    ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701, MISALIGNED = 716, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALID = 901
};
enum { MOST_DEVICES = 8, MOST_PARAMETERS = 128 };
enum { COPY, FILL, LAUNCH, MARK, WAIT, CALL };
enum { ASKED = 64 };  /* a GPU that is asked so often whether it has come to an event has come there */

typedef struct Context { int device; struct Stream *streams, *null; } Context;
typedef struct Kernel {
    struct Kernel *next; struct Library *library; char name[512];
    int count, registers, shared, most_threads; struct { int offset, size; } parameter[MOST_PARAMETERS];
} Kernel;
typedef struct Library { Kernel *kernels; int alive; } Library;
typedef struct Event { int alive, timed, asked; Context *context; struct Stream *stream; uint64_t at; } Event;
typedef struct Op {
    struct Op *next; int kind; uint64_t number, from_number; void *to; const void *from; size_t n; void *kept;
    int value, width, on_device; struct Stream *stream; Kernel *kernel; unsigned char *arguments;
    int (*call)(void *); void *argument;  /* of another library: 0 once it is done */
} Op;
typedef struct Graph { Op *first, *last; } Graph;
typedef struct Stream {
    struct Stream *next; Context *context; int alive, blocking; Op *first, *last; uint64_t queued, done;
    Graph *capture; int broken; pthread_t capturer;
} Stream;
typedef struct {
    uintptr_t start; size_t n; int device; char *shadow;  /* device -1: pinned memory of the host */
    int file, holder, opened;  /* file: of memory that was exported; holder: a pidfd, of memory of another process */
} Memory;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int started, devices, capability, version, sticky;
static size_t total, used[MOST_DEVICES];
static Context *primary[MOST_DEVICES];
static int retained[MOST_DEVICES];
static __thread Context *stack[64];
static __thread int depth;
static Memory *memory; static int memories, room;
static FILE *trace;
static struct { const char *name; long count; } counts[256];
static long most_grid;  /* blocks of the largest grid */
static long performed;  /* kernels that ran */

static long setting(const char *name, long otherwise) { const char *s = getenv(name); return s ? atol(s) : otherwise; }

static void configure(void) {
    if (devices) return;
    devices = (int)setting("STUB_DEVICES", 1);
    if (devices > MOST_DEVICES) devices = MOST_DEVICES;
    capability = (int)setting("STUB_CAPABILITY", 90); version = (int)setting("STUB_VERSION", 13000);
    total = (size_t)setting("STUB_MEMORY", 1L << 36);
    if (getenv("STUB_TRACE")) trace = fopen(getenv("STUB_TRACE"), "a");
}
static void note(const char *name, const char *form, ...) {
    for (int i = 0; i < 256; i++) {
        if (!counts[i].name) counts[i].name = name;
        if (counts[i].name == name || !strcmp(counts[i].name, name)) { counts[i].count++; break; }
    }
    if (!trace) return;
    char line[1024]; va_list args; va_start(args, form);
    int n = snprintf(line, sizeof line, "%d %s ", getpid(), name);
    n += vsnprintf(line + n, sizeof line - n - 2, form, args); va_end(args);
    if (n > (int)sizeof line - 2) n = sizeof line - 2;
    line[n++] = '\n'; fwrite(line, 1, n, trace); fflush(trace);
}
static Context *here(void) { return depth ? stack[depth - 1] : NULL; }
#define API __attribute__((visibility("default"))) int
#define LOCK pthread_mutex_lock(&lock)
#define UNLOCK pthread_mutex_unlock(&lock)
#define BACK(code) do { int r_ = (code); UNLOCK; return r_; } while (0)
#define BEGIN(name, ...) LOCK; note(name, __VA_ARGS__); if (!started) BACK(NOT_INITIALIZED); if (sticky) BACK(sticky)
#define BEGIN_IN_CONTEXT(name, ...) BEGIN(name, __VA_ARGS__); if (!here()) BACK(INVALID_CONTEXT)

/* --- memory -------------------------------------------------------------------------------------------------------- */

static int find(uintptr_t at) {  /* the last memory that starts at or before `at`, or -1 */
    int low = 0, high = memories;
    while (low < high) { int m = (low + high) / 2; if (memory[m].start <= at) low = m + 1; else high = m; }
    return low - 1;
}
static Memory *holding(uintptr_t at, size_t n) {
    int i = find(at);
    return i >= 0 && at + n <= memory[i].start + memory[i].n ? &memory[i] : NULL;
}
static int *freed(Memory *m) { return (int *)(m->shadow + (m->n + 4095) / 4096 * 4096); }  /* a word that all see */
static int is_there(Memory *m) {  /* of memory that another process holds: does it live, and has it not freed it? */
    if (!m->opened) return 1;
    struct pollfd ends = {.fd = m->holder, .events = POLLIN};
    int gone = poll(&ends, 1, 0) != 0 || *freed(m);
    if (gone) note("stub: memory is gone", "%p", (void *)m->start);
    return !gone;
}
static int readable(const void *at, size_t n, int device) {
    Memory *m = holding((uintptr_t)at, n);
    return m && (m->device == device || m->device < 0 || m->opened) && is_there(m);
}
static size_t pages(size_t n) { return (n + 4095) / 4096 * 4096; }
static void *obtain(size_t n, int device) {
    int file = memfd_create("stub", MFD_CLOEXEC), none = device >= 0;
    if (file < 0 || ftruncate(file, (off_t)pages(n))) return NULL;
    char *shadow = mmap(NULL, pages(n), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    close(file);
    char *at = none ? mmap(NULL, pages(n), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : shadow;
    if (shadow == MAP_FAILED || at == MAP_FAILED) return NULL;
    if (memories == room) memory = realloc(memory, sizeof *memory * (room = room ? 2 * room : 256));
    int i = find((uintptr_t)at) + 1;
    memmove(memory + i + 1, memory + i, sizeof *memory * (memories++ - i));
    memory[i] = (Memory){(uintptr_t)at, n, device, shadow, -1, -1, 0};
    if (device >= 0) used[device] += n;
    return at;
}
static int release(void *at, int pinned) {
    int i = find((uintptr_t)at);
    if (i < 0 || memory[i].start != (uintptr_t)at || (memory[i].device < 0) != pinned || memory[i].opened)
        return INVALID_VALUE;
    if (memory[i].file >= 0) { *freed(&memory[i]) = 1; close(memory[i].file); munmap(freed(&memory[i]), 4096); }
    munmap(at, pages(memory[i].n));
    if (!pinned) { munmap(memory[i].shadow, pages(memory[i].n)); used[memory[i].device] -= memory[i].n; }
    memmove(memory + i, memory + i + 1, sizeof *memory * (--memories - i));
    return OK;
}

/* --- streams: queues whose work happens when somebody waits for it ------------------------------------------------ */

static int run_to(Stream *stream, uint64_t number, int waits);

static int check_arguments(Kernel *k, const unsigned char *arguments, int device) {
    /* An array is 0, 0, elements, bytes of one, address, length, stride: seven parameters of 8 bytes. */
    for (int i = 0; i + 6 < k->count; i++) {
        int64_t v[7]; int wide = 1;
        for (int j = 0; j < 7; j++) {
            wide &= k->parameter[i + j].size == 8;
            if (wide) memcpy(&v[j], arguments + k->parameter[i + j].offset, 8);
        }
        if (!wide || v[0] || v[1] || v[2] != v[5] || v[3] != v[6] || v[2] <= 0) continue;
        if (v[3] != 1 && v[3] != 2 && v[3] != 4 && v[3] != 8) continue;
        if (v[4] % v[3]) return MISALIGNED;
        if (!readable((void *)v[4], (size_t)v[2] * v[3], device)) return ILLEGAL_ADDRESS;
        i += 6;
    }
    return OK;
}
static char *reached(void *at, size_t n, int on_device, int device) {  /* where the bytes really are; NULL if nowhere */
    Memory *m = holding((uintptr_t)at, n);
    if (!on_device) return at;
    return m && readable(at, n, device) ? m->shadow + ((uintptr_t)at - m->start) : NULL;
}
static void perform(Op *op) {
    int device = op->stream->context->device;
    if (op->kind == COPY || op->kind == FILL) {
        char *to = reached(op->to, op->n * (op->kind == FILL ? op->width : 1), op->on_device & 1, device);
        const char *from = op->kept ? op->kept : reached((void *)op->from, op->n, op->on_device & 2, device);
        if (!to || (op->kind == COPY && !from)) { if (!sticky) sticky = ILLEGAL_ADDRESS; }
        else if (op->kind == COPY) memmove(to, from, op->n);
        else for (size_t i = 0; i < op->n; i++) memcpy(to + i * op->width, &op->value, op->width);
    } else if (op->kind == WAIT) {
        if (op->to) run_to(op->to, op->from_number, 1);
    } else if (op->kind == LAUNCH) {
        performed++;
        int found = check_arguments(op->kernel, op->arguments, device);
        if (found && !sticky) { sticky = found; note("stub: a kernel failed", "%d %s", found, op->kernel->name); }
    }
}
static int run_to(Stream *stream, uint64_t number, int waits) {  /* waits: for calls that are not done; is it there? */
    while (stream->first && stream->first->number <= number) {
        Op *op = stream->first;
        if (op->kind == CALL && op->call(op->argument)) {
            if (!waits) return 0;
            if (waits == 1) note("stub: waits for an exchange", "");
            waits = 2;
            usleep(200);
            continue;
        }
        stream->first = op->next;
        if (!stream->first) stream->last = NULL;
        stream->done = op->number;
        perform(op);
        free(op->kept); free(op->arguments); free(op);
    }
    return 1;
}
static void run_all(Context *context) {
    for (Stream *s = context->streams; s; s = s->next) run_to(s, s->queued, 1);
}
static Op *queue(Stream *stream, Op op) {
    if (stream == stream->context->null) {  /* the default stream waits for all others but the non-blocking ones */
        for (Stream *s = stream->context->streams; s; s = s->next) if (s->blocking && s != stream) run_to(s, s->queued, 1);
    } else if (stream->blocking) run_to(stream->context->null, stream->context->null->queued, 1);
    Op *own = malloc(sizeof *own);
    *own = op; own->next = NULL; own->stream = stream;
    if (stream->capture) {
        Graph *g = stream->capture;
        if (g->last) g->last->next = own; else g->first = own;
        return g->last = own;
    }
    own->number = ++stream->queued;
    if (stream->last) stream->last->next = own; else stream->first = own;
    return stream->last = own;
}
static Stream *new_stream(Context *context, int blocking) {
    Stream *s = calloc(1, sizeof *s);
    s->context = context; s->alive = 1; s->blocking = blocking; s->next = context->streams;
    return context->streams = s;
}
static Stream *stream_of(void *handle) {  /* NULL if it is none of this context */
    Context *context = here();
    if ((uintptr_t)handle <= 2) return context->null;  /* the default stream, and the one of each thread */
    for (Stream *s = context->streams; s; s = s->next) if (s == handle) return s->alive ? s : NULL;
    return NULL;
}
static Stream *capturing(void) {  /* a stream that this thread captures */
    for (int d = 0; d < devices; d++)
        for (Stream *s = primary[d] ? primary[d]->streams : NULL; s; s = s->next)
            if (s->capture && pthread_equal(s->capturer, pthread_self())) return s;
    return NULL;
}
static int uncapturable(void) {
    Stream *s = capturing();
    if (s) s->broken = 1;
    return s ? CAPTURE_UNSUPPORTED : OK;
}
#define NOT_CAPTURED do { int u_ = uncapturable(); if (u_) BACK(u_); } while (0)
#define STREAM(name, handle) Stream *name = stream_of(handle); if (!name) BACK(INVALID_HANDLE)

/* --- start, devices, contexts ------------------------------------------------------------------------------------- */

API cuInit(unsigned flags) {
    LOCK; configure(); note("cuInit", "");
    if (flags) BACK(INVALID_VALUE);
    if (!devices || (getenv("CUDA_VISIBLE_DEVICES") && !*getenv("CUDA_VISIBLE_DEVICES"))) BACK(NO_DEVICE);
    started = 1;
    BACK(OK);
}
API cuDriverGetVersion(int *out) { configure(); *out = version; return OK; }
API cuDeviceGetCount(int *out) { BEGIN("cuDeviceGetCount", ""); *out = devices; BACK(OK); }
API cuDeviceGet(int *out, int number) {
    BEGIN("cuDeviceGet", "%d", number);
    if (number < 0 || number >= devices) BACK(INVALID_DEVICE);
    *out = number;
    BACK(OK);
}
API cuDeviceGetName(char *out, int n, int device) { snprintf(out, n, "Stub %d", device); return OK; }
API cuDeviceGetUuid(unsigned char *out, int device) { memset(out, 17 + device, 16); return OK; }
API cuDeviceTotalMem(size_t *out, int device) { (void)device; *out = total; return OK; }
API cuDeviceGetAttribute(int *out, int attribute, int device) {
    BEGIN("cuDeviceGetAttribute", "%d", attribute);
    if (device < 0 || device >= devices) BACK(INVALID_DEVICE);
    static const int known[][2] = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, 49152}, {9, 65536},
        {10, 32}, {12, 65536}, {13, 1500000}, {15, 1}, {16, 132}, {19, 1}, {31, 1}, {33, 0}, {36, 2600000}, {37, 5120},
        {38, 52428800}, {39, 2048}, {41, 1}, {78, 1}, {79, 1}, {81, 233472}, {82, 65536}, {83, 1}, {97, 232448},
    };
    *out = 0;
    if (attribute == 75) *out = capability / 10;
    if (attribute == 76) *out = capability % 10;
    if (attribute == 125) *out = !setting("STUB_NO_IPC", 0);
    if (attribute == 20) *out = setting("STUB_EXCLUSIVE", 0) ? 3 : 0;
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++) if (known[i][0] == attribute) *out = known[i][1];
    if (attribute == 34) *out = device + 1;  /* PCI device */
    BACK(OK);
}
API cuDevicePrimaryCtxRetain(Context **out, int device) {
    BEGIN("cuDevicePrimaryCtxRetain", "%d", device);
    if (device < 0 || device >= devices) BACK(INVALID_DEVICE);
    if (!primary[device]) {
        primary[device] = calloc(1, sizeof(Context));
        primary[device]->device = device;
        primary[device]->null = new_stream(primary[device], 1);
    }
    retained[device]++;
    *out = primary[device];
    BACK(OK);
}
API cuDevicePrimaryCtxRelease(int device) {
    BEGIN("cuDevicePrimaryCtxRelease", "%d", device);
    if (device < 0 || device >= devices || retained[device] < 1) BACK(INVALID_CONTEXT);
    retained[device]--;
    BACK(OK);
}
API cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    BEGIN("cuDevicePrimaryCtxGetState", "%d", device);
    *flags = 0; *active = retained[device] > 0;
    BACK(OK);
}
API cuCtxGetCurrent(Context **out) { BEGIN("cuCtxGetCurrent", ""); *out = here(); BACK(OK); }
API cuCtxSetCurrent(Context *context) {
    BEGIN("cuCtxSetCurrent", "%d", context ? context->device : -1);
    if (depth) depth--;
    if (context) stack[depth++] = context;
    BACK(OK);
}
API cuCtxPushCurrent(Context *context) {
    BEGIN("cuCtxPushCurrent", "%d", context->device);
    if (depth == 64) BACK(INVALID_CONTEXT);
    stack[depth++] = context;
    BACK(OK);
}
API cuCtxPopCurrent(Context **out) { BEGIN_IN_CONTEXT("cuCtxPopCurrent", ""); *out = stack[--depth]; BACK(OK); }
API cuCtxGetDevice(int *out) { BEGIN_IN_CONTEXT("cuCtxGetDevice", ""); *out = here()->device; BACK(OK); }
API cuCtxGetId(Context *context, unsigned long long *out) {
    BEGIN("cuCtxGetId", "");
    context = context ? context : here();
    if (!context) BACK(INVALID_CONTEXT);
    *out = context->device + 1;
    BACK(OK);
}
API cuCtxSynchronize(void) {
    BEGIN_IN_CONTEXT("cuCtxSynchronize", "");
    NOT_CAPTURED;
    run_all(here());
    BACK(sticky);
}
API cuDeviceCanAccessPeer(int *out, int a, int b) {
    BEGIN("cuDeviceCanAccessPeer", "%d %d", a, b);
    if (a < 0 || b < 0 || a >= devices || b >= devices) BACK(INVALID_DEVICE);
    *out = a != b && !setting("STUB_NO_PEERS", 0);
    BACK(OK);
}

/* --- memory and copies --------------------------------------------------------------------------------------------- */

API cuMemGetInfo(size_t *left, size_t *all) {
    BEGIN_IN_CONTEXT("cuMemGetInfo", "");
    *left = total - used[here()->device]; *all = total;
    BACK(OK);
}
API cuMemAlloc(void **out, size_t n) {
    BEGIN_IN_CONTEXT("cuMemAlloc", "%zu", n);
    NOT_CAPTURED;
    if (!n) BACK(INVALID_VALUE);
    if (n > total - used[here()->device]) BACK(OUT_OF_MEMORY);
    *out = obtain(n, here()->device);
    BACK(*out ? OK : OUT_OF_MEMORY);
}
API cuMemFree(void *at) {
    BEGIN_IN_CONTEXT("cuMemFree", "%p", at);
    NOT_CAPTURED;
    run_all(here());  /* as the driver does */
    BACK(at ? release(at, 0) : OK);
}
/* A handle: the process that exports, the file there, the device, and the bytes. */
typedef struct { int pid, file, device, magic; uint64_t n; char rest[40]; } Handle;
enum { MAGIC = 0x5ca7c4 };

API cuIpcGetMemHandle(Handle *out, void *at) {
    BEGIN_IN_CONTEXT("cuIpcGetMemHandle", "%p", at);
    int i = find((uintptr_t)at);
    if (i < 0 || memory[i].start != (uintptr_t)at || memory[i].device < 0 || memory[i].opened) BACK(INVALID_VALUE);
    Memory *m = &memory[i];
    if (setting("STUB_NO_IPC", 0)) BACK(MAP_FAILS);
    if (m->n % (1 << 21)) BACK(INVALID_VALUE);  /* a driver would also export what lies beside it */
    if (m->file < 0) {  /* a file with the same bytes, and a page more for `freed`, takes the place of the shadow */
        size_t whole = pages(m->n);
        int file = memfd_create("stub-exported", MFD_CLOEXEC);
        if (file < 0 || ftruncate(file, (off_t)(whole + 4096))) BACK(MAP_FAILS);
        char *shadow = mmap(NULL, whole + 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (shadow == MAP_FAILED) BACK(MAP_FAILS);
        memcpy(shadow, m->shadow, m->n);
        munmap(m->shadow, whole);
        m->shadow = shadow; m->file = file;
    }
    *out = (Handle){.pid = getpid(), .file = m->file, .device = m->device, .magic = MAGIC, .n = m->n};
    BACK(OK);
}
API cuIpcOpenMemHandle(void **out, Handle handle, unsigned flags) {
    BEGIN_IN_CONTEXT("cuIpcOpenMemHandle", "%d %d %u", handle.pid, handle.device, flags);
    NOT_CAPTURED;
    if (flags != 1 || handle.magic != MAGIC) BACK(INVALID_VALUE);
    if (handle.pid == getpid()) BACK(INVALID_CONTEXT);  /* no process opens its own */
    if (handle.device != here()->device && setting("STUB_NO_PEERS", 0)) BACK(MAP_FAILS);
    char name[64];
    snprintf(name, sizeof name, "/proc/%d/fd/%d", handle.pid, handle.file);
    int file = open(name, O_RDWR | O_CLOEXEC), holder = (int)syscall(SYS_pidfd_open, handle.pid, 0);
    size_t whole = pages(handle.n);
    char *shadow = file < 0 || holder < 0 ? MAP_FAILED
        : mmap(NULL, whole + 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (shadow == MAP_FAILED) BACK(INVALID_HANDLE);
    void *at = obtain(handle.n, handle.device);
    Memory *m = at ? holding((uintptr_t)at, 1) : NULL;
    if (!m) BACK(OUT_OF_MEMORY);
    used[handle.device] -= handle.n;  /* it is the other process that uses it */
    munmap(m->shadow, whole);
    m->shadow = shadow; m->holder = holder; m->opened = 1;
    *out = at;
    BACK(OK);
}
API cuIpcCloseMemHandle(void *at) {
    BEGIN_IN_CONTEXT("cuIpcCloseMemHandle", "%p", at);
    run_all(here());
    int i = find((uintptr_t)at);
    if (i < 0 || memory[i].start != (uintptr_t)at || !memory[i].opened) BACK(INVALID_VALUE);
    munmap(at, pages(memory[i].n)); munmap(memory[i].shadow, pages(memory[i].n) + 4096); close(memory[i].holder);
    memmove(memory + i, memory + i + 1, sizeof *memory * (--memories - i));
    BACK(OK);
}
API cuMemHostAlloc(void **out, size_t n, unsigned flags) {
    BEGIN_IN_CONTEXT("cuMemHostAlloc", "%zu %u", n, flags);
    NOT_CAPTURED;
    if (!n) BACK(INVALID_VALUE);
    *out = obtain(n, -1);
    BACK(*out ? OK : OUT_OF_MEMORY);
}
API cuMemFreeHost(void *at) {
    BEGIN_IN_CONTEXT("cuMemFreeHost", "%p", at);
    run_all(here());
    BACK(release(at, 1));
}
API cuMemHostGetDevicePointer(void **out, void *at, unsigned flags) {
    (void)flags;
    BEGIN_IN_CONTEXT("cuMemHostGetDevicePointer", "");
    *out = at;
    BACK(readable(at, 1, -1) ? OK : INVALID_VALUE);
}
API cuMemGetAddressRange(void **start, size_t *n, uintptr_t at) {
    BEGIN_IN_CONTEXT("cuMemGetAddressRange", "");
    Memory *m = holding(at, 1);
    if (!m) BACK(INVALID_VALUE);
    if (start) *start = (void *)m->start;
    if (n) *n = m->n;
    BACK(OK);
}
API cuPointerGetAttribute(void *out, int attribute, uintptr_t at) {
    BEGIN_IN_CONTEXT("cuPointerGetAttribute", "%d", attribute);
    Memory *m = holding(at, 1);
    if (!m) BACK(INVALID_VALUE);
    switch (attribute) {
    case 1: *(Context **)out = m->device < 0 ? here() : primary[m->device]; BACK(OK);
    case 2: *(unsigned *)out = m->device < 0 ? 1 : 2; BACK(OK);
    case 3: *(uintptr_t *)out = at; BACK(OK);
    case 8: *(unsigned *)out = 0; BACK(OK);
    case 9: *(int *)out = m->device; BACK(OK);
    }
    BACK(INVALID_VALUE);
}
static int host_to_device(Stream *s, void *to, const void *from, size_t n, int waits) {
    if (!readable(to, n, s->context->device)) return INVALID_VALUE;
    Op op = {.kind = COPY, .on_device = 1, .to = to, .from = from, .n = n};
    int is_pinned = holding((uintptr_t)from, n) != NULL;
    if (!is_pinned) memcpy(op.kept = malloc(n), from, n);  /* pageable memory is read at once, and sent at any time */
    queue(s, op);
    if (waits && is_pinned) run_to(s, s->queued, 1);
    return OK;
}
static int device_to_host(Stream *s, void *to, const void *from, size_t n, int waits) {
    if (!readable(from, n, s->context->device)) return INVALID_VALUE;
    queue(s, (Op){.kind = COPY, .on_device = 2, .to = to, .from = from, .n = n});
    if (waits || (!s->capture && !holding((uintptr_t)to, n))) run_to(s, s->queued, 1);  /* pageable memory is waited for */
    return sticky;
}
#define COPIES(name, step, to_t, from_t)                                                                              \
    API name(to_t to, from_t from, size_t n) {                                                                        \
        BEGIN_IN_CONTEXT(#name, "%zu", n);                                                                            \
        NOT_CAPTURED;                                                                                                 \
        BACK(step(here()->null, (void *)to, (const void *)from, n, 1));                                               \
    }                                                                                                                 \
    API name##Async(to_t to, from_t from, size_t n, void *handle) {                                                   \
        BEGIN_IN_CONTEXT(#name "Async", "%zu %p", n, handle);                                                         \
        STREAM(s, handle);                                                                                            \
        BACK(step(s, (void *)to, (const void *)from, n, 0));                                                          \
    }
COPIES(cuMemcpyHtoD, host_to_device, uintptr_t, const void *)
COPIES(cuMemcpyDtoH, device_to_host, void *, uintptr_t)
static int device_to_device(Stream *s, void *to, const void *from, size_t n, int waits) {
    (void)waits;
    if (!readable(to, n, s->context->device) || !readable(from, n, s->context->device)) return INVALID_VALUE;
    queue(s, (Op){.kind = COPY, .on_device = 3, .to = to, .from = from, .n = n});
    return OK;
}
COPIES(cuMemcpyDtoD, device_to_device, uintptr_t, uintptr_t)
#define FILLS(name, type, size)                                                                                       \
    API name##Async(uintptr_t to, type value, size_t n, void *handle) {                                               \
        BEGIN_IN_CONTEXT(#name "Async", "%zu %p", n, handle);                                                         \
        STREAM(s, handle);                                                                                            \
        if (to % size || !readable((void *)to, n * size, s->context->device)) BACK(INVALID_VALUE);                    \
        queue(s, (Op){.kind = FILL, .on_device = 1, .to = (void *)to, .n = n, .value = (int)value, .width = size});                   \
        BACK(OK);                                                                                                     \
    }
FILLS(cuMemsetD8, unsigned char, 1)
FILLS(cuMemsetD32, unsigned, 4)

/* --- streams and events -------------------------------------------------------------------------------------------- */

API cuStreamCreate(Stream **out, unsigned flags) {
    BEGIN_IN_CONTEXT("cuStreamCreate", "%u", flags);
    *out = new_stream(here(), !(flags & 1));
    BACK(OK);
}
API cuStreamCreateWithPriority(Stream **out, unsigned flags, int priority) {
    (void)priority;
    return cuStreamCreate(out, flags);
}
API cuStreamDestroy(void *handle) {
    BEGIN_IN_CONTEXT("cuStreamDestroy", "%p", handle);
    STREAM(s, handle);
    run_to(s, s->queued, 1);  /* its work is still done */
    s->alive = 0;
    BACK(OK);
}
API cuStreamGetCtx(void *handle, Context **out) {
    BEGIN_IN_CONTEXT("cuStreamGetCtx", "");
    STREAM(s, handle);
    *out = s->context;
    BACK(OK);
}
API cuStreamGetFlags(void *handle, unsigned *out) {
    BEGIN_IN_CONTEXT("cuStreamGetFlags", "");
    STREAM(s, handle);
    *out = !s->blocking;
    BACK(OK);
}
API cuStreamGetPriority(void *handle, int *out) { (void)handle; *out = 0; return OK; }
API cuCtxGetStreamPriorityRange(int *least, int *most) { *least = 0; *most = -5; return OK; }
API cuStreamGetDevice(void *handle, int *out) {
    BEGIN_IN_CONTEXT("cuStreamGetDevice", "");
    STREAM(s, handle);
    *out = s->context->device;
    BACK(OK);
}
API cuStreamSynchronize(void *handle) {
    BEGIN_IN_CONTEXT("cuStreamSynchronize", "%p", handle);
    STREAM(s, handle);
    if (s->capture) { s->broken = 1; BACK(CAPTURE_UNSUPPORTED); }
    NOT_CAPTURED;
    run_to(s, s->queued, 1);
    if (s == s->context->null) run_all(s->context);
    BACK(sticky);
}
API cuStreamQuery(void *handle) {
    BEGIN_IN_CONTEXT("cuStreamQuery", "%p", handle);
    STREAM(s, handle);
    BACK(s->first ? NOT_READY : OK);
}
API cuEventCreate(Event **out, unsigned flags) {
    BEGIN_IN_CONTEXT("cuEventCreate", "%u", flags);
    *out = calloc(1, sizeof **out);
    **out = (Event){.alive = 1, .timed = !(flags & 2), .context = here()};
    BACK(OK);
}
API cuEventDestroy(Event *event) {
    BEGIN("cuEventDestroy", "%p", (void *)event);
    if (!event->alive) BACK(INVALID_HANDLE);
    event->alive = 0;
    BACK(OK);
}
API cuEventRecord(Event *event, void *handle) {
    BEGIN_IN_CONTEXT("cuEventRecord", "%p %p", (void *)event, handle);
    STREAM(s, handle);
    if (!event || !event->alive || event->context != s->context) BACK(INVALID_HANDLE);
    queue(s, (Op){.kind = MARK});
    if (!s->capture) { event->stream = s; event->at = s->queued; event->asked = 0; }
    BACK(OK);
}
API cuEventRecordWithFlags(Event *event, void *handle, unsigned flags) { (void)flags; return cuEventRecord(event, handle); }
API cuEventQuery(Event *event) {
    BEGIN("cuEventQuery", "%p", (void *)event);
    if (!event->alive) BACK(INVALID_HANDLE);
    if (event->stream && event->asked++ >= ASKED) run_to(event->stream, event->at, 0);
    BACK(event->stream && event->stream->done < event->at ? NOT_READY : sticky);
}
API cuEventSynchronize(Event *event) {
    BEGIN("cuEventSynchronize", "%p", (void *)event);
    NOT_CAPTURED;
    if (!event->alive) BACK(INVALID_HANDLE);
    if (event->stream) run_to(event->stream, event->at, 1);
    BACK(sticky);
}
API cuEventElapsedTime(float *out, Event *a, Event *b) {
    BEGIN("cuEventElapsedTime", "");
    if (!a->timed || !b->timed || !a->stream || !b->stream) BACK(INVALID_HANDLE);
    if (a->stream->done < a->at || b->stream->done < b->at) BACK(NOT_READY);
    *out = 1e-3f * (float)(b->at > a->at ? b->at - a->at : 1);
    BACK(OK);
}
API cuStreamWaitEvent(void *handle, Event *event, unsigned flags) {
    BEGIN_IN_CONTEXT("cuStreamWaitEvent", "%p %p %u", handle, (void *)event, flags);
    STREAM(s, handle);
    if (!event || !event->alive) BACK(INVALID_HANDLE);
    queue(s, (Op){.kind = WAIT, .to = event->stream, .from_number = event->at});
    BACK(OK);
}

/* --- code: what a cubin says of its kernels ------------------------------------------------------------------------ */

static void read_facts(Kernel *k, const unsigned char *at, size_t n) {
    const unsigned char *end = at + n;
    while (at + 4 <= end) {  /* format, attribute, then a value or the length of one */
        int form = at[0], attribute = at[1], size = at[2] | at[3] << 8;
        const unsigned char *value = at + 4;
        at = form == 4 ? value + size : value;
        if (attribute == 0x17 && form == 4) {  /* a parameter: its number, its offset, its size in bits 18 and up */
            uint16_t number, offset; uint32_t bits;
            memcpy(&number, value + 4, 2); memcpy(&offset, value + 6, 2); memcpy(&bits, value + 8, 4);
            if (number < MOST_PARAMETERS) {
                k->parameter[number].offset = offset; k->parameter[number].size = (int)(bits >> 18);
                if (number >= k->count) k->count = number + 1;
            }
        }
        if (attribute == 0x05 && form == 4 && size >= 4) { uint32_t x; memcpy(&x, value, 4); k->most_threads = (int)x; }
    }
}
static Library *load(const unsigned char *image) {
    const Elf64_Ehdr *head = (const void *)image;
    if (memcmp(image, ELFMAG, 4)) return NULL;
    const Elf64_Shdr *sections = (const void *)(image + head->e_shoff);
    const char *names = (const char *)image + sections[head->e_shstrndx].sh_offset;
    Library *library = calloc(1, sizeof *library);
    library->alive = 1;
    for (int i = 0; i < head->e_shnum; i++) {
        const char *name = names + sections[i].sh_name;
        if (strncmp(name, ".text.", 6)) continue;
        Kernel *k = calloc(1, sizeof *k);
        snprintf(k->name, sizeof k->name, "%s", name + 6);
        k->library = library; k->next = library->kernels; k->most_threads = 1024;
        k->registers = (int)(sections[i].sh_info >> 24);
        library->kernels = k;
        for (int j = 0; j < head->e_shnum; j++) {
            const char *other = names + sections[j].sh_name;
            if (!strncmp(other, ".nv.info.", 9) && !strcmp(other + 9, k->name))
                read_facts(k, image + sections[j].sh_offset, sections[j].sh_size);
            if (!strncmp(other, ".nv.shared.", 11) && !strcmp(other + 11, k->name)) k->shared = (int)sections[j].sh_size;
        }
    }
    return library;
}
API cuLibraryLoadData(Library **out, const void *code, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    BEGIN_IN_CONTEXT("cuLibraryLoadData", "");
    NOT_CAPTURED;  /* cautious: loading may synchronise */
    BACK((*out = load(code)) ? OK : INVALID_IMAGE);
}
API cuLibraryUnload(Library *library) { BEGIN("cuLibraryUnload", ""); library->alive = 0; BACK(OK); }
API cuLibraryGetKernel(Kernel **out, Library *library, const char *name) {
    BEGIN("cuLibraryGetKernel", "%s", name);
    if (!library || !library->alive) BACK(INVALID_HANDLE);
    for (Kernel *k = library->kernels; k; k = k->next) if (!strcmp(k->name, name)) { *out = k; BACK(OK); }
    BACK(NOT_FOUND);
}
API cuLibraryGetGlobal(void **out, size_t *n, Library *library, const char *name) {
    (void)out, (void)n, (void)library;
    BEGIN("cuLibraryGetGlobal", "%s", name);
    BACK(NOT_FOUND);
}
API cuKernelGetLibrary(Library **out, Kernel *k) { *out = k->library; return OK; }
API cuKernelGetFunction(Kernel **out, Kernel *k) { *out = k; return OK; }
API cuFuncGetModule(Library **out, Kernel *k) { *out = k->library; return OK; }
API cuKernelGetAttribute(int *out, int attribute, Kernel *k, int device) {
    (void)device;
    BEGIN("cuKernelGetAttribute", "%d", attribute);
    int values[] = {k->most_threads, k->shared, 0, 0, k->registers, capability, capability};
    *out = attribute >= 0 && attribute < 7 ? values[attribute] : 0;
    BACK(OK);
}
API cuFuncGetAttribute(int *out, int attribute, Kernel *k) { return cuKernelGetAttribute(out, attribute, k, 0); }
API cuKernelGetParamInfo(Kernel *k, size_t i, size_t *offset, size_t *size) {
    if (i >= (size_t)k->count) return INVALID_VALUE;
    *offset = k->parameter[i].offset;
    if (size) *size = k->parameter[i].size;
    return OK;
}

/* --- launches ------------------------------------------------------------------------------------------------------ */

static int launch(Kernel *k, unsigned *grid, unsigned *block, unsigned shared, void *handle, void **parameters, void **extra) {
    BEGIN_IN_CONTEXT("cuLaunchKernel", "%s %u,%u,%u %u,%u,%u %p", k->name, grid[0], grid[1], grid[2], block[0], block[1],
                     block[2], handle);
    STREAM(s, handle);
    if (!k->library->alive) BACK(INVALID_HANDLE);
    for (int i = 0; i < 3; i++) if (!grid[i] || !block[i]) BACK(INVALID_VALUE);
    if (grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535) BACK(INVALID_VALUE);
    uint64_t threads = (uint64_t)block[0] * block[1] * block[2];
    if (threads > 1024 || block[2] > 64 || threads > (uint64_t)k->most_threads) BACK(INVALID_VALUE);
    if (k->shared + shared > 49152) BACK(INVALID_VALUE);  /* without a wider limit that somebody asked for */
    uint64_t warps = (threads + 31) / 32;
    if ((k->registers * 32 + 255) / 256 * 256 * warps > 65536) BACK(OUT_OF_RESOURCES);
    if (k->count && !parameters && !extra) BACK(INVALID_VALUE);
    int size = k->count ? k->parameter[k->count - 1].offset + k->parameter[k->count - 1].size : 0;
    unsigned char *arguments = calloc(1, size + 1);
    if (parameters)
        for (int i = 0; i < k->count; i++) {
            if (!parameters[i]) { free(arguments); BACK(INVALID_VALUE); }
            memcpy(arguments + k->parameter[i].offset, parameters[i], k->parameter[i].size);
        }
    else if (k->count && (uintptr_t)extra[0] == 1) {  /* packed by the caller: pointer, buffer, pointer, its size */
        if ((uintptr_t)extra[2] != 2 || *(size_t *)extra[3] < (size_t)size) { free(arguments); BACK(INVALID_VALUE); }
        memcpy(arguments, extra[1], size);
    }
    long blocks = (long)grid[0] * grid[1] * grid[2];
    if (blocks > most_grid) most_grid = blocks;
    int found = check_arguments(k, arguments, s->context->device);  /* seen at once, where that is certain */
    if (found) { note("stub: a kernel failed", "%d %s", found, k->name); free(arguments); BACK(sticky = found); }
    queue(s, (Op){.kind = LAUNCH, .kernel = k, .arguments = arguments});
    BACK(OK);
}
API cuLaunchKernel(Kernel *k, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **parameters, void **extra) {
    return launch(k, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, stream, parameters, extra);
}
struct Config { unsigned grid[3], block[3], shared; void *stream, *attributes; unsigned n; };
API cuLaunchKernelEx(struct Config *c, Kernel *k, void **parameters, void **extra) {
    return launch(k, c->grid, c->block, c->shared, c->stream, parameters, extra);
}

/* --- graphs: the work of one stream -------------------------------------------------------------------------------- */

API cuStreamBeginCapture(void *handle, int mode) {
    BEGIN_IN_CONTEXT("cuStreamBeginCapture", "%d", mode);
    STREAM(s, handle);
    if (s == s->context->null || s->capture || setting("STUB_NO_GRAPHS", 0)) BACK(CAPTURE_UNSUPPORTED);
    s->capture = calloc(1, sizeof(Graph)); s->broken = 0; s->capturer = pthread_self();
    BACK(OK);
}
API cuStreamEndCapture(void *handle, Graph **out) {
    BEGIN_IN_CONTEXT("cuStreamEndCapture", "");
    STREAM(s, handle);
    if (!s->capture) BACK(INVALID_VALUE);
    *out = s->broken ? NULL : s->capture;
    s->capture = NULL;
    BACK(s->broken ? CAPTURE_INVALID : OK);
}
API cuStreamIsCapturing(void *handle, int *out) {
    BEGIN_IN_CONTEXT("cuStreamIsCapturing", "");
    STREAM(s, handle);
    *out = s->capture != NULL;
    BACK(OK);
}
API cuGraphInstantiateWithFlags(Graph **out, Graph *graph, unsigned long long flags) {
    BEGIN_IN_CONTEXT("cuGraphInstantiate", "%llu", flags);
    *out = graph;
    BACK(graph ? OK : INVALID_VALUE);
}
API cuGraphLaunch(Graph *graph, void *handle) {
    BEGIN_IN_CONTEXT("cuGraphLaunch", "");
    STREAM(s, handle);
    for (Op *op = graph->first; op; op = op->next) {
        Op again = *op;
        if (op->kind == LAUNCH) {
            Kernel *k = op->kernel;
            int size = k->count ? k->parameter[k->count - 1].offset + k->parameter[k->count - 1].size : 0;
            memcpy(again.arguments = malloc(size + 1), op->arguments, size);
        }
        if (op->kept) memcpy(again.kept = malloc(op->n), op->kept, op->n);
        queue(s, again);
    }
    BACK(OK);
}
API cuGraphExecDestroy(Graph *graph) { (void)graph; return OK; }
API cuGraphDestroy(Graph *graph) { (void)graph; return OK; }
API cuGraphGetNodes(Graph *graph, void **nodes, size_t *n) {
    (void)nodes; *n = 0;
    for (Op *op = graph->first; op; op = op->next) *n += op->kind != MARK;
    return OK;
}

/* --- the rest ------------------------------------------------------------------------------------------------------ */

API cuGetErrorName(int code, const char **out) {
    static char text[32];
    snprintf(text, sizeof text, "CUDA_ERROR_%d", code);
    *out = text;
    return OK;
}
API cuGetErrorString(int code, const char **out) { return cuGetErrorName(code, out); }
API cuProfilerStart(void) { return OK; }
API cuProfilerStop(void) { return OK; }

/* For other libraries, as stub_nccl.c: a call in the order of a stream; and where bytes of a device of this context are. */
API stub_queue(void *handle, int (*call)(void *), void *argument) {
    BEGIN_IN_CONTEXT("stub_queue", "%p", handle);
    STREAM(s, handle);
    NOT_CAPTURED;
    queue(s, (Op){.kind = CALL, .call = call, .argument = argument});
    BACK(OK);
}
__attribute__((visibility("default"))) char *stub_reached(void *at, size_t n, int device) {
    Memory *m = holding((uintptr_t)at, n);
    return m && m->device == device ? reached(at, n, 1, device) : NULL;
}

__attribute__((visibility("default"))) long stub_count(const char *name) {
    for (int i = 0; i < 256 && counts[i].name; i++) if (!strcmp(counts[i].name, name)) return counts[i].count;
    return 0;
}
__attribute__((visibility("default"))) long stub_most_grid(void) { long most = most_grid; most_grid = 0; return most; }
__attribute__((visibility("default"))) long stub_performed(void) { return performed; }
__attribute__((visibility("default"))) long stub_used(int device) { return (long)used[device]; }
__attribute__((visibility("default"))) long stub_memories(void) { return memories; }
__attribute__((visibility("default"))) int stub_is_active(int device) { return retained[device] > 0; }
__attribute__((visibility("default"))) void stub_forgive(void) { sticky = 0; }
__attribute__((visibility("default"))) void stub_forget(void) { started = 0; }  /* as in a process that was forked */

#include <dlfcn.h>
API cuGetProcAddress(const char *name, void **out, int wanted, unsigned long long flags, int *status) {
    (void)wanted, (void)flags;
    Dl_info own;
    dladdr((void *)cuGetProcAddress, &own);
    void *self = dlopen(own.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *out = self ? dlsym(self, name) : NULL;
    if (status) *status = *out ? 0 : 1;
    return *out ? OK : NOT_FOUND;
}
API cuGetProcAddress_v2(const char *name, void **out, int wanted, unsigned long long flags, int *status) {
    if (!strcmp(name, "cuGetProcAddress")) { *out = (void *)cuGetProcAddress_v2; if (status) *status = 0; return OK; }
    return cuGetProcAddress(name, out, wanted, flags, status);
}
