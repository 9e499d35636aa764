/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The command queue: what firmware does with a command from its doorbell to its answer.
 *
 * A command waits until firmware comes to it, takes its time, and is carried out at the end of that:
 * then its input is read and its answer written. A function has one command at work at a time, and
 * firmware works for `fw-parallel` functions of a PF side by side (0: for all). Without times
 * (`fw-command-us`, `fw-vf-ms`) the answer is there when the doorbell's write is done.
 */
#include "connectx.h"

enum { INPUT_MAILBOX = 8, INPUT = 16, OUTPUT = 32, OUTPUT_MAILBOX = 48, OUTPUT_LENGTH = 56,
       STATUS_OWN = 63, OWNED_BY_FIRMWARE = 1, INLINE = 16, ENTRY = 64,
       MAILBOX = 512, MAILBOX_NEXT = 560, SMALLEST = 8, ROOM = 8192 };

enum { NO_SYNDROME = 0, ANY_SYNDROME = 0x1ab1ab };

/* ---- the log -------------------------------------------------------------------------------- */

static void log_begin(Fn *fn)
{
    FILE *log = fn->pf->log;

    fprintf(log, "%.6f pf%u", now_ns() / 1e9, fn->pf->port);
    if (fn->vport > fn->pf->vfs) {
        fprintf(log, "sf%u", fn->vport - SF_BASE);
    } else if (fn->vport) {
        fprintf(log, "vf%u", fn->vport - 1);
    }
}

/* A line with a remark: "SECONDS FUNCTION # ...". */
void note(Fn *fn, const char *format, ...)
{
    va_list args;

    if (!fn->pf->log) {
        return;
    }
    log_begin(fn);
    fputs(" # ", fn->pf->log);
    va_start(args, format);
    vfprintf(fn->pf->log, format, args);
    va_end(args);
    fputc('\n', fn->pf->log);
    fflush(fn->pf->log);
}

static const char *status_name(int status)
{
    static const char *const names[] = {
        [OK] = "OK", [INT_ERR] = "INT_ERR", [BAD_OP] = "BAD_OP", [BAD_PARAM] = "BAD_PARAM",
        [BAD_SYS_STATE] = "BAD_SYS_STATE", [BAD_RES] = "BAD_RES", [RES_BUSY] = "RES_BUSY",
        [LIM_ERR] = "LIM_ERR", [BAD_RES_STATE] = "BAD_RES_STATE", [NO_RES] = "NO_RES",
    };

    if (status == HELD || status == NEVER) {
        return status == HELD ? "HELD" : "NEVER";
    }
    return status < ARRAY_SIZE(names) && names[status] ? names[status] : "ERROR";
}

/* "SECONDS FUNCTION COMMAND STATUS SYNDROME MICROSECONDS": one for each command, at its end. */
static void log_command(Fn *fn, uint16_t opcode, int status, int64_t since)
{
    const Command *command = command_of(opcode);
    g_autofree char *number = command ? NULL : g_strdup_printf("%#x", opcode);

    if (!fn->pf->log) {
        return;
    }
    log_begin(fn);
    fprintf(fn->pf->log, " %s %s %#x %" PRId64 "\n", command ? command->name : number,
            status_name(status), fn->syndrome, (now_ns() - since) / 1000);
    fflush(fn->pf->log);
}

/* ---- faults --------------------------------------------------------------------------------- */

