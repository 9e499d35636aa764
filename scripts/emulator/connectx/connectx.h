/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A ConnectX for QEMU: the state of a card's functions, and what its parts offer each other.
 *
 *   mlx5fw.c        PCI: functions, BAR 0 (initialization segment, doorbells), properties, reset
 *   firmware.c      the command queue: firmware's time, faults, answers, the log
 *   commands.c      a handler for each command
 *   capabilities.c  what QUERY_HCA_CAP tells
 *   registers.c     ACCESS_REG: registers of the port and of the device
 *   queues.c        event, completion, send and receive queues in the guest's memory
 *   steering.c      flow tables, and the way of a frame through them: NIC, eswitch, NIC
 *   frames.c        frames as steering sees them: headers, checksums, VLAN tags, segmentation
 *   saved.c         all of this in a saved state
 *
 * Layouts of commands, contexts and registers are those of mlx5_ifc.h (the kernel's headers, dual
 * GPL-2.0 / OpenIB BSD): a field's width in bits is there a member's size in bytes.
 */
#ifndef CONNECTX_H
#define CONNECTX_H

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "hw/pci/msix.h"
#include "hw/pci/pci_bus.h"
#include "hw/pci/pci_device.h"
#include "hw/pci/pcie.h"
#include "hw/pci/pcie_sriov.h"
#include "net/eth.h"
#include "net/net.h"

typedef uint8_t u8;
#define DECLARE_FLEX_ARRAY(type, name) type name[0]
#include "mlx5_ifc/mlx5_ifc.h"
typedef uint64_t u64;
#include "mlx5_ifc/mlx5_ifc_vdpa.h"

/* ---- fields of big-endian bit streams ------------------------------------------------------- */

static inline uint64_t get_bits(const uint8_t *p, unsigned off, unsigned n)
{
    uint64_t v = 0;

    if (off % 8 == 0 && n % 8 == 0) {
        for (p += off / 8; n; n -= 8) {
            v = v << 8 | *p++;
        }
        return v;
    }
    for (unsigned i = off; i < off + n; i++) {
        v = v << 1 | (p[i / 8] >> (7 - i % 8) & 1);
    }
    return v;
}

static inline void set_bits(uint8_t *p, unsigned off, unsigned n, uint64_t v)
{
    for (unsigned i = off + n; i-- > off; v >>= 1) {
        uint8_t m = 0x80 >> i % 8;

        p[i / 8] = v & 1 ? p[i / 8] | m : p[i / 8] & ~m;
    }
}

#define IFC(t) struct mlx5_ifc_##t##_bits
#define OFF(t, f) offsetof(IFC(t), f)
#define WIDTH(t, f) sizeof(((IFC(t) *)0)->f)
#define GET(t, p, f) get_bits((p), OFF(t, f), WIDTH(t, f))
#define SET(t, p, f, v) set_bits((p), OFF(t, f), WIDTH(t, f), (v))
#define AT(t, p, f) ((p) + OFF(t, f) / 8)
#define BYTES(t) (sizeof(IFC(t)) / 8)
#define ONES(t, p, f) memset(AT(t, p, f), 0xff, WIDTH(t, f) / 8)

/* ---- numbers that mlx5_ifc.h has no names for ------------------------------------------------- */

#define TYPE_PF "mlx5fw"
#define TYPE_VF "mlx5fw-vf"

/* enum mlx5_cap_type, which is in the driver's device.h */
enum {
    MLX5_CAP_GENERAL = 0x0, MLX5_CAP_ETHERNET_OFFLOADS = 0x1, MLX5_CAP_ATOMIC = 0x3,
    MLX5_CAP_ROCE = 0x4, MLX5_CAP_FLOW_TABLE = 0x7, MLX5_CAP_ESWITCH_FLOW_TABLE = 0x8,
    MLX5_CAP_ESWITCH = 0x9, MLX5_CAP_QOS = 0xc, MLX5_CAP_VDPA_EMULATION = 0x13,
    MLX5_CAP_GENERAL_2 = 0x20, MLX5_CAP_PORT_SELECTION = 0x25,
};

