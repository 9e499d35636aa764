/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * ACCESS_REG: the registers of a port and of the device.
 *
 * A port's registers are the PF's, whoever asks, and outlast a reload of the driver, as those of
 * firmware do. What a register holds that was never written is a ConnectX's default: trust in PCP,
 * strict priority, every priority in a class of its own, one lossy buffer.
 */
#include "connectx.h"

/* enum of the driver's driver.h */
enum {
    QPTS = 0x4002, QETCR = 0x4005, QTCT = 0x400a, QPDPM = 0x4013, QCAM = 0x4019,
    DCBX_PARAM = 0x4020, PMLP = 0x5002, PMTU = 0x5003, PTYS = 0x5004, PAOS = 0x5006,
    PFCC = 0x5007, PPCNT = 0x5008, PPTB = 0x500b, PBMC = 0x500c, PVLC = 0x500f, PPLM = 0x5023,
    PCAM = 0x507f, HOST_ENDIANNESS = 0x7004, MPCNT = 0x9051, MCQS = 0x9060, MCQI = 0x9061,
    MCAM = 0x907f, SBPR = 0xb001, SBCM = 0xb002, SBCAM = 0xb01f, DTOR = 0xc00e,
};

enum {
    MAX_MTU = 10000, IB_MTU = 4096, CELL = 96, BUFFER_CELLS = 2744, DEFAULT_BUFFER_CELLS = 2730,
    PRIORITIES = 8, BUFFERS = 8, LANES = 4,
    WRITE = 0, ARGUMENTS = BYTES(access_register_in),
    FIRMWARE_ONLY = 1, IDLE = 1, INFO_VERSION = 1, SPEED_MASK_ETHERNET = 4,
    TRUST_PCP = 1, COPPER = 5, UP = 1, DOWN = 2,
    BW_UNITS_NONE = 0,
};

/* What the port can do, of MLX5E_LINK_MODE of the driver's port.h. */
static const struct { uint32_t speed; uint8_t mode; } speeds[] = {
    { 100000, 20 }, { 50000, 30 }, { 40000, 6 }, { 25000, 27 }, { 10000, 12 },
};

static uint32_t modes_up_to(uint32_t speed)
{
    uint32_t modes = 0;

    for (size_t i = 0; i < ARRAY_SIZE(speeds); i++) {
        modes |= speeds[i].speed <= speed ? 1u << speeds[i].mode : 0;
    }
    return modes;
}

/* The fastest that is allowed. */
static uint32_t mode_at_work(Pf *pf)
{
    uint32_t allowed = modes_up_to(pf->speed) & pf->eth_proto_admin;

    for (size_t i = 0; pf->port_up && i < ARRAY_SIZE(speeds); i++) {
        if (allowed >> speeds[i].mode & 1) {
            return 1u << speeds[i].mode;
        }
    }
    return 0;
}

/* Memory of a register, made at its first use with the default. */
static uint8_t *kept(Pf *pf, unsigned id, unsigned index, size_t bytes, bool *fresh)
{
    uint64_t key = (uint64_t)id << 32 | index;
    GByteArray *held = g_hash_table_lookup(pf->registers, &key);

    *fresh = !held;
    if (!held) {
        held = g_byte_array_new();
        g_hash_table_insert(pf->registers, g_memdup2(&key, 8), held);
    }
    if (held->len < bytes) {
        size_t had = held->len;

        g_byte_array_set_size(held, bytes);
        memset(held->data + had, 0, bytes - had);
    }
    return held->data;
}