static bool fault_parse(Fault *fault, char *text)
{
    char *word[5] = {}, *rest = NULL, *syndrome, *end;
    int n = 0;

    for (char *w = strtok_r(text, " ", &rest); w && n < 5; w = strtok_r(NULL, " ", &rest)) {
        word[n++] = w;
    }
    if (n < 2 || n > 4) {
        return false;
    }
    *fault = (Fault) { .count = 1, .vport = ANY, .syndrome = ANY_SYNDROME };
    if (g_str_equal(word[0], "*")) {
        fault->opcode = ANY;
    } else if (command_named(word[0])) {
        fault->opcode = command_named(word[0])->opcode;
    } else {
        fault->opcode = strtol(word[0], &end, 0);
        if (*end) {
            return false;
        }
    }
    syndrome = strchr(word[1], '/');
    if (syndrome) {
        *syndrome++ = 0;
        fault->syndrome = strtoul(syndrome, NULL, 0);
    }
    if (g_str_equal(word[1], "hang")) {
        fault->status = HELD;
    } else if (g_str_equal(word[1], "never")) {
        fault->status = NEVER;
    } else {
        fault->status = strtol(word[1], &end, 0);
        if (*end) {
            return false;
        }
    }
    if (word[2]) {
        fault->count = strtol(word[2], NULL, 0);
    }
    if (word[3]) {
        fault->vport = strtol(word[3], NULL, 0);
    }
    return true;
}

bool faults_parse(Pf *pf, const char *text)
{
    g_auto(GStrv) rules = g_strsplit(text, ";", FAULTS);
    Fault fault[FAULTS];
    unsigned n = 0;

    for (char **rule = rules; *rule; rule++) {
        if (*g_strstrip(*rule) && !fault_parse(&fault[n++], *rule)) {
            return false;
        }
    }
    memcpy(pf->fault, fault, n * sizeof(fault[0]));
    pf->faults = n;
    return true;
}

static Fault *fault_of(Fn *fn, uint16_t opcode)
{
    for (unsigned i = 0; i < fn->pf->faults; i++) {
        Fault *fault = &fn->pf->fault[i];

        if (fault->count && (fault->opcode == ANY || fault->opcode == opcode)
            && (fault->vport == ANY || fault->vport == fn->vport)) {
            return fault;
        }
    }
    return NULL;
}

/* ---- a command ------------------------------------------------------------------------------ */

/* The rest of a message, after the 16 bytes in the queue's entry, is in a chain of mailboxes. */
static void mailboxes(Fn *fn, uint64_t at, uint8_t *data, uint32_t n, bool write)
{
    uint8_t next[8];

    for (uint32_t done = 0; done < n && at; done += MAILBOX) {
        uint32_t part = MIN(MAILBOX, n - done);

        if (write) {
            pci_dma_write(fn->pci, at, data + done, part);
        } else {
            pci_dma_read(fn->pci, at, data + done, part);
        }
        pci_dma_read(fn->pci, at + MAILBOX_NEXT, next, 8);
        at = ldq_be_p(next);
    }
}

static uint64_t entry_of(Fn *fn, unsigned slot)
{
    return fn->queue + (slot << LOG_COMMAND_STRIDE);
}

static bool read_entry(Fn *fn, unsigned slot, uint8_t entry[ENTRY])
{
    pci_dma_read(fn->pci, entry_of(fn, slot), entry, ENTRY);
    fn->inlen = ldl_be_p(entry + 4);
    fn->outlen = ldl_be_p(entry + OUTPUT_LENGTH);
    return entry[STATUS_OWN] & OWNED_BY_FIRMWARE && fn->inlen >= SMALLEST
           && fn->inlen <= MAX_MESSAGE && fn->outlen <= MAX_MESSAGE;
}

static int run(Fn *fn, uint16_t opcode)
{
    const Command *command = command_of(opcode);

    fn->syndrome = ANY_SYNDROME;
    if (!command) {
        note(fn, "command %#x mod %#x is not modelled", opcode, lduw_be_p(fn->in + 6));
        return BAD_OP;
    }
    if (fn->vport && !vport_of(fn->pf, fn->vport)->enabled) {
        return BAD_SYS_STATE;       /* its PF has not enabled it, or not any more */
    }
    return command->run(fn);
}

