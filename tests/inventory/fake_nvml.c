/* A stand-in for libnvidia-ml.so.1, so that the real nvidia-ml-py can be driven without a GPU.
 * Two GPUs, enumerated against PCI order. Environment: FAKE_NVML_PID sits on the first one with 3 GiB;
 * FAKE_NVML_XID happens once on it; FAKE_NVML_LOST makes the second one fall off the bus. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, LOST = 15 };
typedef int ret;
typedef struct { int number; } *device; /* 0 is first in PCI order */
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_info;
typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute; } process_info;
typedef struct { device device; unsigned long long type, data; unsigned instance, compute; } event;

static struct { int number; } gpus[2] = {{1}, {0}};
static int xid_told;

static int is_lost(device d) { return d->number == 1 && getenv("FAKE_NVML_LOST"); }

ret nvmlInitWithFlags(unsigned flags) { (void)flags; return SUCCESS; }
ret nvmlShutdown(void) { puts("shut down"); fflush(stdout); return SUCCESS; }
const char *nvmlErrorString(ret r) { (void)r; return "an error"; }
ret nvmlSystemGetDriverVersion(char *out, unsigned n) { snprintf(out, n, "555.42.06"); return SUCCESS; }
ret nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return SUCCESS; }
ret nvmlDeviceGetHandleByIndex_v2(unsigned i, device *d) { *d = (device)&gpus[i]; return SUCCESS; }
ret nvmlDeviceGetUUID(device d, char *out, unsigned n) { snprintf(out, n, "GPU-fake-%d", d->number); return SUCCESS; }
ret nvmlDeviceGetName(device d, char *out, unsigned n) { (void)d; snprintf(out, n, "NVIDIA Fake"); return SUCCESS; }
ret nvmlDeviceGetPciInfo_v3(device d, pci_info *p) {
    memset(p, 0, sizeof *p);
    snprintf(p->bus_id, sizeof p->bus_id, "00000000:%02X:00.0", 0x3B + d->number);
    return SUCCESS;
}
ret nvmlDeviceGetMemoryInfo_v2(device d, memory_v2 *m) {
    if (m->version != 0x02000028) return 25;
    if (is_lost(d)) return LOST;
    m->total = 24ULL << 30; m->reserved = 1ULL << 29; m->used = d->number == 0 ? 3ULL << 30 : 0;
    return SUCCESS;
}
ret nvmlDeviceGetUtilizationRates(device d, utilization *u) { (void)d; u->gpu = 41; u->memory = 7; return SUCCESS; }
ret nvmlDeviceGetTemperature(device d, unsigned sensor, unsigned *t) { (void)d; (void)sensor; *t = 55; return SUCCESS; }
ret nvmlDeviceGetPowerUsage(device d, unsigned *mw) { (void)d; *mw = 123456; return SUCCESS; }
ret nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned *n, process_info *out) {
    const char *pid = getenv("FAKE_NVML_PID");
    if (is_lost(d)) return LOST;
    if (d->number != 0 || !pid) { *n = 0; return SUCCESS; }
    if (*n < 2 || !out) { *n = 2; return INSUFFICIENT_SIZE; }
    *n = 2;
    out[0].pid = (unsigned)atoi(pid); out[0].memory = 3ULL << 30;
    out[1].pid = (1U << 22) + 7; out[1].memory = ~0ULL; /* not available */
    return SUCCESS;
}
ret nvmlDeviceGetTotalEccErrors(device d, unsigned kind, unsigned counter, unsigned long long *count) {
    (void)d; (void)kind; (void)counter; *count = 0; return SUCCESS;
}
ret nvmlDeviceGetRetiredPagesPendingStatus(device d, unsigned *pending) { (void)d; (void)pending; return NOT_SUPPORTED; }
ret nvmlDeviceGetRemappedRows(device d, unsigned *c, unsigned *u, unsigned *pending, unsigned *failed) {
    (void)d; *c = 1; *u = 0; *pending = 1; *failed = 0; return SUCCESS;
}
ret nvmlEventSetCreate(void **set) { *set = calloc(1, sizeof(device)); return SUCCESS; }
ret nvmlEventSetFree(void *set) { free(set); return SUCCESS; }
ret nvmlDeviceRegisterEvents(device d, unsigned long long types, void *set) {
    if (types != 8) return NOT_SUPPORTED;
    *(device *)set = d;
    return SUCCESS;
}
ret nvmlEventSetWait_v2(void *set, event *e, unsigned timeout) {
    const char *xid = getenv("FAKE_NVML_XID");
    device d = *(device *)set;
    (void)timeout;
    if (d->number != 0 || !xid || xid_told) return TIMEOUT;
    xid_told = 1;
    e->device = d; e->type = 8; e->data = (unsigned long long)atoi(xid);
    return SUCCESS;
}