/* Enhanced transmission selection: a write names what of each class it is about. */
static void qetcr(Pf *pf, bool read, const uint8_t *w, uint8_t *r)
{
    bool fresh;
    uint8_t *held = kept(pf, QETCR, 0, BYTES(qetc_reg), &fresh);

    for (unsigned i = 0; i < PRIORITIES; i++) {
        unsigned at = OFF(qetc_reg, tc_configuration) / 8 + i * BYTES(ets_tcn_config_reg);
        uint8_t *to = held + at;
        const uint8_t *from = w + at;

        if (fresh) {
            SET(ets_tcn_config_reg, to, group, PRIORITIES - 1);
            SET(ets_tcn_config_reg, to, bw_allocation, 100);
        }
        if (!read && GET(ets_tcn_config_reg, from, g)) {
            SET(ets_tcn_config_reg, to, group, GET(ets_tcn_config_reg, from, group));
        }
        if (!read && GET(ets_tcn_config_reg, from, b)) {
            SET(ets_tcn_config_reg, to, bw_allocation,
                GET(ets_tcn_config_reg, from, bw_allocation));
        }
        if (!read && GET(ets_tcn_config_reg, from, r)) {
            SET(ets_tcn_config_reg, to, max_bw_units, GET(ets_tcn_config_reg, from, max_bw_units));
            SET(ets_tcn_config_reg, to, max_bw_value, GET(ets_tcn_config_reg, from, max_bw_value));
        }
    }
    memcpy(r, held, BYTES(qetc_reg));
}

static void qtct(Pf *pf, bool read, const uint8_t *w, uint8_t *r)
{
    bool fresh;
    unsigned priority = GET(qtct_reg, w, prio);
    uint8_t *held = kept(pf, QTCT, priority, BYTES(qtct_reg), &fresh);

    if (fresh) {
        SET(qtct_reg, held, prio, priority);
        SET(qtct_reg, held, tclass, priority);
    }
    if (!read) {
        SET(qtct_reg, held, tclass, GET(qtct_reg, w, tclass));
    }
    memcpy(r, held, BYTES(qtct_reg));
}

/* Trust in DSCP: a priority for each, by default its upper three bits. A write names entries. */
static void qpdpm(Pf *pf, bool read, const uint8_t *w, uint8_t *r)
{
    bool fresh;
    uint8_t *held = kept(pf, QPDPM, 0, BYTES(qpdpm_reg), &fresh);

    for (unsigned i = 0; i < 64; i++) {
        unsigned at = OFF(qpdpm_reg, dscp) / 8 + i * BYTES(qpdpm_dscp_reg);

        if (fresh) {
            SET(qpdpm_dscp_reg, held + at, prio, i >> 3);
        }
        if (!read && GET(qpdpm_dscp_reg, w + at, e)) {
            SET(qpdpm_dscp_reg, held + at, prio, GET(qpdpm_dscp_reg, w + at, prio));
        }
    }
    memcpy(r, held, BYTES(qpdpm_reg));
}

/* Flow control: of priorities where the masks name some, else global pause. One excludes the other. */
static void pfcc(Pf *pf, bool read, const uint8_t *w, uint8_t *r)
{
    bool fresh;
    uint8_t *held = kept(pf, PFCC, 0, BYTES(pfcc_reg), &fresh);

    if (fresh) {
        SET(pfcc_reg, held, pptx, 1);
        SET(pfcc_reg, held, pprx, 1);
    }
    if (!read) {
        uint8_t tx = GET(pfcc_reg, w, prio_mask_tx), rx = GET(pfcc_reg, w, prio_mask_rx);

        if (tx | rx) {
            SET(pfcc_reg, held, pfctx,
                (GET(pfcc_reg, held, pfctx) & ~tx) | (GET(pfcc_reg, w, pfctx) & tx));
            SET(pfcc_reg, held, pfcrx,
                (GET(pfcc_reg, held, pfcrx) & ~rx) | (GET(pfcc_reg, w, pfcrx) & rx));
        } else if (!GET(pfcc_reg, w, pptx_mask_n)) {
            SET(pfcc_reg, held, pptx, GET(pfcc_reg, w, pptx));
            SET(pfcc_reg, held, pprx, GET(pfcc_reg, w, pprx));
        }
        if (GET(pfcc_reg, held, pfctx) | GET(pfcc_reg, held, pfcrx)) {
            SET(pfcc_reg, held, pptx, 0);
            SET(pfcc_reg, held, pprx, 0);
        }
    }
    memcpy(r, held, BYTES(pfcc_reg));
}