enum {
    PAGE = 4096,
    FIRST_UAR = 16,             /* pages of the BAR before it: initialization segment, MSI-X */
    UARS = 8192,
    EQS = 256, ASYNC_EQS = 3,   /* of the latter: commands, events, pages */
    COMMAND_SLOTS = 32, LOG_COMMAND_SLOTS = 5, LOG_COMMAND_STRIDE = 6,
    MAX_MESSAGE = 1 * MiB,
    CAP_BYTES = 4096, CAP_TYPES = 64,
    PF_VECTORS = 64, VF_VECTORS = 16,
    UPLINK = 0xffff,            /* number of the vport that is the wire */
    SF_BASE = 0x8000,           /* number of the first subfunction's vport */
    LOG_SF_BAR = 20,
    MAX_LIST = 1024,            /* addresses or VLANs of a vport */
    MATCH_BYTES = BYTES(fte_match_param),
    FRAME_BYTES = 12 * KiB,
    FAULTS = 16,
    SRIOV_CAP = 0x160,
    ANY = -1,
};

/* Status of a command: MLX5_CMD_STAT_* of the driver's device.h. */
enum {
    OK = 0, INT_ERR = 1, BAD_OP = 2, BAD_PARAM = 3, BAD_SYS_STATE = 4, BAD_RES = 5, RES_BUSY = 6,
    LIM_ERR = 8, BAD_RES_STATE = 9, NO_RES = 0xf,
    NEVER = 0xff,               /* of a fault: the command is not answered */
    HELD = 0x1ff,               /* of a fault: not before it is released */
};

/* Events: MLX5_EVENT_TYPE_*. */
enum {
    EVENT_COMPLETION = 0, EVENT_PORT = 0x9, EVENT_COMMAND = 0xa, EVENT_PAGES = 0xb,
    EVENT_NIC_VPORT = 0xd, EVENT_VHCA_STATE = 0xf,
};

/* Types of flow tables: enum fs_flow_table_type. */
enum {
    NIC_RX = 0, NIC_TX = 1, ACL_EGRESS = 2, ACL_INGRESS = 3, FDB = 4, RDMA_RX = 7, RDMA_TX = 8,
    PORT_SELECTION = 9, TABLE_TYPES = 16,
};

/* ---- state ---------------------------------------------------------------------------------- */

typedef struct Fn Fn;
typedef struct Pf Pf;

typedef struct Eq {
    bool used, armed;
    uint8_t log_size, log_page;
    uint16_t vector;
    uint32_t pi, ci;
    uint64_t mask;
    uint64_t *pages;
} Eq;

typedef struct Cq {
    uint32_t number, eqn, pi, ci;
    uint8_t log_size, log_page, log_stride;
    bool armed;
    uint64_t *pages;
} Cq;

/* A send or receive queue: a ring of work queue entries, and a doorbell record. */
typedef struct Wq {
    uint32_t number, cqn;
    uint16_t ci;
    uint8_t state;              /* RST, RDY, -, ERR */
    uint8_t log_size, log_page, log_stride;
    bool keeps_vlan;            /* vsd of a receive queue: VLAN stripping is disabled */
    uint32_t tag;               /* user_index */
    uint64_t dbr, *pages;
} Wq;

enum { WQ_RST = 0, WQ_RDY = 1, WQ_ERR = 3 };

/* What a command made and others refer to: kept as its input. One number space for all kinds. */
typedef struct Kept {
    uint32_t id;
    uint16_t made_by;           /* opcode */
    uint32_t length;
    uint8_t *in;
} Kept;

typedef struct Group {
    uint32_t id;
    unsigned words;             /* of the criteria, that aren't zero: */
    uint8_t word[MATCH_BYTES / 8];
    uint64_t mask[MATCH_BYTES / 8];
} Group;

typedef struct Rule {
    uint32_t index, length;
    uint8_t *in;                /* SET_FLOW_TABLE_ENTRY */
    Group *group;
    uint64_t value[MATCH_BYTES / 8];
} Rule;

typedef struct Table {
    uint32_t id, miss_id;
    uint8_t type, level, miss_action;
    GHashTable *groups;
    GPtrArray *rules;           /* by index */
} Table;

typedef struct Traffic {
    uint64_t packets, octets;
} Traffic;

enum { UNICAST, MULTICAST, BROADCAST, CASTS };
enum { RECEIVED, TRANSMITTED, DIRECTIONS };

