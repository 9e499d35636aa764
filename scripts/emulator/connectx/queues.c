/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Queues in the guest's memory: events, completions, and work that is sent and received.
 *
 * A doorbell is a write to a page of the BAR (UAR). A send queue's work is done within it: frames
 * go their way at once (steering.c), and a completion is posted where the driver asked for one.
 */
#include "connectx.h"

/* Of a work queue entry: struct mlx5_wqe_ctrl_seg, mlx5_wqe_eth_seg, mlx5_wqe_data_seg. */
enum {
    CTRL_OPCODE = 3, CTRL_QPN_DS = 4, CTRL_FM_CE_SE = 11,
    ETH = 16, ETH_CS_FLAGS = ETH + 4, ETH_MSS = ETH + 6, ETH_METADATA = ETH + 8,
    ETH_INLINE_SIZE = ETH + 12, ETH_INLINE = ETH + 14,
    SEGMENT = 16, BASIC_BLOCK = 64, MAX_WQE = 63 * SEGMENT,
    OPCODE_SEND = 0x0a, OPCODE_LSO = 0x0e,
    CS_L3 = 1 << 6, CS_L4 = 1 << 7,
    INSERT_VLAN = 1 << 15, INLINE_MASK = 0x3ff,
    BYTE_COUNT_MASK = 0x7fffffff,
};

/* Of a completion: struct mlx5_cqe64. */
enum {
    CQE = 64, CQE_RSS_HASH = 12, CQE_RSS_TYPE = 16, CQE_CHECK_SUM = 20, CQE_FLAGS_RQPN = 24,
    CQE_HDS_IP_EXT = 28, CQE_L4_L3_TYPE = 29, CQE_VLAN = 30, CQE_METADATA = 36, CQE_BYTES = 44,
    CQE_TIMESTAMP = 48, CQE_QPN = 56, CQE_COUNTER = 60, CQE_OP_OWN = 63,
    CQE_REQ = 0, CQE_RESP_SEND = 2,
    L3_OK = 1 << 1, L4_OK = 1 << 2, HAS_VLAN = 1, L3_IPV6 = 1 << 2, L3_IPV4 = 2 << 2,
    L4_TCP = 1 << 4, L4_UDP = 2 << 4,
    RSS_L3 = 3, RSS_L4 = 3 << 2,
};

/* Of an event: struct mlx5_eqe. */
enum { EQE = 64, EQE_TYPE = 1, EQE_SUBTYPE = 3, EQE_DATA = 32, EQE_OWNER = 63 };

/* Doorbells of a UAR page. */
enum { DB_CQ_ARM = 0x20, DB_EQ_ARM = 0x40, DB_EQ_CI = 0x48, DB_BLUE_FLAME = 0x800 };

uint64_t *page_list(const uint8_t *pas, uint64_t bytes, uint8_t log_page)
{
    size_t n = DIV_ROUND_UP(bytes, 1ULL << log_page);
    uint64_t *pages = g_new(uint64_t, n);

    for (size_t i = 0; i < n; i++) {
        pages[i] = ldq_be_p(pas + i * 8) & ~0xfffULL;
    }
    return pages;
}

static uint64_t in_pages(const uint64_t *pages, uint8_t log_page, uint64_t offset)
{
    return pages[offset >> log_page] + (offset & ((1ULL << log_page) - 1));
}

/* ---- events --------------------------------------------------------------------------------- */

void eq_free(Eq *eq)
{
    g_free(eq->pages);
    *eq = (Eq) {};
}

int eqs_in_use(const Fn *fn)
{
    int number = 0;

    for (int i = 0; i < EQS; i++) {
        number += fn->eq[i].used;
    }
    return number;
}

static void eq_interrupt(Fn *fn, Eq *eq)
{
    eq->armed = false;
    if (msix_enabled(fn->pci)) {
        msix_notify(fn->pci, eq->vector);
    }
}