/* Receive buffers, in cells: all of the room is in the first, and lossy. */
static void pbmc(Pf *pf, bool read, const uint8_t *w, uint8_t *r)
{
    bool fresh;
    uint8_t *held = kept(pf, PBMC, 0, BYTES(pbmc_reg), &fresh);

    if (fresh) {
        uint8_t *first = AT(pbmc_reg, held, buffer);

        SET(pbmc_reg, held, port_buffer_size, BUFFER_CELLS);
        for (unsigned i = 0; i < BUFFERS; i++) {
            SET(bufferx_reg, first + i * BYTES(bufferx_reg), lossy, 1);
        }
        SET(bufferx_reg, first, size, DEFAULT_BUFFER_CELLS);
    }
    if (!read) {
        memcpy(AT(pbmc_reg, held, buffer), AT(pbmc_reg, w, buffer), BUFFERS * BYTES(bufferx_reg));
    }
    memcpy(r, held, BYTES(pbmc_reg));
}

static void ptys(Pf *pf, bool read, const uint8_t *w, uint8_t *r)
{
    if (!read) {
        pf->eth_proto_admin = GET(ptys_reg, w, eth_proto_admin);
    }
    SET(ptys_reg, r, eth_proto_capability, modes_up_to(100000));
    SET(ptys_reg, r, eth_proto_admin, pf->eth_proto_admin);
    SET(ptys_reg, r, eth_proto_oper, mode_at_work(pf));
    SET(ptys_reg, r, an_disable_cap, 1);
    SET(ptys_reg, r, an_status, pf->port_up);
    SET(ptys_reg, r, connector_type, COPPER);
    if (pf->infiniband) {       /* EDR, 4 lanes */
        SET(ptys_reg, r, ib_link_width_oper, 2);
        SET(ptys_reg, r, ib_proto_oper, 32);
        SET(ptys_reg, r, ib_link_width_capability, 3);
        SET(ptys_reg, r, ib_proto_capability, 63);
    }
}

/* Tells which of the others there are. */
static void capability_register(unsigned id, uint8_t *r)
{
    bool first_group = r[3] == 0;       /* access_reg_group */

    switch (id) {
    case PCAM:
        SET(pcam_reg, r, port_access_reg_cap_mask.regs_5000_to_507f.pbmc, 1);
        SET(pcam_reg, r, port_access_reg_cap_mask.regs_5000_to_507f.pptb, 1);
        SET(pcam_reg, r, feature_cap_mask.enhanced_features.ptys_connector_type, 1);
        break;
    case MCAM:      /* what tells the firmware's version */
        if (first_group) {
            SET(mcam_reg, r, mng_access_reg_cap_mask.access_regs.mcqs, 1);
            SET(mcam_reg, r, mng_access_reg_cap_mask.access_regs.mcqi, 1);
        }
        break;
    case QCAM:
        SET(qcam_reg, r, qos_access_reg_cap_mask.reg_cap.qpts, 1);
        SET(qcam_reg, r, qos_access_reg_cap_mask.reg_cap.qpdpm, 1);
        break;
    }
}

