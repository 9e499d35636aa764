/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The commands: a handler for each that has state to remember or something to tell; of the others,
 * what creates gets a number and what changes is accepted.
 */
#include "connectx.h"

enum { OUT_ID = 8, IN_ID = 8, NUMBER = 0xffffff };
enum { VPORT_DOWN = 0, VPORT_UP = 1, VPORT_AUTO = 2, VPORT_MOD_ESWITCH = 1 };
enum { PORT_DOWN_EVENT = 1, PORT_UP_EVENT = 4 };
enum { CANNOT_GIVE = 0, GIVE = 1, TAKE = 2, BOOT_PAGES = 1 };
enum { BOOT_PAGE_COUNT = 16, INIT_PAGE_COUNT = 32 };
enum { DISCONNECT = 1 };

static uint8_t accept_it(Fn *fn)
{
    return OK;
}

static uint8_t refuse(Fn *fn)
{
    return BAD_OP;
}

/* One number space for all kinds of objects: of some, the driver expects not to share numbers. */
static uint32_t next_id(Fn *fn)
{
    fn->last_id = (fn->last_id + 1) & NUMBER ?: 1;
    return fn->last_id;
}

static uint8_t allocate(Fn *fn)
{
    stl_be_p(fn->out + OUT_ID, next_id(fn));
    return OK;
}

static Kept *object(Fn *fn, uint32_t id, uint16_t made_by)
{
    Kept *o = g_hash_table_lookup(fn->objects, GUINT_TO_POINTER(id));

    return o && o->made_by == made_by ? o : NULL;
}

/* Of what others refer to, the input is kept. */
static uint8_t keep(Fn *fn)
{
    Kept *o = g_new0(Kept, 1);

    o->id = next_id(fn);
    o->made_by = lduw_be_p(fn->in);
    o->length = MAX(fn->inlen, 512);
    o->in = g_memdup2(fn->in, o->length);
    g_hash_table_insert(fn->objects, GUINT_TO_POINTER(o->id), o);
    stl_be_p(fn->out + OUT_ID, o->id);
    return OK;
}

static uint8_t drop(Fn *fn)
{
    uint32_t id = ldl_be_p(fn->in + IN_ID) & NUMBER;

    return g_hash_table_remove(fn->objects, GUINT_TO_POINTER(id)) ? OK : BAD_RES;
}

/* ---- the device ----------------------------------------------------------------------------- */

static uint8_t query_hca_cap(Fn *fn)
{
    unsigned mod = GET(query_hca_cap_in, fn->in, op_mod), type = mod >> 1;
    bool other = GET(query_hca_cap_in, fn->in, other_function), current = mod & 1;
    uint16_t vport = other ? GET(query_hca_cap_in, fn->in, function_id) : fn->vport;
    uint8_t *c = AT(query_hca_cap_out, fn->out, capability);
    Vport *v = vport_of(fn->pf, vport);
    Fn *of = vport == fn->vport ? fn : fn_of_vport(fn->pf, vport);

    if (type >= CAP_TYPES || !v || (other && fn->vport)) {
        return BAD_PARAM;
    }
    note(fn, "capability %#x of vport %u, %s", type, vport, current ? "current" : "maximum");
    if (current && of && of->cur[type]) {
        memcpy(c, of->cur[type], CAP_BYTES);
    } else if (v->cap[type]) {
        memcpy(c, v->cap[type], CAP_BYTES);
        if (type == MLX5_CAP_GENERAL) {     /* which the PF has set, perhaps on another link layer */
            SET(cmd_hca_cap, c, port_type, !fn->pf->infiniband);
            SET(cmd_hca_cap, c, ib_virt, fn->pf->infiniband);
            SET(cmd_hca_cap, c, general_obj_types,
                fn->pf->vdpa ? MLX5_GENERAL_OBJ_TYPES_CAP_VIRTIO_NET_Q : 0);
        }
    } else {
        cap_default(fn->pf, vport, type, current, c);
    }
    return OK;
}

/* How many MSI-X vectors a VF shows: of those it has, whatever they were before. */
static void vf_vectors(Vport *v, unsigned n)
{
    if (v->pci) {
        uint8_t *flags = v->pci->config + v->pci->msix_cap + PCI_MSIX_FLAGS;

        pci_set_word(flags, (pci_get_word(flags) & ~PCI_MSIX_FLAGS_QSIZE) | (n - 1));
    }
}

static uint8_t set_hca_cap(Fn *fn)
{
    unsigned type = GET(set_hca_cap_in, fn->in, op_mod) >> 1;
    bool other = GET(set_hca_cap_in, fn->in, other_function);
    uint16_t vport = GET(set_hca_cap_in, fn->in, function_id);
    Vport *v = vport_of(fn->pf, vport);
    uint8_t **kept;

    if (type >= CAP_TYPES || (other && (fn->vport || !v))) {
        return BAD_PARAM;
    }
    kept = other ? &v->cap[type] : &fn->cur[type];
    g_free(*kept);
    *kept = g_malloc0(CAP_BYTES);
    memcpy(*kept, AT(set_hca_cap_in, fn->in, capability),
           MIN(CAP_BYTES, fn->inlen - OFF(set_hca_cap_in, capability) / 8));
    if (other) {
        note(fn, "capability %#x of vport %u", type, vport);
    }
    if (other && vport && type == 0) {
        unsigned n = GET(cmd_hca_cap, *kept, dynamic_msix_table_size);

        if (n && n <= VF_VECTORS) {
            vf_vectors(v, n);
        }
    }
    return OK;
}

static uint8_t query_adapter(Fn *fn)
{
    SET(query_adapter_out, fn->out, query_adapter_struct.ieee_vendor_id, 0x2c9);
    memcpy(AT(query_adapter_out, fn->out, query_adapter_struct.vsd_contd_psid), "LAB0000000001", 13);
    return OK;
}

static uint8_t query_issi(Fn *fn)
{
    SET(query_issi_out, fn->out, current_issi, fn->issi);
    SET(query_issi_out, fn->out, supported_issi_dw0, 3);
    return OK;
}

static uint8_t set_issi(Fn *fn)
{
    fn->issi = GET(set_issi_in, fn->in, current_issi);
    return OK;
}

static uint8_t init_hca(Fn *fn)
{
    fn->running = true;
    return OK;
}

/* Graceful, or quick: then the driver disables the function by the initialization segment. */
static uint8_t teardown_hca(Fn *fn)
{
    if (GET(teardown_hca_in, fn->in, profile) == MLX5_TEARDOWN_HCA_IN_PROFILE_GRACEFUL_CLOSE) {
        fn_release(fn);
    }
    fn->running = false;
    fn->ended = now_ns();
    return OK;
}