static void finish(Fn *fn, unsigned slot, bool faultless)
{
    Slot *s = &fn->slot[slot];
    uint8_t entry[ENTRY], data[28] = {};

    s->state = FREE;
    if (!read_entry(fn, slot, entry)) {
        note(fn, "bad entry %u in the command queue", slot);
        return;
    }
    fn->pf->finishing = true;
    uint16_t opcode = lduw_be_p(entry + INPUT);
    Fault *fault = faultless ? NULL : fault_of(fn, opcode);
    int status;

    fn->in = g_malloc0(MAX(fn->inlen, ROOM));
    fn->out = g_malloc0(MAX(fn->outlen, ROOM));
    memcpy(fn->in, entry + INPUT, INLINE);
    if (fn->inlen > INLINE) {
        mailboxes(fn, ldq_be_p(entry + INPUT_MAILBOX), fn->in + INLINE, fn->inlen - INLINE, false);
    }
    /* Creating the queue of command events isn't reported in it: the driver still polls. */
    bool report = listens(fn, EVENT_COMMAND);
    if (fault) {
        fault->count--;
        status = fault->status;
        fn->syndrome = fault->syndrome;
        s->state = status == HELD ? ON_HOLD : status == NEVER ? LOST : FREE;
    } else {
        status = run(fn, opcode);
    }
    if (!status) {
        fn->syndrome = NO_SYNDROME;
    }
    log_command(fn, opcode, status, s->since);
    if (s->state == FREE) {
        if (status) {
            memset(fn->out, 0, fn->outlen);
            fn->out[0] = status;
            stl_be_p(fn->out + 4, fn->syndrome);
        }
        memcpy(entry + OUTPUT, fn->out, INLINE);
        if (fn->outlen > INLINE) {
            mailboxes(fn, ldq_be_p(entry + OUTPUT_MAILBOX), fn->out + INLINE, fn->outlen - INLINE,
                      true);
        }
        entry[STATUS_OWN] = 0;      /* delivered; the software's again */
        pci_dma_write(fn->pci, entry_of(fn, slot) + OUTPUT, entry + OUTPUT, ENTRY - OUTPUT);
        stl_be_p(data, 1u << slot);
        if (report) {
            event(fn, EVENT_COMMAND, 0, data);
        }
    }
    g_clear_pointer(&fn->in, g_free);
    g_clear_pointer(&fn->out, g_free);
    fn->pf->finishing = false;
}

/* ---- time ----------------------------------------------------------------------------------- */

/*
 * How long a function that was at work takes at least to start again, as in `devlink dev reload`: no
 * firmware is quicker. mlx5_core (Linux 6.12) relies on that. It clears its pointer to an auxiliary
 * device when the last reference to it is gone, for "eth" after an RCU grace period (adev_release(),
 * dev.c; devlink_release()). If the next one has been made by then, the pointer to that one is lost:
 * the driver never removes it, and panics when its interface outlives the function.
 */
#define REST_NS (100 * 1000000LL)

/*
 * What a VF's start costs is with CREATE_EQ of its second event queue, what its end costs with
 * DESTROY_EQ of the last but two (create_async_eqs(), destroy_async_eqs()): the first and the last
 * command for which the driver sleeps. For all others of its start and its end it reads the entry
 * in a loop (poll_timeout()), which would cost the emulator a processor for as long.
 */
static int64_t time_of(Fn *fn, unsigned slot)
{
    uint8_t entry[ENTRY];
    int64_t ns = fn->pf->command_us * 1000LL;
    int64_t rest = fn->ended + REST_NS - (int64_t)now_ns();

    if (((fn->vport && fn->pf->vf_ms) || rest > 0) && read_entry(fn, slot, entry)) {
        uint16_t opcode = lduw_be_p(entry + INPUT);
        int queues = eqs_in_use(fn);
        bool starts = opcode == MLX5_CMD_OP_CREATE_EQ && queues == 1;
        bool ends = opcode == MLX5_CMD_OP_DESTROY_EQ && queues == ASYNC_EQS;

        if (fn->vport && (starts || ends)) {
            ns += fn->pf->vf_ms * 1000000LL;
        }
        if (starts && ns < rest) {
            ns = rest;
        }
    }
    return ns;
}

