/* A stand-in for libnvidia-ml.so.1: the part of NVML that a GPU inventory asks for, answered from the folder of a
 * simulated GPU host (see claims.py for its format). Every call reads the folder again, so nothing is cached.
 *
 * The folder is $HOSTLER_SIMULATED_GPUS, else /dev/hostler-simulated-gpus. In the latter case (a container) only the
 * cards in $NVIDIA_VISIBLE_DEVICES are shown, as with NVIDIA's own hook. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef int nvmlReturn_t;
enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_UNKNOWN = 999
};

#define MAX_CARDS 32
#define MAX_CLAIMS 256
#define TEXT_BYTES 65536
#define EXPORT __attribute__((visibility("default")))

typedef struct {
    char uuid[96];
    char name[96];
    double total_mib, energy_mj;
    int index, has_energy;
} Card;

typedef struct {
    char uuid[96];
    double mib;
    unsigned int pid;
} Claim;

typedef struct nvmlDevice_st {
    char uuid[96];
} *nvmlDevice_t;

typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;

/* One handle per card that was ever asked for; a handle is only its UUID. */
static struct nvmlDevice_st handles[MAX_CARDS];
static int handle_count = 0;
static int users = 0;

static const char *folder(void) {
    const char *named = getenv("HOSTLER_SIMULATED_GPUS");
    return named && *named ? named : "/dev/hostler-simulated-gpus";
}

static int read_text(const char *path, char *text) {
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t length = fread(text, 1, TEXT_BYTES - 1, file);
    text[length] = 0;
    fclose(file);
    return 1;
}

/* The value of a key inside one flat JSON object that ends at `end`. */
static const char *value_of(const char *object, const char *end, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    const char *found = strstr(object, quoted);
    if (!found || found >= end) return NULL;
    found += strlen(quoted);
    while (*found == ' ' || *found == ':' || *found == '\n') found++;
    return found;
}

static void text_of(const char *object, const char *end, const char *key, char *into, size_t size) {
    const char *value = value_of(object, end, key);
    into[0] = 0;
    if (!value || *value != '"') return;
    size_t length = strcspn(value + 1, "\"");
    if (length >= size) length = size - 1;
    memcpy(into, value + 1, length);
    into[length] = 0;
}

static double number_of(const char *object, const char *end, const char *key) {
    const char *value = value_of(object, end, key);
    return value ? strtod(value, NULL) : 0;
}

/* The next flat object of an array; NULL at the array's end. */
static const char *next_object(const char *text, const char **end) {
    text += strcspn(text, "{]");
    if (*text != '{') return NULL;
    *end = strchr(text, '}');
    return *end ? text : NULL;
}

static const char *array_of(const char *text, const char *key) {
    const char *value = value_of(text, text + strlen(text), key);
    return value && *value == '[' ? value + 1 : NULL;
}

static int is_listed(const char *list, const Card *card) {
    char index[16];
    snprintf(index, sizeof index, "%d", card->index);
    while (*list) {
        size_t length = strcspn(list, ",");
        if (length == strlen(card->uuid) && !strncmp(list, card->uuid, length)) return 1;
        if (length == strlen(index) && !strncmp(list, index, length)) return 1;
        list += length + (list[length] == ',');
    }
    return 0;
}

static int is_visible(const Card *card) {
    const char *named = getenv("HOSTLER_SIMULATED_GPUS"), *list = getenv("NVIDIA_VISIBLE_DEVICES");
    if ((named && *named) || !list || !*list || !strcmp(list, "all")) return 1;
    return is_listed(list, card);
}

static int host_text(char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/host.json", folder());
    return read_text(path, text);
}