/* ---- subfunctions --------------------------------------------------------------------------- */

/* Of mlx5_ifc_vhca_event.h, which is not among the kernel's headers. */
enum { STATE_INVALID, STATE_ALLOCATED, STATE_ACTIVE, STATE_IN_USE, STATE_TEARDOWN_REQUEST };
enum { VHCA_FUNCTION = 10, VHCA_SELECT = 12, VHCA_CONTEXT = 16, SELECT_SW_ID = 2, SELECT_ARM = 1 };

static bool is_sf(Pf *pf, uint16_t function)
{
    return function >= SF_BASE && function < SF_BASE + pf->sfs;
}

static void sf_state(Pf *pf, uint16_t function, uint8_t state)
{
    Vport *v = vport_of(pf, function);
    uint8_t data[28] = {};

    v->sf_state = state;
    if (v->sf_armed) {
        v->sf_armed = false;
        stw_be_p(data + 2, function);
        event(&pf->fn, EVENT_VHCA_STATE, 0, data);
    }
}

void sf_drop_all(Pf *pf)
{
    for (uint16_t i = 0; i < pf->sfs; i++) {
        Vport *v = vport_of(pf, SF_BASE + i);

        v->sf_state = STATE_INVALID;
        v->sf_armed = false;
    }
}

static uint8_t alloc_sf(Fn *fn)
{
    uint16_t function = GET(alloc_sf_in, fn->in, function_id);

    if (fn->vport || !is_sf(fn->pf, function)) {
        return BAD_PARAM;
    }
    if (vport_of(fn->pf, function)->sf_state != STATE_INVALID) {
        return BAD_RES_STATE;
    }
    sf_state(fn->pf, function, STATE_ALLOCATED);
    return OK;
}

static uint8_t dealloc_sf(Fn *fn)
{
    uint16_t function = GET(dealloc_sf_in, fn->in, function_id);

    if (fn->vport || !is_sf(fn->pf, function)) {
        return BAD_PARAM;
    }
    sf_state(fn->pf, function, STATE_INVALID);
    return OK;
}

static uint8_t query_vhca_state(Fn *fn)
{
    uint16_t function = lduw_be_p(fn->in + VHCA_FUNCTION);
    Vport *v = vport_of(fn->pf, function);

    if (fn->vport || !is_sf(fn->pf, function)) {
        return BAD_PARAM;
    }
    fn->out[VHCA_CONTEXT] = v->sf_armed << 7;
    fn->out[VHCA_CONTEXT + 1] = v->sf_state;
    stl_be_p(fn->out + VHCA_CONTEXT + 4, v->sf_number);
    return OK;
}

static uint8_t modify_vhca_state(Fn *fn)
{
    uint16_t function = lduw_be_p(fn->in + VHCA_FUNCTION);
    uint32_t select = ldl_be_p(fn->in + VHCA_SELECT);
    Vport *v = vport_of(fn->pf, function);

    if (fn->vport || !is_sf(fn->pf, function)) {
        return BAD_PARAM;
    }
    if (select & SELECT_SW_ID) {
        v->sf_number = ldl_be_p(fn->in + VHCA_CONTEXT + 4);
    }
    if (select & SELECT_ARM) {
        v->sf_armed = fn->in[VHCA_CONTEXT] >> 7;
    }
    return OK;
}

/* ---- functions and their pages -------------------------------------------------------------- */

void ask_for_pages(Pf *pf, uint16_t function, int32_t pages)
{
    uint8_t data[28] = {};

    stw_be_p(data + 2, function);
    stl_be_p(data + 4, pages);
    note(&pf->fn, "asks for %d pages for function %u", pages, function);
    event(&pf->fn, EVENT_PAGES, 0, data);
}

static uint8_t enable_hca(Fn *fn)
{
    uint16_t function = GET(enable_hca_in, fn->in, function_id);
    Vport *v = vport_of(fn->pf, function);

    if (!function) {
        if (is_sf(fn->pf, fn->vport)) {
            sf_state(fn->pf, fn->vport, STATE_IN_USE);
        }
        return OK;
    }
    if (fn->vport || !v || function == UPLINK) {
        return BAD_PARAM;
    }
    note(fn, "enables function %u", function);
    v->enabled = true;
    if (is_sf(fn->pf, function)) {
        sf_state(fn->pf, function, STATE_ACTIVE);
    }
    if (fn->pf->vf_pages) {
        ask_for_pages(fn->pf, function, fn->pf->vf_pages);
    }
    return OK;
}

/* A function at work is stopped: its queues and tables are gone, its commands are refused. */
static uint8_t disable_hca(Fn *fn)
{
    uint16_t function = GET(disable_hca_in, fn->in, function_id);
    Vport *v = vport_of(fn->pf, function);
    Fn *of = function ? fn_of_vport(fn->pf, function) : NULL;

    if (!function) {
        if (is_sf(fn->pf, fn->vport)) {
            switch (vport_of(fn->pf, fn->vport)->sf_state) {
            case STATE_TEARDOWN_REQUEST:
                sf_state(fn->pf, fn->vport, STATE_ALLOCATED);
                break;
            case STATE_IN_USE:      /* its driver is reloaded */
                sf_state(fn->pf, fn->vport, STATE_ACTIVE);
                break;
            }
        }
        return OK;
    }
    if (fn->vport || !v || function == UPLINK) {
        return BAD_PARAM;
    }
    note(fn, "disables function %u%s", function, of && of->running ? ", which is at work" : "");
    if (is_sf(fn->pf, function)) {
        sf_state(fn->pf, function,
                 v->sf_state == STATE_IN_USE ? STATE_TEARDOWN_REQUEST : STATE_ALLOCATED);
        return OK;      /* its driver ends first */
    }
    v->enabled = false;
    if (of) {
        firmware_forget(of);
        fn_release(of);
        of->stopped |= of->running;
        of->running = false;
    }
    if (v->pages->len) {
        ask_for_pages(fn->pf, function, -(int32_t)v->pages->len);
    }
    return OK;
}

static uint8_t query_pages(Fn *fn)
{
    SET(query_pages_out, fn->out, num_pages,
        GET(query_pages_in, fn->in, op_mod) == BOOT_PAGES ? BOOT_PAGE_COUNT : INIT_PAGE_COUNT);
    return OK;
}