/* What an eswitch knows of a port: of the PF (0), each VF (1 up), each subfunction, the wire. */
typedef struct Vport {
    uint8_t nic[BYTES(nic_vport_context)];
    uint8_t esw[BYTES(esw_vport_context)];
    uint8_t hca[BYTES(hca_vport_context)];
    uint8_t admin;              /* down, up, auto */
    uint16_t mtu;               /* of PMTU: what goes over the wire, headers and all */
    struct { uint16_t n; uint8_t e[MAX_LIST][8]; } list[3];     /* unicast, multicast, VLANs */
    uint8_t *cap[CAP_TYPES];    /* set with other_function: the function's limits */
    bool enabled;               /* ENABLE_HCA, by the PF */
    uint8_t sf_state;           /* enum mlx5_ifc_vhca_state */
    bool unseen;                /* a change of nic that came while nobody had asked to hear of it */
    bool sf_armed;
    uint32_t sf_number;         /* the user's */
    uint32_t acl[2];            /* root tables: egress, ingress */
    Traffic traffic[DIRECTIONS][CASTS];
    PCIDevice *pci;             /* the VF, there or not */
    GArray *pages;              /* that the PF gave for the function */
} Vport;

typedef enum { FREE, WAITING, RUNNING, ON_HOLD, LOST } SlotState;

typedef struct Slot {
    uint8_t state;
    uint64_t order;             /* of arrival */
    int64_t since;              /* ns */
} Slot;

/* A function: what a PF, a VF and a subfunction have in common. */
struct Fn {
    PCIDevice *pci;             /* whose memory and interrupts it uses */
    MemoryRegion regs;
    Pf *pf;
    uint16_t vport;
    uint32_t bar_pages;
    uint64_t queue;
    uint32_t queue_low;
    uint16_t issi;
    bool running;               /* INIT_HCA was, TEARDOWN_HCA wasn't */
    bool stopped;               /* at work, by DISABLE_HCA: its driver has to begin anew */
    int64_t ended;              /* ns; when it was last running, if it isn't */
    Slot slot[COMMAND_SLOTS];
    int busy;                   /* slot that firmware works at, or -1 */
    QEMUTimer *done;
    int64_t due;
    uint8_t *cur[CAP_TYPES];
    Eq eq[EQS];
    GHashTable *cqs, *sqs, *rqs, *objects, *tables, *counters;
    uint32_t root[TABLE_TYPES];
    uint16_t root_vhca;         /* whose table root[FDB] is */
    uint32_t last_id;
    uint32_t uar_used[UARS / 32];
    GArray *pages;
    uint8_t *saved;
    uint32_t saved_len;
    /* The command at work. */
    uint8_t *in, *out;
    uint32_t inlen, outlen, syndrome;
};

typedef struct Fault {
    int opcode, status, count, vport;
    uint32_t syndrome;
} Fault;

struct Pf {
    PCIDevice pci;
    MemoryRegion bar, sf_bar;
    Fn fn;
    MACAddr mac;
    uint16_t vfs, vf_offset, vhca, sfs;
    uint8_t port, next, inline_mode;
    uint32_t vf_pages;
    uint64_t guid;
    bool lag;                   /* the card's ports can be bonded */
    bool infiniband;
    bool vdpa;                  /* its VFs and subfunctions can be vDPA devices */
    bool wire;                  /* the card's ports are on one network */
    char *log_path;
    FILE *log;
    /* Set at any time. */
    uint32_t command_us, command_timeout_s, vf_ms, parallel, health, health_vf, speed;
    bool initializing, dead, lag_needs_unbound;
    Fault fault[FAULTS];
    unsigned faults;
    char *fault_text;
    bool unplugged;
    /* Firmware. */
    uint8_t port_admin;
    bool port_up, lag_active;
    uint32_t eth_proto_admin;
    bool finishing;             /* a command is being carried out */
    unsigned working;           /* functions that firmware works for right now */
    uint64_t arrivals;
    GQueue waiting;             /* functions, one entry for each waiting command */
    GHashTable *registers;
    uint8_t lagc[BYTES(lagc)];
    Vport *vports;              /* PF, VFs, subfunctions, the wire */
    Fn **sf;
};

typedef struct Vf {
    PCIDevice pci;
    MemoryRegion bar;
    Fn fn;
} Vf;

DECLARE_INSTANCE_CHECKER(Pf, PF, TYPE_PF)
DECLARE_INSTANCE_CHECKER(Vf, VF, TYPE_VF)

