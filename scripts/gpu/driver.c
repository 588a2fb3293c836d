/* libcuda for a machine without a GPU: it calls itself an H100, its memory is the host's, and kernels are loaded, counted and never
 * run. So all of the host's side of a CUDA program can be tried, NVRTC among it, with results that mean nothing.
 *
 *     cc -shared -fPIC -O1 -o libcuda.so driver.c
 *
 * As libcuda.so.1 NVRTC would find it, too, and ask it for what it does not have.
 *
 * STUB_COUNTS names a file for what was asked of it: launches of each kernel, copies to the host and waits, a line each.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef int result;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };

/* What was asked, by name. Modules are few and names short: a list will do. */
typedef struct counted {
    struct counted *next;
    unsigned long long n;
    char name[];
} counted;
static counted *all;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static counted *counter(const char *kind, const char *name) {
    char both[1024];
    snprintf(both, sizeof both, "%s %s", kind, name);
    pthread_mutex_lock(&lock);
    counted *found = all;
    while (found && strcmp(found->name, both)) found = found->next;
    if (!found && (found = malloc(sizeof *found + strlen(both) + 1))) {
        found->n = 0, found->next = all, all = found;
        strcpy(found->name, both);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static void count(counted *of) { __atomic_fetch_add(&of->n, 1, __ATOMIC_RELAXED); }
#define COUNT(kind, name) do { static counted *of; if (!of) of = counter(kind, name); count(of); } while (0)

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("STUB_COUNTS");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    for (counted *of = all; of; of = of->next) fprintf(file, "%llu %s\n", of->n, of->name);
    fclose(file);
}

/* Device */
result cuInit(unsigned flags) { return SUCCESS; }
result cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
result cuDeviceGetCount(int *n) { *n = getenv("STUB_DEVICES") ? atoi(getenv("STUB_DEVICES")) : 1; return SUCCESS; }
result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
result cuDeviceGetName(char *name, int len, int device) { snprintf(name, len, "no H100"); return SUCCESS; }
result cuDeviceGetUuid_v2(void *uuid, int device) { memset(uuid, device, 16); return SUCCESS; }
result cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 80ull << 30; return SUCCESS; }
result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) { /* numbers of cuda.h, values of an H100 */
        case 1: *value = 1024; break;           /* threads of a block */
        case 2: case 3: *value = 1024; break;   /* block, x and y */
        case 4: *value = 64; break;
        case 5: *value = 2147483647; break;     /* grid */
        case 6: case 7: *value = 65535; break;
        case 8: *value = 49152; break;          /* shared memory of a block */
        case 10: *value = 32; break;            /* warp */
        case 12: *value = 65536; break;         /* registers of a block */
        case 16: *value = 132; break;           /* multiprocessors */
        case 75: *value = 9; break;             /* compute capability */
        case 76: *value = 0; break;
        case 97: *value = 232448; break;        /* shared memory, opted into */
        case 115: *value = 1; break;            /* memory pools */
        default: *value = 1;
    }
    return SUCCESS;
}

/* Contexts, streams and events have no state: all is done when it is asked for. */
static void *const THING = (void *)0x1000;
result cuDevicePrimaryCtxRetain(void **context, int device) { *context = THING; return SUCCESS; }
result cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
result cuCtxSetCurrent(void *context) { return SUCCESS; }
result cuCtxGetCurrent(void **context) { *context = THING; return SUCCESS; }
result cuCtxGetDevice(int *device) { *device = 0; return SUCCESS; }
result cuCtxSynchronize(void) { COUNT("wait", "context"); return SUCCESS; }
result cuCtxEnablePeerAccess(void *context, unsigned flags) { return SUCCESS; }
result cuDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return SUCCESS; }
result cuStreamCreate(void **stream, unsigned flags) { *stream = THING; return SUCCESS; }
result cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = THING; return SUCCESS; }
result cuStreamDestroy_v2(void *stream) { return SUCCESS; }
result cuStreamSynchronize(void *stream) { COUNT("wait", "stream"); return SUCCESS; }
result cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
result cuEventCreate(void **event, unsigned flags) { *event = THING; return SUCCESS; }
result cuEventRecord(void *event, void *stream) { return SUCCESS; }
result cuEventQuery(void *event) { return SUCCESS; }
result cuEventSynchronize(void *event) { COUNT("wait", "event"); return SUCCESS; }
result cuEventElapsedTime_v2(float *ms, void *start, void *end) { *ms = 0.01f; return SUCCESS; }
result cuEventDestroy_v2(void *event) { return SUCCESS; }