static uint8_t manage_pages(Fn *fn)
{
    unsigned mod = GET(manage_pages_in, fn->in, op_mod);
    uint16_t function = GET(manage_pages_in, fn->in, function_id);
    uint32_t n = GET(manage_pages_in, fn->in, input_num_entries);
    Vport *v = vport_of(fn->pf, function);
    GArray *pages = function ? v ? v->pages : NULL : fn->pages;

    if (!pages || (function && fn->vport)) {
        return BAD_PARAM;
    }
    note(fn, "%s %u pages of function %u, which has %u",
         mod == CANNOT_GIVE ? "can't give" : mod == GIVE ? "gives" : "takes", n, function, pages->len);
    if (mod == GIVE) {
        if (BYTES(manage_pages_in) + n * 8 > fn->inlen) {
            return BAD_PARAM;
        }
        for (uint32_t i = 0; i < n; i++) {
            uint64_t pa = ldq_be_p(AT(manage_pages_in, fn->in, pas) + i * 8);
            g_array_append_val(pages, pa);
        }
    } else if (mod == TAKE) {
        n = MIN(MIN(n, pages->len), (fn->outlen - BYTES(manage_pages_out)) / 8);
        for (uint32_t i = 0; i < n; i++) {
            stq_be_p(AT(manage_pages_out, fn->out, pas) + i * 8,
                     g_array_index(pages, uint64_t, pages->len - 1 - i));
        }
        g_array_set_size(pages, pages->len - n);
        SET(manage_pages_out, fn->out, output_num_entries, n);
    }
    return OK;
}

/* ---- queues --------------------------------------------------------------------------------- */

static uint8_t create_eq(Fn *fn)
{
    uint8_t *x = AT(create_eq_in, fn->in, eq_context_entry);

    for (int n = 1; n < EQS; n++) {
        Eq *eq = &fn->eq[n];

        if (!eq->used) {
            *eq = (Eq) { .used = true };
            eq->log_size = GET(eqc, x, log_eq_size);
            eq->log_page = GET(eqc, x, log_page_size) + 12;
            eq->vector = GET(eqc, x, intr);
            eq->mask = ldq_be_p(AT(create_eq_in, fn->in, event_bitmask));
            eq->pages = page_list(AT(create_eq_in, fn->in, pas), 64ULL << eq->log_size, eq->log_page);
            SET(create_eq_out, fn->out, eq_number, n);
            return OK;
        }
    }
    return BAD_RES;
}

static uint8_t destroy_eq(Fn *fn)
{
    eq_free(&fn->eq[GET(destroy_eq_in, fn->in, eq_number)]);
    return OK;
}

static uint8_t create_cq(Fn *fn)
{
    uint8_t *x = AT(create_cq_in, fn->in, cq_context);
    Cq *cq = g_new0(Cq, 1);

    cq->number = next_id(fn);
    cq->eqn = GET(cqc, x, c_eqn_or_apu_element);
    cq->log_size = GET(cqc, x, log_cq_size);
    cq->log_page = GET(cqc, x, log_page_size) + 12;
    cq->log_stride = GET(cqc, x, cqe_sz) ? 7 : 6;
    cq->pages = page_list(AT(create_cq_in, fn->in, pas), 1ULL << (cq->log_size + cq->log_stride),
                          cq->log_page);
    g_hash_table_insert(fn->cqs, GUINT_TO_POINTER(cq->number), cq);
    stl_be_p(fn->out + OUT_ID, cq->number);
    return OK;
}

static uint8_t destroy_cq(Fn *fn)
{
    uint32_t n = GET(destroy_cq_in, fn->in, cqn);

    return g_hash_table_remove(fn->cqs, GUINT_TO_POINTER(n)) ? OK : BAD_RES;
}

static uint8_t create_sq(Fn *fn)
{
    uint8_t *x = AT(create_sq_in, fn->in, ctx);
    Wq *sq = wq_new(AT(sqc, x, wq));

    sq->number = next_id(fn);
    sq->cqn = GET(sqc, x, cqn);
    g_hash_table_insert(fn->sqs, GUINT_TO_POINTER(sq->number), sq);
    stl_be_p(fn->out + OUT_ID, sq->number);
    return OK;
}

static uint8_t create_rq(Fn *fn)
{
    uint8_t *x = AT(create_rq_in, fn->in, ctx);
    Wq *rq = wq_new(AT(rqc, x, wq));

    rq->number = next_id(fn);
    rq->cqn = GET(rqc, x, cqn);
    rq->keeps_vlan = GET(rqc, x, vsd);
    g_hash_table_insert(fn->rqs, GUINT_TO_POINTER(rq->number), rq);
    stl_be_p(fn->out + OUT_ID, rq->number);
    return OK;
}

/* MODIFY_SQ and MODIFY_RQ are alike as far as the state: a queue that is reset begins anew. */
static Wq *modify_wq(Fn *fn, GHashTable *wqs)
{
    uint32_t n = GET(modify_sq_in, fn->in, sqn);
    Wq *wq = g_hash_table_lookup(wqs, GUINT_TO_POINTER(n));

    if (wq) {
        wq->state = GET(modify_sq_in, fn->in, ctx.state);
        if (wq->state == WQ_RST) {
            wq->ci = 0;
        }
    }
    return wq;
}

static uint8_t modify_sq(Fn *fn)
{
    return modify_wq(fn, fn->sqs) ? OK : BAD_RES;
}

static uint8_t modify_rq(Fn *fn)
{
    enum { SELECT_VSD = 1 << 1 };
    Wq *rq = modify_wq(fn, fn->rqs);

    if (!rq) {
        return BAD_RES;
    }
    if (GET(modify_rq_in, fn->in, modify_bitmask) & SELECT_VSD) {
        rq->keeps_vlan = GET(modify_rq_in, fn->in, ctx.vsd);
    }
    return OK;
}

static uint8_t destroy_sq(Fn *fn)
{
    uint32_t n = GET(destroy_sq_in, fn->in, sqn);

    return g_hash_table_remove(fn->sqs, GUINT_TO_POINTER(n)) ? OK : BAD_RES;
}

static uint8_t destroy_rq(Fn *fn)
{
    uint32_t n = GET(destroy_rq_in, fn->in, rqn);

    return g_hash_table_remove(fn->rqs, GUINT_TO_POINTER(n)) ? OK : BAD_RES;
}

static uint8_t query_sq(Fn *fn)
{
    uint32_t n = GET(query_sq_in, fn->in, sqn);
    Wq *sq = g_hash_table_lookup(fn->sqs, GUINT_TO_POINTER(n));

    if (!sq) {
        return BAD_RES;
    }
    SET(query_sq_out, fn->out, sq_context.state, sq->state);
    return OK;
}