static int first_waiting(Fn *fn)
{
    int first = -1;

    for (int i = 0; i < COMMAND_SLOTS; i++) {
        if (fn->slot[i].state == WAITING
            && (first < 0 || fn->slot[i].order < fn->slot[first].order)) {
            first = i;
        }
    }
    return first;
}

/* Begin all that firmware has hands for, in the order of arrival. */
static void work(Pf *pf)
{
    GList *next;

    if (pf->finishing) {
        return;     /* whoever finishes comes back */
    }
    for (GList *at = pf->waiting.head; at; at = next) {
        Fn *fn = at->data;

        next = at->next;
        if (fn->busy >= 0) {
            continue;
        }
        int slot = first_waiting(fn);
        int64_t ns = time_of(fn, slot);

        if (ns && pf->parallel && pf->working >= pf->parallel) {
            continue;   /* what takes no time needs no hand */
        }
        g_queue_delete_link(&pf->waiting, at);
        if (ns) {
            fn->slot[slot].state = RUNNING;
            fn->busy = slot;
            fn->due = now_ns() + ns;
            pf->working++;
            timer_mod(fn->done, fn->due);
        } else {
            finish(fn, slot, false);
            next = pf->waiting.head;
        }
    }
}

static void done(void *opaque)
{
    Fn *fn = opaque;
    int slot = fn->busy;

    fn->busy = -1;
    fn->pf->working--;
    finish(fn, slot, false);
    work(fn->pf);
}

static gint by_order(gconstpointer a, gconstpointer b, gpointer unused)
{
    const Fn *f = a, *g = b;
    int i = first_waiting((Fn *)f), j = first_waiting((Fn *)g);

    return i < 0 || j < 0 || f->slot[i].order < g->slot[j].order ? -1 : 1;
}

void command_doorbell(Fn *fn, uint32_t slots)
{
    for (unsigned i = 0; i < COMMAND_SLOTS; i++) {
        if (slots >> i & 1) {
            fn->slot[i] = (Slot) { WAITING, fn->pf->arrivals++, now_ns() };
            g_queue_push_tail(&fn->pf->waiting, fn);
        }
    }
    work(fn->pf);
}

/* What hung is carried out now. */
static void release(Fn *fn)
{
    for (unsigned i = 0; fn && i < COMMAND_SLOTS; i++) {
        if (fn->slot[i].state == ON_HOLD) {
            finish(fn, i, true);
        }
    }
}

void release_held(Pf *pf)
{
    for (uint16_t i = 0; i <= pf->vfs; i++) {
        release(fn_of_vport(pf, i));
    }
    for (uint16_t i = 0; i < pf->sfs; i++) {
        release(pf->sf[i]);
    }
}

void firmware_init(Fn *fn)
{
    fn->busy = -1;
    fn->done = timer_new_ns(QEMU_CLOCK_VIRTUAL, done, fn);
}

/* The function was reset: nothing of what it asked for is answered. */
void firmware_forget(Fn *fn)
{
    Pf *pf = fn->pf;
    bool was_busy = fn->busy >= 0;

    memset(fn->slot, 0, sizeof(fn->slot));
    while (g_queue_remove(&pf->waiting, fn)) {
    }
    timer_del(fn->done);
    fn->busy = -1;
    if (was_busy) {
        pf->working--;
        work(pf);
    }
}

void firmware_exit(Fn *fn)
{
    firmware_forget(fn);
    timer_free(fn->done);
}

void firmware_resume(Fn *fn)
{
    for (unsigned i = 0; i < COMMAND_SLOTS; i++) {
        if (fn->slot[i].state == WAITING) {
            g_queue_insert_sorted(&fn->pf->waiting, fn, by_order, NULL);
        }
    }
    if (fn->busy >= 0) {
        fn->pf->working++;
        timer_mod(fn->done, fn->due);
    }
}