static void eq_post(Fn *fn, Eq *eq, uint8_t type, uint8_t sub, const uint8_t data[28])
{
    uint8_t e[EQE] = { [EQE_TYPE] = type, [EQE_SUBTYPE] = sub };
    uint32_t slot = eq->pi & ((1u << eq->log_size) - 1);

    memcpy(e + EQE_DATA, data, 28);
    e[EQE_OWNER] = eq->pi >> eq->log_size & 1;
    pci_dma_write(fn->pci, in_pages(eq->pages, eq->log_page, slot * (uint64_t)EQE), e, EQE);
    eq->pi++;
    if (eq->armed) {
        eq_interrupt(fn, eq);
    }
}

static Eq *eq_for(Fn *fn, uint8_t type)
{
    for (int i = 0; i < EQS; i++) {
        if (fn->eq[i].used && fn->eq[i].mask >> type & 1) {
            return &fn->eq[i];
        }
    }
    return NULL;
}

bool listens(Fn *fn, uint8_t type)
{
    return eq_for(fn, type) != NULL;
}

bool event(Fn *fn, uint8_t type, uint8_t sub, const uint8_t data[28])
{
    Eq *eq = eq_for(fn, type);

    if (eq) {
        eq_post(fn, eq, type, sub, data);
    }
    return eq;
}

static void eq_doorbell(Fn *fn, uint32_t value, bool arm)
{
    Eq *eq = &fn->eq[value >> 24];

    if (!eq->used) {
        return;
    }
    eq->ci = value & 0xffffff;
    if (arm) {
        eq->armed = true;
        if ((eq->pi ^ eq->ci) & 0xffffff) {
            eq_interrupt(fn, eq);
        }
    }
}

/* ---- completions ---------------------------------------------------------------------------- */

void cq_free(void *p)
{
    Cq *cq = p;

    g_free(cq->pages);
    g_free(cq);
}

static void cq_event(Fn *fn, Cq *cq)
{
    uint8_t data[28] = {};
    Eq *eq = &fn->eq[cq->eqn & 0xff];

    cq->armed = false;
    if (eq->used) {
        stl_be_p(data + 24, cq->number);
        eq_post(fn, eq, EVENT_COMPLETION, 0, data);
    }
}

static void cq_post(Fn *fn, Cq *cq, uint8_t e[CQE], uint8_t opcode)
{
    uint64_t slot = cq->pi & ((1u << cq->log_size) - 1);

    stq_be_p(e + CQE_TIMESTAMP, now_ns());
    e[CQE_OP_OWN] = opcode << 4 | (cq->pi >> cq->log_size & 1);
    slot = (slot << cq->log_stride) + (1u << cq->log_stride) - CQE;
    pci_dma_write(fn->pci, in_pages(cq->pages, cq->log_page, slot), e, CQE);
    cq->pi++;
    if (cq->armed) {
        cq_event(fn, cq);
    }
}

static void cq_doorbell(Fn *fn, uint32_t arm, uint32_t cqn)
{
    Cq *cq = g_hash_table_lookup(fn->cqs, GUINT_TO_POINTER(cqn & 0xffffff));

    if (!cq) {
        return;
    }
    cq->ci = arm & 0xffffff;
    cq->armed = true;
    if ((cq->pi ^ cq->ci) & 0xffffff) {
        cq_event(fn, cq);
    }
}

/* ---- work ----------------------------------------------------------------------------------- */

Wq *wq_new(const uint8_t *x)
{
    Wq *wq = g_new0(Wq, 1);

    wq->log_size = GET(wq, x, log_wq_sz);
    wq->log_stride = GET(wq, x, log_wq_stride);
    wq->log_page = GET(wq, x, log_wq_pg_sz) + 12;
    wq->dbr = GET(wq, x, dbr_addr);
    wq->pages = page_list(x + BYTES(wq), 1ULL << (wq->log_size + wq->log_stride), wq->log_page);
    return wq;
}

void wq_free(void *p)
{
    Wq *wq = p;

    g_free(wq->pages);
    g_free(wq);
}

static Cq *cq_of(Fn *fn, const Wq *wq)
{
    return g_hash_table_lookup(fn->cqs, GUINT_TO_POINTER(wq->cqn));
}