static uint8_t query_rq(Fn *fn)
{
    uint32_t n = GET(query_rq_in, fn->in, rqn);
    Wq *rq = g_hash_table_lookup(fn->rqs, GUINT_TO_POINTER(n));

    if (!rq) {
        return BAD_RES;
    }
    SET(query_rq_out, fn->out, rq_context.state, rq->state);
    return OK;
}

static uint8_t modify_rqt(Fn *fn)
{
    uint32_t n = GET(modify_rqt_in, fn->in, rqtn);
    Kept *rqt = object(fn, n, MLX5_CMD_OP_CREATE_RQT);
    uint32_t from = OFF(modify_rqt_in, ctx) / 8, to = OFF(create_rqt_in, rqt_context) / 8;

    if (!rqt) {
        return BAD_RES;
    }
    if (GET(modify_rqt_in, fn->in, bitmask.rqn_list) && fn->inlen > from) {
        rqt->length = to + fn->inlen - from;
        rqt->in = g_realloc(rqt->in, rqt->length);
        memcpy(rqt->in + to, fn->in + from, fn->inlen - from);
    }
    return OK;
}

/* A virtqueue has a state and two indexes, of which the driver asks; no descriptor is looked at. */
static uint8_t *virtqueue(Fn *fn)
{
    uint32_t id = GET(query_virtio_net_q_in, fn->in, general_obj_in_cmd_hdr.obj_id);
    Kept *o = object(fn, id, MLX5_CMD_OP_CREATE_GENERAL_OBJECT);

    if (!o || GET(create_virtio_net_q_in, o->in, general_obj_in_cmd_hdr.obj_type)
              != MLX5_OBJ_TYPE_VIRTIO_NET_Q) {
        return NULL;
    }
    return AT(create_virtio_net_q_in, o->in, obj_context);
}

static uint8_t modify_general_object(Fn *fn)
{
    const uint8_t *to = AT(modify_virtio_net_q_in, fn->in, obj_context);
    uint8_t *q = virtqueue(fn);
    uint64_t fields;

    if (!q) {
        return OK;
    }
    fields = GET(virtio_net_q_object, to, modify_field_select);
    if (fields & MLX5_VIRTQ_MODIFY_MASK_STATE) {
        SET(virtio_net_q_object, q, state, GET(virtio_net_q_object, to, state));
    }
    if (fields & MLX5_VIRTQ_MODIFY_MASK_VIRTIO_Q_AVAIL_IDX) {
        SET(virtio_net_q_object, q, hw_available_index,
            GET(virtio_net_q_object, to, hw_available_index));
    }
    if (fields & MLX5_VIRTQ_MODIFY_MASK_VIRTIO_Q_USED_IDX) {
        SET(virtio_net_q_object, q, hw_used_index, GET(virtio_net_q_object, to, hw_used_index));
    }
    return OK;
}

static uint8_t query_general_object(Fn *fn)
{
    uint8_t *q = virtqueue(fn);

    if (!q) {
        return BAD_RES;
    }
    memcpy(AT(query_virtio_net_q_out, fn->out, obj_context), q, BYTES(virtio_net_q_object));
    return OK;
}

static uint8_t alloc_uar(Fn *fn)
{
    for (uint32_t i = FIRST_UAR; i < MIN(fn->bar_pages, UARS); i++) {
        if (!(fn->uar_used[i / 32] >> i % 32 & 1)) {
            fn->uar_used[i / 32] |= 1u << i % 32;
            SET(alloc_uar_out, fn->out, uar, i);
            return OK;
        }
    }
    return BAD_RES;
}

static uint8_t dealloc_uar(Fn *fn)
{
    uint32_t i = GET(dealloc_uar_in, fn->in, uar);

    if (i < UARS) {
        fn->uar_used[i / 32] &= ~(1u << i % 32);
    }
    return OK;
}

/* ---- the port ------------------------------------------------------------------------------- */

bool vport_up(Pf *pf, uint16_t vport)
{
    Vport *v = vport_of(pf, vport);

    if (!vport || vport == UPLINK || !v) {
        return pf->port_up;
    }
    switch (v->admin) {
    case VPORT_DOWN:
        return false;
    case VPORT_UP:
        return true;
    default:
        return pf->port_up;
    }
}

static void tell_port(Pf *pf, uint16_t vport)
{
    Fn *fn = fn_of_vport(pf, vport);
    uint8_t data[28] = { [8] = 1 << 4 };

    if (fn) {
        event(fn, EVENT_PORT, vport_up(pf, vport) ? PORT_UP_EVENT : PORT_DOWN_EVENT, data);
    }
}

void set_port(Pf *pf, bool up)
{
    if (pf->port_up == up) {
        return;
    }
    pf->port_up = up;
    note(&pf->fn, "port is %s", up ? "up" : "down");
    for (uint16_t i = 0; i <= pf->vfs; i++) {
        if (!i || vport_of(pf, i)->admin == VPORT_AUTO) {
            tell_port(pf, i);
        }
    }
}

/* ---- vports --------------------------------------------------------------------------------- */

/* The vport that a command is about: its own, or another if it may. */
static Vport *which(Fn *fn, uint16_t *number)
{
    bool other = GET(query_vport_state_in, fn->in, other_vport);

    *number = other ? GET(query_vport_state_in, fn->in, vport_number) : fn->vport;
    return other && fn->vport ? NULL : vport_of(fn->pf, *number);
}

static uint8_t query_vport_state(Fn *fn)
{
    uint16_t n;
    Vport *v = which(fn, &n);

    if (!v) {
        return BAD_PARAM;
    }
    SET(query_vport_state_out, fn->out, state, vport_up(fn->pf, n));
    SET(query_vport_state_out, fn->out, admin_state, v->admin);
    return OK;
}

static uint8_t modify_vport_state(Fn *fn)
{
    uint16_t n;
    Vport *v = which(fn, &n);
    uint8_t state = GET(modify_vport_state_in, fn->in, admin_state);

    if (!v) {
        return BAD_PARAM;
    }
    if (GET(modify_vport_state_in, fn->in, op_mod) == VPORT_MOD_ESWITCH && n && n != UPLINK) {
        bool up = vport_up(fn->pf, n);

        note(fn, "vport %u: state %u", n, state);
        v->admin = state;
        if (up != vport_up(fn->pf, n)) {
            tell_port(fn->pf, n);
        }
    }
    return OK;
}