static int read_cards(Card *cards) {
    char *text = malloc(TEXT_BYTES);
    const char *end, *object;
    int count = 0;
    if (!text || !host_text(text)) {
        free(text);
        return -1;
    }
    for (object = array_of(text, "cards"); object && (object = next_object(object, &end)) && count < MAX_CARDS;
         object = end + 1) {
        Card *card = &cards[count];
        text_of(object, end, "uuid", card->uuid, sizeof card->uuid);
        text_of(object, end, "name", card->name, sizeof card->name);
        card->total_mib = number_of(object, end, "memory_total_mib");
        card->energy_mj = number_of(object, end, "energy_mj");
        card->has_energy = value_of(object, end, "energy_mj") != NULL;
        card->index = (int)number_of(object, end, "index");
        if (is_visible(card)) count++;
    }
    free(text);
    return count;
}

static int add_claim(const char *object, const char *end, const char *uuid, Claim *claims, int count) {
    Claim *claim = &claims[count];
    if (count >= MAX_CLAIMS) return count;
    text_of(object, end, "uuid", claim->uuid, sizeof claim->uuid);
    claim->mib = number_of(object, end, "memory_mib");
    claim->pid = (unsigned int)number_of(object, end, "pid");
    return strcmp(claim->uuid, uuid) ? count : count + 1;
}

/* A claim lives as long as somebody holds an exclusive lock on it, or while its time of change lies in the future. */
static int is_alive(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC), alive;
    struct stat facts;
    if (file < 0) return 0;
    alive = flock(file, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    alive = alive || (!fstat(file, &facts) && facts.st_mtime > time(NULL));
    close(file);
    return alive;
}

static int read_claims(const char *uuid, Claim *claims) {
    char *text = malloc(TEXT_BYTES), path[1024];
    const char *end, *object;
    struct dirent *entry;
    int count = 0;
    DIR *directory;
    if (!text) return 0;
    if (host_text(text))
        for (object = array_of(text, "foreign"); object && (object = next_object(object, &end)); object = end + 1)
            count = add_claim(object, end, uuid, claims, count);
    snprintf(path, sizeof path, "%s/claims", folder());
    directory = opendir(path);
    while (directory && (entry = readdir(directory))) {
        size_t length = strlen(entry->d_name);
        if (length < 5 || strcmp(entry->d_name + length - 5, ".json")) continue;
        snprintf(path, sizeof path, "%s/claims/%s", folder(), entry->d_name);
        if (is_alive(path) && read_text(path, text) && (object = next_object(text, &end)))
            count = add_claim(object, end, uuid, claims, count);
    }
    if (directory) closedir(directory);
    free(text);
    return count;
}

static nvmlReturn_t handle_for(const char *uuid, nvmlDevice_t *device) {
    int i;
    for (i = 0; i < handle_count && strcmp(handles[i].uuid, uuid); i++) {}
    if (i == MAX_CARDS) return NVML_ERROR_UNKNOWN;
    if (i == handle_count) strcpy(handles[handle_count++].uuid, uuid);
    *device = &handles[i];
    return NVML_SUCCESS;
}