/* Frames of an Ethernet work queue entry: what is inline, then what the data segments point to. */
static void send_frames(Fn *fn, const Wq *sq, const uint8_t *wqe, unsigned bytes)
{
    uint16_t inline_size = lduw_be_p(wqe + ETH_INLINE_SIZE);
    uint8_t cs = wqe[ETH_CS_FLAGS];
    bool large = wqe[CTRL_OPCODE] == OPCODE_LSO;
    g_autofree uint8_t *payload = NULL;
    g_autofree Frame *f = g_new0(Frame, 1);
    uint32_t have = 0, limit = large ? 256 * KiB : FRAME_BYTES - 64;
    unsigned at = ETH + SEGMENT;
    uint16_t insert = inline_size & INSERT_VLAN ? lduw_be_p(wqe + ETH_INLINE) : 0;

    f->from = fn;
    f->sqn = sq->number;
    f->source_port = fn->vport;
    f->reg_a = ldl_be_p(wqe + ETH_METADATA);
    if (!(inline_size & INSERT_VLAN) && (inline_size & INLINE_MASK)) {
        f->length = MIN(inline_size & INLINE_MASK, MIN(bytes - ETH_INLINE, FRAME_BYTES - 64));
        memcpy(f->data, wqe + ETH_INLINE, f->length);
        at += f->length > 2 ? ROUND_UP(f->length - 2, SEGMENT) : 0;
    }
    if (large) {
        payload = g_malloc(limit);
    }
    for (; at + SEGMENT <= bytes; at += SEGMENT) {
        uint32_t n = ldl_be_p(wqe + at) & BYTE_COUNT_MASK;
        uint64_t address = ldq_be_p(wqe + at + 8);
        uint8_t *to = large ? payload + have : f->data + f->length;

        if (n > limit - (large ? have : f->length)) {
            note(fn, "SQ %u: a frame of more than %u bytes", sq->number, limit);
            return;
        }
        pci_dma_read(fn->pci, address, to, n);
        if (large) {
            have += n;
        } else {
            f->length += n;
        }
    }
    if (large) {
        g_autofree Frame *part = g_new0(Frame, 1);

        frame_parse(f);
        for (uint32_t sent = 0; frame_segment(f, payload, have, lduw_be_p(wqe + ETH_MSS), &sent,
                                              part);) {
            if (inline_size & INSERT_VLAN) {
                frame_push_vlan(part, ETH_P_VLAN, insert);
            }
            transmit(fn, part);
        }
        return;
    }
    if (f->length < 14) {
        return;
    }
    frame_parse(f);
    frame_checksums(f, cs & CS_L3, cs & CS_L4);
    if (inline_size & INSERT_VLAN) {
        frame_push_vlan(f, ETH_P_VLAN, insert);
    }
    transmit(fn, f);
}

/* Everything up to the doorbell record is sent, and completed where that was asked for. */
static void sq_doorbell(Fn *fn, uint32_t sqn)
{
    Wq *sq = g_hash_table_lookup(fn->sqs, GUINT_TO_POINTER(sqn));
    Cq *cq = sq ? cq_of(fn, sq) : NULL;
    uint8_t dbr[8], wqe[1024];

    if (!cq) {
        return;
    }
    pci_dma_read(fn->pci, sq->dbr, dbr, 8);
    for (uint16_t end = lduw_be_p(dbr + 6); sq->ci != end;) {
        unsigned bytes, blocks;

        for (blocks = 0, bytes = SEGMENT; blocks * BASIC_BLOCK < bytes; blocks++) {
            uint64_t slot = (uint16_t)(sq->ci + blocks) & ((1u << sq->log_size) - 1);

            pci_dma_read(fn->pci, in_pages(sq->pages, sq->log_page, slot << sq->log_stride),
                         wqe + blocks * BASIC_BLOCK, BASIC_BLOCK);
            if (!blocks) {
                bytes = MAX(wqe[CTRL_QPN_DS + 3] & 0x3f, 1) * SEGMENT;
            }
        }
        if ((uint16_t)(end - sq->ci) < blocks) {
            note(fn, "SQ %u: work of %u blocks beyond the doorbell", sqn, blocks);
            sq->ci = end;
            break;
        }
        uint8_t opcode = wqe[CTRL_OPCODE];
        if ((opcode == OPCODE_SEND || opcode == OPCODE_LSO) && bytes >= 2 * SEGMENT) {
            send_frames(fn, sq, wqe, bytes);
        }
        if ((wqe[CTRL_FM_CE_SE] & 0xc) == 8) {
            uint8_t e[CQE] = {};

            stl_be_p(e + CQE_QPN, (uint32_t)opcode << 24 | sqn);
            stw_be_p(e + CQE_COUNTER, sq->ci);
            cq_post(fn, cq, e, CQE_REQ);
        }
        sq->ci += blocks;
    }
}