static uint8_t query_esw_vport(Fn *fn)
{
    uint16_t n;
    Vport *v = which(fn, &n);

    if (!v) {
        return BAD_PARAM;
    }
    memcpy(AT(query_esw_vport_context_out, fn->out, esw_vport_context), v->esw, sizeof(v->esw));
    return OK;
}

static uint8_t modify_esw_vport(Fn *fn)
{
    uint16_t n;
    Vport *v = which(fn, &n);
    uint8_t *x = AT(modify_esw_vport_context_in, fn->in, esw_vport_context);

    if (!v) {
        return BAD_PARAM;
    }
#define COPY(select, field) \
    if (GET(modify_esw_vport_context_in, fn->in, field_select.select)) { \
        SET(esw_vport_context, v->esw, field, GET(esw_vport_context, x, field)); \
    }
    COPY(vport_cvlan_strip, vport_cvlan_strip)
    COPY(vport_cvlan_insert, vport_cvlan_insert)
    COPY(vport_cvlan_insert, cvlan_id)
    COPY(vport_cvlan_insert, cvlan_pcp)
    COPY(fdb_to_vport_reg_c_id, fdb_to_vport_reg_c_id)
#undef COPY
    note(fn, "vport %u: VLAN %u priority %u", n, (unsigned)GET(esw_vport_context, v->esw, cvlan_id),
         (unsigned)GET(esw_vport_context, v->esw, cvlan_pcp));
    return OK;
}

static uint8_t query_nic_vport(Fn *fn)
{
    uint16_t n;
    Vport *v = which(fn, &n);
    uint8_t *x = AT(query_nic_vport_context_out, fn->out, nic_vport_context);
    unsigned type = GET(query_nic_vport_context_in, fn->in, allowed_list_type);

    if (!v || type > 2) {
        return BAD_PARAM;
    }
    memcpy(x, v->nic, sizeof(v->nic));
    SET(nic_vport_context, x, allowed_list_type, type);
    SET(nic_vport_context, x, allowed_list_size, v->list[type].n);
    memcpy(x + BYTES(nic_vport_context), v->list[type].e, v->list[type].n * 8);
    return OK;
}

/*
 * The eswitch's manager asks to hear of a change, for once, after it has looked at the port
 * (esw_vport_change_handle_locked()). What changed between its look and its question is told at
 * once: a multicast address of a VF that came just then would never be passed on to the VF.
 */
static void tell_of_change(Pf *pf, Vport *v, uint16_t n)
{
    uint8_t data[28] = {};

    if (!v->unseen || !GET(nic_vport_context, v->nic, arm_change_event)) {
        return;
    }
    stw_be_p(data + 2, n);
    if (event(&pf->fn, EVENT_NIC_VPORT, 0, data)) {
        SET(nic_vport_context, v->nic, arm_change_event, 0);
        v->unseen = false;
    }
}

static uint8_t modify_nic_vport(Fn *fn)
{
    uint16_t n;
    Vport *v = which(fn, &n);
    uint8_t *x = AT(modify_nic_vport_context_in, fn->in, nic_vport_context);
    bool changed = false;

    if (!v) {
        return BAD_PARAM;
    }
#define CHOSEN(select) GET(modify_nic_vport_context_in, fn->in, field_select.select)
#define COPY(select, field) \
    if (CHOSEN(select)) { \
        SET(nic_vport_context, v->nic, field, GET(nic_vport_context, x, field)); \
    }
    COPY(mtu, mtu)
    COPY(min_inline, min_wqe_inline_mode)
    COPY(roce_en, roce_en)
    COPY(disable_uc_local_lb, disable_uc_local_lb)
    COPY(disable_mc_local_lb, disable_mc_local_lb)
    COPY(node_guid, node_guid)
    COPY(port_guid, port_guid)
    COPY(affiliation, affiliated_vhca_id)
    COPY(affiliation, affiliation_criteria)
    COPY(promisc, promisc_uc)
    COPY(promisc, promisc_mc)
    COPY(promisc, promisc_all)
    COPY(change_event, arm_change_event)
    if (CHOSEN(permanent_address)) {
        uint8_t *mac = AT(nic_vport_context, x, permanent_address) + 2;

        memcpy(AT(nic_vport_context, v->nic, permanent_address), mac - 2, 8);
        note(fn, "vport %u: MAC %02x:%02x:%02x:%02x:%02x:%02x", n, mac[0], mac[1], mac[2], mac[3],
             mac[4], mac[5]);
    }
    if (CHOSEN(addresses_list)) {
        unsigned type = GET(nic_vport_context, x, allowed_list_type);
        unsigned size = GET(nic_vport_context, x, allowed_list_size);

        if (type > 2 || size > MAX_LIST) {
            return BAD_PARAM;
        }
        v->list[type].n = size;
        memcpy(v->list[type].e, x + BYTES(nic_vport_context), size * 8);
        changed = true;
    }
    changed |= CHOSEN(promisc);
#undef COPY
#undef CHOSEN
    v->unseen |= changed && n == fn->vport;
    tell_of_change(fn->pf, v, n);
    return OK;
}

static uint8_t query_vport_counter(Fn *fn)
{
    enum { FIRST = OFF(query_vport_counter_out, received_eth_broadcast) / 8 };
    static const uint8_t order[CASTS] = { BROADCAST, UNICAST, MULTICAST };
    uint16_t n;
    Vport *v = which(fn, &n);
    uint8_t *to = fn->out + FIRST;

    if (!v) {
        return BAD_PARAM;
    }
    for (unsigned i = 0; i < CASTS; i++) {
        for (unsigned d = 0; d < DIRECTIONS; d++, to += BYTES(traffic_counter)) {
            SET(traffic_counter, to, packets, v->traffic[d][order[i]].packets);
            SET(traffic_counter, to, octets, v->traffic[d][order[i]].octets);
        }
    }
    if (GET(query_vport_counter_in, fn->in, clear)) {
        memset(v->traffic, 0, sizeof(v->traffic));
    }
    return OK;
}

/* ---- InfiniBand ----------------------------------------------------------------------------- */