/* Memory: pages that are never touched cost nothing, so that a model may be larger than the machine. */
result cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    size_t *block = mmap(NULL, bytes + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) return OUT_OF_MEMORY;
    *block = bytes + 4096;
    *at = (uint64_t)block + 4096;
    return SUCCESS;
}
result cuMemFree_v2(uint64_t at) {
    size_t *block = (size_t *)(at - 4096);
    return at && munmap(block, *block) ? INVALID_VALUE : SUCCESS;
}
result cuMemAllocAsync(uint64_t *at, size_t bytes, void *stream) { return cuMemAlloc_v2(at, bytes); }
result cuMemFreeAsync(uint64_t at, void *stream) { return cuMemFree_v2(at); }
result cuMemAllocHost_v2(void **at, size_t bytes) { return (*at = malloc(bytes)) ? SUCCESS : OUT_OF_MEMORY; }
result cuMemFreeHost(void *at) { free(at); return SUCCESS; }
result cuMemGetInfo_v2(size_t *free_bytes, size_t *bytes) { *free_bytes = *bytes = 80ull << 30; return SUCCESS; }
result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *stream) {
    COUNT("copy", "to device");
    memcpy((void *)to, from, n);
    return SUCCESS;
}
result cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n) { return cuMemcpyHtoDAsync_v2(to, from, n, NULL); }
result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *stream) {
    COUNT("copy", "to host");
    memcpy(to, (void *)from, n);
    return SUCCESS;
}
result cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) { return cuMemcpyDtoHAsync_v2(to, from, n, NULL); }
result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *stream) {
    COUNT("copy", "on device");
    memmove((void *)to, (void *)from, n);
    return SUCCESS;
}
result cuMemsetD8Async(uint64_t at, unsigned char value, size_t n, void *stream) { memset((void *)at, value, n); return SUCCESS; }
result cuMemsetD8_v2(uint64_t at, unsigned char value, size_t n) { memset((void *)at, value, n); return SUCCESS; }

/* CUDA_MEMCPY2D of cuda.h; types 1 and 2 are the host's and the device's memory. */
typedef struct {
    size_t from_x, from_y;
    int from_type;
    const void *from_host;
    uint64_t from_device;
    void *from_array;
    size_t from_pitch, to_x, to_y;
    int to_type;
    void *to_host;
    uint64_t to_device;
    void *to_array;
    size_t to_pitch, width, height;
} copy_2d;
result cuMemcpy2DAsync_v2(const copy_2d *copy, void *stream) {
    const char *from = copy->from_type == 1 ? copy->from_host : (const void *)copy->from_device;
    char *to = copy->to_type == 1 ? copy->to_host : (void *)copy->to_device;
    if (copy->to_type == 1) COUNT("copy", "to host"); else COUNT("copy", "to device");
    from += copy->from_y * copy->from_pitch + copy->from_x;
    to += copy->to_y * copy->to_pitch + copy->to_x;
    for (size_t row = 0; row < copy->height; row++) memcpy(to + row * copy->to_pitch, from + row * copy->from_pitch, copy->width);
    return SUCCESS;
}
result cuMemcpy2D_v2(const copy_2d *copy) { return cuMemcpy2DAsync_v2(copy, NULL); }

/* Kernels: a function is the counter of its name. */
result cuModuleLoadData(void **module, const void *image) { COUNT("load", "module"); *module = THING; return SUCCESS; }
result cuModuleUnload(void *module) { return SUCCESS; }
result cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = counter("launch", name);
    return *function ? SUCCESS : NOT_FOUND;
}
result cuFuncSetAttribute(void *function, int attribute, int value) { return SUCCESS; }
result cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                      void *stream, void **arguments, void **extra) {
    count(function);
    return gx && gy && gz && bx && by && bz ? SUCCESS : INVALID_VALUE;
}
result cuTensorMapEncodeTiled(void *map) { return SUCCESS; }
result cuTensorMapEncodeIm2col(void *map) { return SUCCESS; }
result cuTensorMapEncodeIm2colWide(void *map) { return SUCCESS; }
result cuGetErrorName(int error, const char **name) { *name = "error of the stub"; return SUCCESS; }
result cuGetErrorString(int error, const char **text) { *text = "error of the stub"; return SUCCESS; }