/* ---- mlx5fw.c ------------------------------------------------------------------------------- */

Fn *fn_of_vport(Pf *pf, uint16_t vport);
Vport *vport_of(Pf *pf, uint16_t vport);
uint32_t vports(const Pf *pf);
Pf *pf_of_vhca(Pf *pf, uint16_t vhca);      /* on the same card */
Pf *next_pf(Pf *pf, Pf *after);             /* each PF of the card but this one; NULL: from the first */
void fn_release(Fn *fn);                    /* all that commands have made */
uint64_t now_ns(void);

/* ---- firmware.c ----------------------------------------------------------------------------- */

void firmware_init(Fn *fn);
void firmware_forget(Fn *fn);
void firmware_exit(Fn *fn);
void command_doorbell(Fn *fn, uint32_t slots);
void firmware_resume(Fn *fn);               /* after its state is loaded */
bool faults_parse(Pf *pf, const char *text);
void release_held(Pf *pf);
void note(Fn *fn, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* ---- commands.c ----------------------------------------------------------------------------- */

typedef struct Command {
    uint16_t opcode;
    const char *name;
    uint8_t (*run)(Fn *fn);
} Command;

const Command *command_of(uint16_t opcode);
const Command *command_named(const char *name);
void set_port(Pf *pf, bool up);
void ask_for_pages(Pf *pf, uint16_t function, int32_t pages);
void sf_drop_all(Pf *pf);                   /* their ports; their drivers begin by themselves */
bool vport_up(Pf *pf, uint16_t vport);

/* ---- capabilities.c, registers.c ------------------------------------------------------------ */

void cap_default(Pf *pf, uint16_t vport, unsigned type, bool current, uint8_t *c);
uint8_t access_register(Fn *fn);

/* ---- queues.c ------------------------------------------------------------------------------- */

uint64_t *page_list(const uint8_t *pas, uint64_t bytes, uint8_t log_page);
bool listens(Fn *fn, uint8_t type);
bool event(Fn *fn, uint8_t type, uint8_t sub, const uint8_t data[28]);
void uar_write(Fn *fn, unsigned offset, uint64_t val, unsigned size);
void eq_free(Eq *eq);
int eqs_in_use(const Fn *fn);
void cq_free(void *cq);
void wq_free(void *wq);
Wq *wq_new(const uint8_t *wq_context);

/* ---- frames.c ------------------------------------------------------------------------------- */

typedef struct Frame {
    Fn *from;                   /* NULL: the wire */
    uint32_t sqn, tag, length;
    uint16_t source_port, source_vhca;
    uint16_t vlan;              /* a tag taken off, with VLAN_TAKEN */
    uint32_t reg_a, reg_b, reg_c[8];
    uint32_t l3, l4;            /* offsets, 0: none */
    uint8_t ip_version, protocol;
    uint64_t key[MATCH_BYTES / 8];      /* fte_match_param */
    uint8_t data[FRAME_BYTES];
} Frame;

Frame *frame_copy(const Frame *f);
void frame_parse(Frame *f);
void frame_push_vlan(Frame *f, uint16_t ethertype, uint16_t tci);
void frame_pop_vlan(Frame *f);
bool frame_tagged(const Frame *f);
void frame_checksums(Frame *f, bool l3, bool l4);
uint16_t frame_sum(const Frame *f);         /* of what follows the Ethernet header */
uint32_t frame_hash(const Frame *f);
unsigned frame_cast(const Frame *f);
/* The next segment of a large one; false: none left. */
bool frame_segment(const Frame *large, const uint8_t *payload, uint32_t bytes, uint32_t mss,
                   uint32_t *at, Frame *out);

/* ---- steering.c ----------------------------------------------------------------------------- */

void table_free(void *table);
Table *table_new(uint32_t id, uint8_t type);
void group_add(Table *table, uint32_t id, const uint8_t *criteria);
bool group_remove(Table *table, uint32_t id);
void rule_set(Table *table, const uint8_t *in, uint32_t length);
void rule_delete(Table *table, uint32_t index);
void transmit(Fn *fn, Frame *f);
void receive(Fn *fn, uint32_t rqn, Frame *f, uint32_t hash);    /* queues.c */

/* ---- saved.c -------------------------------------------------------------------------------- */

extern const VMStateDescription pf_saved, vf_saved;

#endif