static uint8_t query_hca_vport(Fn *fn)
{
    enum { INITIALIZE = 2, ACTIVE = 4, LINK_UP = 5 };
    uint16_t n;
    Vport *v = which(fn, &n);
    uint8_t *x = AT(query_hca_vport_context_out, fn->out, hca_vport_context);

    if (!v) {
        return BAD_PARAM;
    }
    memcpy(x, v->hca, sizeof(v->hca));
    SET(hca_vport_context, x, system_image_guid, fn->pf->guid);
    SET(hca_vport_context, x, port_guid, GET(nic_vport_context, v->nic, port_guid));
    SET(hca_vport_context, x, node_guid, GET(nic_vport_context, v->nic, node_guid));
    SET(hca_vport_context, x, port_physical_state, LINK_UP);
    SET(hca_vport_context, x, vport_state, vport_up(fn->pf, n) ? ACTIVE : 1);
    SET(hca_vport_context, x, port_state, vport_up(fn->pf, n) ? ACTIVE : 1);
    SET(hca_vport_context, x, lid, n + 1);
    SET(hca_vport_context, x, sm_lid, 1);
    SET(hca_vport_context, x, has_smi, !n);
    return OK;
}

static uint8_t modify_hca_vport(Fn *fn)
{
    enum { SELECT_PORT_GUID = 1, SELECT_NODE_GUID = 2, SELECT_STATE = 4 };
    uint16_t n;
    Vport *v = which(fn, &n);
    uint8_t *x = AT(modify_hca_vport_context_in, fn->in, hca_vport_context);
    uint32_t select = GET(hca_vport_context, x, field_select);

    if (!v) {
        return BAD_PARAM;
    }
    if (select & SELECT_PORT_GUID) {
        SET(nic_vport_context, v->nic, port_guid, GET(hca_vport_context, x, port_guid));
    }
    if (select & SELECT_NODE_GUID) {
        SET(nic_vport_context, v->nic, node_guid, GET(hca_vport_context, x, node_guid));
    }
    if (select & SELECT_STATE) {
        unsigned policy = GET(hca_vport_context, x, vport_state_policy);

        SET(hca_vport_context, v->hca, vport_state_policy, policy);
        v->admin = policy;      /* down, up, follow: the same numbers */
    }
    return OK;
}

static uint8_t query_hca_vport_gid(Fn *fn)
{
    uint16_t n;
    Vport *v = which(fn, &n);

    if (!v) {
        return BAD_PARAM;
    }
    SET(query_hca_vport_gid_out, fn->out, gids_num, 1);
    stq_be_p(AT(query_hca_vport_gid_out, fn->out, gid), 0xfe80000000000000);
    stq_be_p(AT(query_hca_vport_gid_out, fn->out, gid) + 8, GET(nic_vport_context, v->nic, port_guid));
    return OK;
}

static uint8_t query_pkey(Fn *fn)
{
    for (uint32_t i = 16; i + 4 <= fn->outlen; i += 4) {
        stl_be_p(fn->out + i, 0xffff);
    }
    return OK;
}

static uint8_t query_special_contexts(Fn *fn)
{
    SET(query_special_contexts_out, fn->out, resd_lkey, 0x100);
    SET(query_special_contexts_out, fn->out, null_mkey, 0x200);
    SET(query_special_contexts_out, fn->out, terminate_scatter_list_mkey, 0x300);
    return OK;
}

/* ---- LAG ------------------------------------------------------------------------------------ */

/* Firmware changes LAG only while no VF of the card is at work (`lag-needs-unbound-vfs`). */
static bool vfs_at_work(Pf *pf)
{
    for (uint16_t i = 1; i <= pf->vfs; i++) {
        Fn *vf = fn_of_vport(pf, i);

        if (vf && vf->running) {
            return true;
        }
    }
    return false;
}

static bool lag_may_change(Fn *fn)
{
    Pf *pf = fn->pf;
    bool blocked = vfs_at_work(pf);

    for (Pf *other = next_pf(pf, NULL); other; other = next_pf(pf, other)) {
        blocked |= vfs_at_work(other);
    }
    return !pf->lag_needs_unbound || !blocked;
}

static void set_lag(Pf *pf, bool active, const uint8_t *lagc)
{
    pf->lag_active = active;
    memset(pf->lagc, 0, sizeof(pf->lagc));
    if (lagc) {
        memcpy(pf->lagc, lagc, sizeof(pf->lagc));
    }
}

static uint8_t change_lag(Fn *fn, bool active, const uint8_t *lagc)
{
    if (!fn->pf->lag || fn->vport) {
        return BAD_OP;
    }
    if (!lag_may_change(fn)) {
        note(fn, "LAG does not change while VFs are at work");
        return BAD_SYS_STATE;
    }
    set_lag(fn->pf, active, lagc);
    for (Pf *other = next_pf(fn->pf, NULL); other; other = next_pf(fn->pf, other)) {
        set_lag(other, active, lagc);
    }
    return OK;
}

static uint8_t create_lag(Fn *fn)
{
    return fn->pf->lag_active ? BAD_RES_STATE
           : change_lag(fn, true, AT(create_lag_in, fn->in, ctx));
}

static uint8_t destroy_lag(Fn *fn)
{
    return !fn->pf->lag_active ? BAD_RES_STATE : change_lag(fn, false, NULL);
}

static uint8_t query_lag(Fn *fn)
{
    memcpy(AT(query_lag_out, fn->out, ctx), fn->pf->lagc, sizeof(fn->pf->lagc));
    return fn->pf->lag_active ? OK : BAD_RES_STATE;
}

static uint8_t modify_lag(Fn *fn)
{
    memcpy(fn->pf->lagc, AT(modify_lag_in, fn->in, ctx), sizeof(fn->pf->lagc));
    return fn->pf->lag_active ? OK : BAD_RES_STATE;
}

/* ---- flow tables ---------------------------------------------------------------------------- */

static Table *table_named(Fn *fn, uint32_t id)
{
    return g_hash_table_lookup(fn->tables, GUINT_TO_POINTER(id));
}

static void table_context(Table *table, const uint8_t *x)
{
    table->level = GET(flow_table_context, x, level);
    table->miss_action = GET(flow_table_context, x, table_miss_action);
    table->miss_id = GET(flow_table_context, x, table_miss_id);
}

static uint8_t create_flow_table(Fn *fn)
{
    Table *table = table_new(next_id(fn), GET(create_flow_table_in, fn->in, table_type));

    table_context(table, AT(create_flow_table_in, fn->in, flow_table_context));
    g_hash_table_insert(fn->tables, GUINT_TO_POINTER(table->id), table);
    SET(create_flow_table_out, fn->out, table_id, table->id);
    return OK;
}