static nvmlReturn_t card_of(nvmlDevice_t device, Card *into) {
    Card cards[MAX_CARDS];
    int count = read_cards(cards);
    if (!users) return NVML_ERROR_UNINITIALIZED;
    if (!device) return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < count; i++)
        if (!strcmp(cards[i].uuid, device->uuid)) {
            *into = cards[i];
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t put_text(const char *text, char *into, unsigned int size) {
    if (!into || size <= strlen(text)) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(into, text);
    return NVML_SUCCESS;
}

static double used_mib(const Card *card) {
    Claim claims[MAX_CLAIMS];
    double used = 0;
    int count = read_claims(card->uuid, claims);
    for (int i = 0; i < count; i++) used += claims[i].mib;
    return used < card->total_mib ? used : card->total_mib;
}

/* A driver that fails as long as there is this file. */
static int is_failing(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/failing", folder());
    return access(path, F_OK) == 0;
}

EXPORT nvmlReturn_t nvmlInit_v2(void) {
    Card cards[MAX_CARDS];
    if (is_failing()) return NVML_ERROR_UNKNOWN;
    if (read_cards(cards) < 0) return NVML_ERROR_DRIVER_NOT_LOADED;
    users++;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    return nvmlInit_v2();
}

EXPORT nvmlReturn_t nvmlShutdown(void) {
    if (!users) return NVML_ERROR_UNINITIALIZED;
    users--;
    return NVML_SUCCESS;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case NVML_SUCCESS: return "The operation was successful";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    default: return "Unknown Error";
    }
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    return put_text("580.95.05", version, length);
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    return put_text("13.580.95.05", version, length);
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 13000;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    Card cards[MAX_CARDS];
    int found = read_cards(cards);
    if (!users) return NVML_ERROR_UNINITIALIZED;
    if (found < 0 || is_failing()) return NVML_ERROR_UNKNOWN;
    *count = (unsigned int)found;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    Card cards[MAX_CARDS];
    int count = read_cards(cards);
    if (!users) return NVML_ERROR_UNINITIALIZED;
    if (count < 0 || index >= (unsigned int)count) return NVML_ERROR_INVALID_ARGUMENT;
    return handle_for(cards[index].uuid, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    Card cards[MAX_CARDS];
    int count = read_cards(cards);
    if (!users) return NVML_ERROR_UNINITIALIZED;
    for (int i = 0; i < count; i++)
        if (!strcmp(cards[i].uuid, uuid)) return handle_for(uuid, device);
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    Card card;
    nvmlReturn_t result = card_of(device, &card);
    return result ? result : put_text(card.uuid, uuid, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    Card card;
    nvmlReturn_t result = card_of(device, &card);
    return result ? result : put_text(card.name, name, length);
}

/* Within the visible cards, as NVML counts them. */
EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    Card cards[MAX_CARDS];
    int count = read_cards(cards);
    if (!users) return NVML_ERROR_UNINITIALIZED;
    for (int i = 0; i < count; i++)
        if (!strcmp(cards[i].uuid, device->uuid)) {
            *index = (unsigned int)i;
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    Card card;
    nvmlReturn_t result = card_of(device, &card);
    if (result) return result;
    memory->total = (unsigned long long)(card.total_mib * 1048576.0);
    memory->used = (unsigned long long)(used_mib(&card) * 1048576.0);
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    nvmlMemory_t plain;
    nvmlReturn_t result = nvmlDeviceGetMemoryInfo(device, &plain);
    if (result) return result;
    memory->total = plain.total;
    memory->used = plain.used;
    memory->free = plain.free;
    memory->reserved = 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *room,
                                                            nvmlProcessInfo_t *processes) {
    Card card;
    Claim claims[MAX_CLAIMS];
    nvmlReturn_t result = card_of(device, &card);
    if (result) return result;
    /* as in a container that shares no process ids with the host */
    if (getenv("HOSTLER_SIMULATED_GPUS_HIDE_PROCESSES")) return *room = 0, NVML_SUCCESS;
    unsigned int count = (unsigned int)read_claims(card.uuid, claims), given = *room;
    *room = count;
    if (count > given) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < count; i++) {
        processes[i].pid = claims[i].pid;
        processes[i].usedGpuMemory = (unsigned long long)(claims[i].mib * 1048576.0);
        processes[i].gpuInstanceId = processes[i].computeInstanceId = 0xFFFFFFFFu;
    }
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *room,
                                                            nvmlProcessInfo_t *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, room, processes);
}

EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *room,
                                                             nvmlProcessInfo_t *processes) {
    Card card;
    (void)processes;
    *room = 0;
    return card_of(device, &card);
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    Card card;
    nvmlReturn_t result = card_of(device, &card);
    if (result) return result;
    rates->gpu = 0;
    rates->memory = (unsigned int)(100.0 * used_mib(&card) / card.total_mib);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts) {
    Card card;
    *milliwatts = 60000;
    return card_of(device, &card);
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    Card card;
    nvmlReturn_t result = card_of(device, &card);
    if (result) return result;
    if (!card.has_energy) return NVML_ERROR_NOT_SUPPORTED;
    *millijoules = (unsigned long long)card.energy_mj;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int *celsius) {
    Card card;
    (void)sensor;
    *celsius = 40;
    return card_of(device, &card);
}

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    Card card;
    *major = 9;
    *minor = 0;
    return card_of(device, &card);
}