/* Into the buffers of the next entry of a receive queue; dropped where it has none. */
void receive(Fn *fn, uint32_t rqn, Frame *f, uint32_t hash)
{
    Wq *rq = g_hash_table_lookup(fn->rqs, GUINT_TO_POINTER(rqn));
    Cq *cq = rq ? cq_of(fn, rq) : NULL;
    uint8_t dbr[4], e[CQE] = {}, types = 0;

    if (!cq || rq->state != WQ_RDY) {
        return;
    }
    pci_dma_read(fn->pci, rq->dbr, dbr, 4);
    if (lduw_be_p(dbr + 2) == rq->ci) {
        return;
    }
    if (!rq->keeps_vlan && frame_tagged(f)) {
        stw_be_p(e + CQE_VLAN, lduw_be_p(f->data + 14));
        frame_pop_vlan(f);
        types |= HAS_VLAN;
    }
    uint64_t slot = (uint64_t)(rq->ci & ((1u << rq->log_size) - 1)) << rq->log_stride;
    uint32_t done = 0;
    for (unsigned at = 0; done < f->length && at < 1u << rq->log_stride; at += SEGMENT) {
        uint8_t segment[SEGMENT];

        pci_dma_read(fn->pci, in_pages(rq->pages, rq->log_page, slot + at), segment, SEGMENT);
        uint32_t n = MIN(f->length - done, ldl_be_p(segment) & BYTE_COUNT_MASK);
        pci_dma_write(fn->pci, ldq_be_p(segment + 8), f->data + done, n);
        done += n;
    }
    if (done < f->length) {
        note(fn, "RQ %u: a frame of %u bytes, room for %u", rqn, f->length, done);
        return;
    }
    if (f->ip_version) {
        types |= f->ip_version == 4 ? L3_IPV4 : L3_IPV6;
        e[CQE_RSS_TYPE] = RSS_L3;
    }
    if (f->l4 && (f->protocol == IP_PROTO_TCP || f->protocol == IP_PROTO_UDP)) {
        types |= f->protocol == IP_PROTO_TCP ? L4_TCP : L4_UDP;
        e[CQE_RSS_TYPE] |= RSS_L4;
        e[CQE_HDS_IP_EXT] = L3_OK | L4_OK;      /* they were computed by this card */
    }
    e[CQE_L4_L3_TYPE] = types;
    stl_be_p(e + CQE_RSS_HASH, hash);
    stw_be_p(e + CQE_CHECK_SUM, frame_sum(f));
    stl_be_p(e + CQE_FLAGS_RQPN, rqn);
    stl_be_p(e + CQE_METADATA, f->reg_b);
    stl_be_p(e + CQE_BYTES, f->length);
    stl_be_p(e + CQE_QPN, f->tag);
    stw_be_p(e + CQE_COUNTER, rq->ci);
    rq->ci++;
    cq_post(fn, cq, e, CQE_RESP_SEND);
}

/* ---- doorbells ------------------------------------------------------------------------------ */

void uar_write(Fn *fn, unsigned offset, uint64_t val, unsigned size)
{
    uint32_t first = bswap32(val), second = bswap32(val >> 32);

    if (offset == DB_EQ_ARM || offset == DB_EQ_CI) {
        eq_doorbell(fn, first, offset == DB_EQ_ARM);
    } else if (offset == DB_CQ_ARM && size == 8) {
        cq_doorbell(fn, first, second);
    } else if (offset >= DB_BLUE_FLAME && size == 8 && !(offset & 0xff)) {
        sq_doorbell(fn, second >> 8);
    }
}