static uint8_t modify_flow_table(Fn *fn)
{
    Table *table = table_named(fn, GET(modify_flow_table_in, fn->in, table_id));

    if (!table) {
        return BAD_RES;
    }
    if (GET(modify_flow_table_in, fn->in, modify_field_select)
        & MLX5_MODIFY_FLOW_TABLE_MISS_TABLE_ID) {
        table_context(table, AT(modify_flow_table_in, fn->in, flow_table_context));
    }
    return OK;
}

static uint8_t destroy_flow_table(Fn *fn)
{
    uint32_t id = GET(destroy_flow_table_in, fn->in, table_id);

    for (int i = 0; i < TABLE_TYPES; i++) {
        fn->root[i] = fn->root[i] == id ? 0 : fn->root[i];
    }
    for (uint32_t i = 0; !fn->vport && i < vports(fn->pf); i++) {
        for (int acl = 0; acl < 2; acl++) {
            uint32_t *root = &fn->pf->vports[i].acl[acl];

            *root = *root == id ? 0 : *root;
        }
    }
    return g_hash_table_remove(fn->tables, GUINT_TO_POINTER(id)) ? OK : BAD_RES;
}

static uint8_t set_flow_table_root(Fn *fn)
{
    unsigned type = GET(set_flow_table_root_in, fn->in, table_type);
    uint32_t id = GET(set_flow_table_root_in, fn->in, table_id);
    uint16_t n;
    Vport *v = which(fn, &n);

    if (GET(set_flow_table_root_in, fn->in, op_mod) == DISCONNECT) {
        id = 0;
    }
    if (type >= TABLE_TYPES || !v) {
        return BAD_PARAM;
    }
    if (type == ACL_EGRESS || type == ACL_INGRESS) {
        v->acl[type == ACL_INGRESS] = id;
        return OK;
    }
    fn->root[type] = id;
    if (type == FDB) {
        bool elsewhere = GET(set_flow_table_root_in, fn->in, table_eswitch_owner_vhca_id_valid);

        fn->root_vhca = elsewhere
            ? GET(set_flow_table_root_in, fn->in, table_eswitch_owner_vhca_id) + 1 : 0;
    }
    return OK;
}

static uint8_t create_flow_group(Fn *fn)
{
    Table *table = table_named(fn, GET(create_flow_group_in, fn->in, table_id));
    uint32_t id;

    if (!table) {
        return BAD_RES;
    }
    id = next_id(fn);
    group_add(table, id, AT(create_flow_group_in, fn->in, match_criteria));
    SET(create_flow_group_out, fn->out, group_id, id);
    return OK;
}

static uint8_t destroy_flow_group(Fn *fn)
{
    Table *table = table_named(fn, GET(destroy_flow_group_in, fn->in, table_id));
    uint32_t id = GET(destroy_flow_group_in, fn->in, group_id);

    return table && group_remove(table, id) ? OK : BAD_RES;
}

static uint8_t set_fte(Fn *fn)
{
    Table *table = table_named(fn, GET(set_fte_in, fn->in, table_id));

    if (!table) {
        return BAD_RES;
    }
    rule_set(table, fn->in, MAX(fn->inlen, BYTES(set_fte_in)));
    return OK;
}

static uint8_t delete_fte(Fn *fn)
{
    Table *table = table_named(fn, GET(delete_fte_in, fn->in, table_id));

    if (!table) {
        return BAD_RES;
    }
    rule_delete(table, GET(delete_fte_in, fn->in, flow_index));
    return OK;
}

static uint8_t alloc_flow_counter(Fn *fn)
{
    SET(alloc_flow_counter_out, fn->out, flow_counter_id, next_id(fn) << 8);   /* room for a bulk */
    return OK;
}

static uint8_t query_flow_counter(Fn *fn)
{
    uint32_t id = GET(query_flow_counter_in, fn->in, flow_counter_id);
    uint32_t n = MAX(GET(query_flow_counter_in, fn->in, num_of_counters), 1);
    uint8_t *to = fn->out + BYTES(query_flow_counter_out);

    for (; n && to + BYTES(traffic_counter) <= fn->out + fn->outlen;
         n--, id++, to += BYTES(traffic_counter)) {
        Traffic *t = g_hash_table_lookup(fn->counters, GUINT_TO_POINTER(id));

        if (t) {
            SET(traffic_counter, to, packets, t->packets);
            SET(traffic_counter, to, octets, t->octets);
            if (GET(query_flow_counter_in, fn->in, clear)) {
                *t = (Traffic) {};
            }
        }
    }
    return OK;
}

static uint8_t alloc_counter_set(Fn *fn)
{
    stl_be_p(fn->out + OUT_ID, next_id(fn) % 255 + 1);
    return OK;
}

static uint8_t create_element(Fn *fn)
{
    uint8_t *x = AT(create_scheduling_element_in, fn->in, scheduling_context);
    uint32_t id = next_id(fn);

    SET(create_scheduling_element_out, fn->out, scheduling_element_id, id);
    note(fn, "element %u: type %u attributes %#x parent %u share %u limit %u", id,
         (unsigned)GET(scheduling_context, x, element_type),
         (unsigned)GET(scheduling_context, x, element_attributes),
         (unsigned)GET(scheduling_context, x, parent_element_id),
         (unsigned)GET(scheduling_context, x, bw_share),
         (unsigned)GET(scheduling_context, x, max_average_bw));
    return OK;
}

/* ---- all of them ---------------------------------------------------------------------------- */