uint8_t access_register(Fn *fn)
{
    unsigned id = GET(access_register_in, fn->in, register_id), index = 0;
    bool read = GET(access_register_in, fn->in, op_mod) != WRITE, fresh;
    uint8_t *r = fn->out + ARGUMENTS, *w = fn->in + ARGUMENTS, *held;
    Pf *pf = fn->pf;
    Vport *v = vport_of(pf, fn->vport);

    if (fn->inlen < ARGUMENTS || fn->outlen < ARGUMENTS) {
        return BAD_PARAM;
    }
    uint32_t n = MIN(fn->inlen, fn->outlen) - ARGUMENTS;
    note(fn, "%s register %#x", read ? "read" : "write", id);
    memcpy(r, w, n);
    if (!read && fn->vport && id != PMTU) {
        return OK;      /* a port is its PF's: without effect */
    }
    switch (id) {
    case PMTU:
        if (!read) {
            v->mtu = GET(pmtu_reg, w, admin_mtu);
        } else {
            unsigned mtu = pf->infiniband ? IB_MTU : v->mtu;

            SET(pmtu_reg, r, max_mtu, pf->infiniband ? IB_MTU : MAX_MTU);
            SET(pmtu_reg, r, admin_mtu, mtu);
            SET(pmtu_reg, r, oper_mtu, mtu);
        }
        return OK;
    case PTYS:
        ptys(pf, read, w, r);
        return OK;
    case PAOS:
        if (!read) {
            pf->port_admin = GET(paos_reg, w, admin_status);
            set_port(pf, pf->port_admin == UP && !pf->unplugged);
        }
        SET(paos_reg, r, admin_status, pf->port_admin);
        SET(paos_reg, r, oper_status, pf->port_up ? UP : DOWN);
        return OK;
    case QETCR:
        qetcr(pf, read, w, r);
        return OK;
    case QTCT:
        qtct(pf, read, w, r);
        return OK;
    case QPDPM:
        qpdpm(pf, read, w, r);
        return OK;
    case PFCC:
        pfcc(pf, read, w, r);
        return OK;
    case PBMC:
        pbmc(pf, read, w, r);
        return OK;
    case SBCAM:
        SET(sbcam_reg, r, cap_cell_size, CELL);
        SET(sbcam_reg, r, cap_total_buffer_size, BUFFER_CELLS * CELL);
        SET(sbcam_reg, r, cap_max_pg_buffers, BUFFERS);
        SET(sbcam_reg, r, cap_num_pool_supported, 2);
        return OK;
    case PCAM:
    case MCAM:
    case QCAM:
        capability_register(id, r);
        return OK;
    case MCQS:      /* the firmware is the only component, and idle */
        SET(mcqs_reg, r, identifier, FIRMWARE_ONLY);
        SET(mcqs_reg, r, last_index_flag, 1);
        SET(mcqs_reg, r, component_status, IDLE);
        return OK;
    case MCQI:
        if (GET(mcqi_reg, w, info_type) == INFO_VERSION) {
            SET(mcqi_version, r + BYTES(mcqi_reg), version, 22 << 24 | 41 << 16 | 1000);
        }
        return OK;
    case PMLP:
        SET(pmlp_reg, r, width, LANES);
        return OK;
    case PVLC:
        SET(pvlc_reg, r, vl_hw_cap, 4);
        return OK;
    case PPCNT:             /* of the wire, where nothing is counted */
    case MPCNT:
    case HOST_ENDIANNESS:
    case DTOR:              /* the driver's own timeouts */
        return OK;
    case SBPR:
        index = (uint32_t)GET(sbpr_reg, w, desc) << 8 | (uint32_t)GET(sbpr_reg, w, dir) << 4
                | (uint32_t)GET(sbpr_reg, w, pool);
        break;
    case SBCM:
        index = (uint32_t)GET(sbcm_reg, w, desc) << 16 | (uint32_t)GET(sbcm_reg, w, dir) << 8
                | (uint32_t)GET(sbcm_reg, w, pg_buff);
        break;
    case QPTS:
    case PPTB:
    case DCBX_PARAM:
        break;
    default:
        note(fn, "register %#x is not modelled", id);
        return OK;
    }
    /* These are as they were written. */
    held = kept(pf, id, index, n, &fresh);
    if (fresh && id == QPTS) {
        SET(qpts_reg, held, trust_state, TRUST_PCP);
    }
    if (fresh && id == DCBX_PARAM) {
        SET(dcbx_param, held, dcbx_cee_cap, 1);
        SET(dcbx_param, held, dcbx_ieee_cap, 1);
        SET(dcbx_param, held, dcbx_standby_cap, 1);
        SET(dcbx_param, held, version_oper, 0);
    }
    if (fresh && id == SBPR) {
        SET(sbpr_reg, held, size, BUFFER_CELLS);
    }
    if (!read) {
        memcpy(held, w, n);
    }
    memcpy(r, held, n);
    return OK;
}