#define C(name, run) { MLX5_CMD_OP_##name, #name, run }
static const Command commands[] = {
    C(QUERY_HCA_CAP, query_hca_cap), C(SET_HCA_CAP, set_hca_cap), C(QUERY_ADAPTER, query_adapter),
    C(QUERY_ISSI, query_issi), C(SET_ISSI, set_issi), C(SET_DRIVER_VERSION, accept_it),
    C(ENABLE_HCA, enable_hca), C(DISABLE_HCA, disable_hca), C(INIT_HCA, init_hca),
    C(TEARDOWN_HCA, teardown_hca), C(QUERY_PAGES, query_pages), C(MANAGE_PAGES, manage_pages),
    C(ACCESS_REG, access_register), C(NOP, accept_it),

    C(ALLOC_SF, alloc_sf), C(DEALLOC_SF, dealloc_sf), C(QUERY_VHCA_STATE, query_vhca_state),
    C(MODIFY_VHCA_STATE, modify_vhca_state), C(QUERY_ESW_FUNCTIONS, refuse),

    C(CREATE_EQ, create_eq), C(DESTROY_EQ, destroy_eq), C(QUERY_EQ, accept_it),
    C(CREATE_CQ, create_cq), C(DESTROY_CQ, destroy_cq), C(MODIFY_CQ, accept_it),
    C(QUERY_CQ, accept_it), C(CREATE_SQ, create_sq), C(MODIFY_SQ, modify_sq),
    C(DESTROY_SQ, destroy_sq), C(QUERY_SQ, query_sq), C(CREATE_RQ, create_rq),
    C(MODIFY_RQ, modify_rq), C(DESTROY_RQ, destroy_rq), C(QUERY_RQ, query_rq),
    C(SET_DELAY_DROP_PARAMS, accept_it), C(CREATE_TIR, keep), C(MODIFY_TIR, accept_it),
    C(DESTROY_TIR, drop), C(CREATE_TIS, allocate), C(MODIFY_TIS, accept_it),
    C(DESTROY_TIS, accept_it), C(CREATE_RQT, keep), C(MODIFY_RQT, modify_rqt),
    C(DESTROY_RQT, drop), C(CREATE_RMP, allocate), C(MODIFY_RMP, accept_it),
    C(DESTROY_RMP, accept_it), C(ALLOC_UAR, alloc_uar), C(DEALLOC_UAR, dealloc_uar),
    C(ALLOC_PD, allocate), C(DEALLOC_PD, accept_it), C(CREATE_MKEY, allocate),
    C(DESTROY_MKEY, accept_it), C(QUERY_SPECIAL_CONTEXTS, query_special_contexts),
    C(ALLOC_TRANSPORT_DOMAIN, allocate), C(DEALLOC_TRANSPORT_DOMAIN, accept_it),

    C(QUERY_VPORT_STATE, query_vport_state), C(MODIFY_VPORT_STATE, modify_vport_state),
    C(QUERY_ESW_VPORT_CONTEXT, query_esw_vport), C(MODIFY_ESW_VPORT_CONTEXT, modify_esw_vport),
    C(QUERY_NIC_VPORT_CONTEXT, query_nic_vport), C(MODIFY_NIC_VPORT_CONTEXT, modify_nic_vport),
    C(QUERY_HCA_VPORT_CONTEXT, query_hca_vport), C(MODIFY_HCA_VPORT_CONTEXT, modify_hca_vport),
    C(QUERY_HCA_VPORT_GID, query_hca_vport_gid), C(QUERY_HCA_VPORT_PKEY, query_pkey),
    C(QUERY_VPORT_COUNTER, query_vport_counter), C(QUERY_VNIC_ENV, accept_it),
    C(SET_L2_TABLE_ENTRY, accept_it), C(DELETE_L2_TABLE_ENTRY, accept_it),
    C(CREATE_SCHEDULING_ELEMENT, create_element), C(DESTROY_SCHEDULING_ELEMENT, accept_it),
    C(MODIFY_SCHEDULING_ELEMENT, accept_it), C(SET_PP_RATE_LIMIT, accept_it),

    C(SET_FLOW_TABLE_ROOT, set_flow_table_root), C(CREATE_FLOW_TABLE, create_flow_table),
    C(MODIFY_FLOW_TABLE, modify_flow_table), C(DESTROY_FLOW_TABLE, destroy_flow_table),
    C(CREATE_FLOW_GROUP, create_flow_group), C(DESTROY_FLOW_GROUP, destroy_flow_group),
    C(SET_FLOW_TABLE_ENTRY, set_fte), C(DELETE_FLOW_TABLE_ENTRY, delete_fte),
    C(ALLOC_FLOW_COUNTER, alloc_flow_counter), C(DEALLOC_FLOW_COUNTER, accept_it),
    C(QUERY_FLOW_COUNTER, query_flow_counter), C(ALLOC_MODIFY_HEADER_CONTEXT, keep),
    C(DEALLOC_MODIFY_HEADER_CONTEXT, drop), C(ALLOC_PACKET_REFORMAT_CONTEXT, allocate),
    C(DEALLOC_PACKET_REFORMAT_CONTEXT, accept_it), C(ADD_VXLAN_UDP_DPORT, accept_it),
    C(DELETE_VXLAN_UDP_DPORT, accept_it),

    C(CREATE_LAG, create_lag), C(MODIFY_LAG, modify_lag), C(QUERY_LAG, query_lag),
    C(DESTROY_LAG, destroy_lag), C(CREATE_VPORT_LAG, accept_it), C(DESTROY_VPORT_LAG, accept_it),

    C(CREATE_QP, allocate), C(DESTROY_QP, accept_it), C(RST2INIT_QP, accept_it),
    C(INIT2RTR_QP, accept_it), C(RTR2RTS_QP, accept_it), C(RTS2RTS_QP, accept_it),
    C(2ERR_QP, accept_it), C(2RST_QP, accept_it), C(INIT2INIT_QP, accept_it),
    C(SQERR2RTS_QP, accept_it), C(QUERY_QP, accept_it), C(CREATE_SRQ, allocate),
    C(DESTROY_SRQ, accept_it), C(CREATE_XRC_SRQ, allocate), C(DESTROY_XRC_SRQ, accept_it),
    C(ARM_RQ, accept_it), C(ARM_XRC_SRQ, accept_it), C(ALLOC_XRCD, allocate),
    C(DEALLOC_XRCD, accept_it), C(ATTACH_TO_MCG, accept_it), C(DETACH_FROM_MCG, accept_it),
    C(ALLOC_Q_COUNTER, alloc_counter_set), C(DEALLOC_Q_COUNTER, accept_it),
    C(QUERY_Q_COUNTER, accept_it), C(SET_ROCE_ADDRESS, accept_it), C(SET_WOL_ROL, accept_it),
    C(QUERY_WOL_ROL, accept_it), C(QUERY_CONG_STATUS, accept_it), C(QUERY_CONG_PARAMS, accept_it),
    C(QUERY_CONG_STATISTICS, accept_it), C(MODIFY_CONG_STATUS, accept_it), C(MAD_IFC, accept_it),
    C(CREATE_GENERAL_OBJECT, keep), C(MODIFY_GENERAL_OBJECT, modify_general_object),
    C(QUERY_GENERAL_OBJECT, query_general_object), C(DESTROY_GENERAL_OBJECT, drop),
    C(CREATE_UMEM, allocate), C(DESTROY_UMEM, accept_it),
};

const Command *command_of(uint16_t opcode)
{
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (commands[i].opcode == opcode) {
            return &commands[i];
        }
    }
    return NULL;
}

const Command *command_named(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (g_str_equal(commands[i].name, name)) {
            return &commands[i];
        }
    }
    return NULL;
}
