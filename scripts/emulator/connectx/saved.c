/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Saved states. What a function holds is one stream, written and read by the same code; commands
 * that firmware is at, or has not come to, are in it. Faults and times are not: they are the
 * command line's of the machine that resumes.
 */
#include "connectx.h"
#include "migration/vmstate.h"

typedef struct Stream {
    GByteArray *bytes;
    size_t at;
    bool read;
} Stream;

static void pass(Stream *s, void *p, size_t n)
{
    if (!s->read) {
        g_byte_array_append(s->bytes, p, n);
    } else if (s->at + n <= s->bytes->len) {
        memcpy(p, s->bytes->data + s->at, n);
    } else {
        memset(p, 0, n);
    }
    s->at += n;
}

#define PASS(s, field) pass((s), &(field), sizeof(field))

static void pass_bytes(Stream *s, uint8_t **data, uint32_t *length)
{
    PASS(s, *length);
    if (s->read) {
        *data = g_malloc0(*length);
    }
    pass(s, *data, *length);
}

static void pass_pages(Stream *s, uint64_t **pages, uint64_t bytes, uint8_t log_page)
{
    size_t n = DIV_ROUND_UP(bytes, 1ULL << log_page);

    if (s->read) {
        *pages = g_new0(uint64_t, n);
    }
    pass(s, *pages, n * 8);
}

static void pass_array(Stream *s, GArray *array)
{
    uint32_t n = array->len;

    PASS(s, n);
    g_array_set_size(array, n);
    pass(s, array->data, n * 8);
}

static void pass_caps(Stream *s, uint8_t **caps)
{
    for (int i = 0; i < CAP_TYPES; i++) {
        uint8_t there = caps[i] != NULL;

        PASS(s, there);
        if (s->read) {
            g_free(caps[i]);
            caps[i] = there ? g_malloc0(CAP_BYTES) : NULL;
        }
        if (there) {
            pass(s, caps[i], CAP_BYTES);
        }
    }
}

/* Every value of a table by its number; what is read is made by `pass_one` from NULL. */
typedef void *PassOne(Stream *s, Fn *fn, uint32_t key, void *value);

static void pass_table(Stream *s, Fn *fn, GHashTable *table, PassOne *pass_one)
{
    uint32_t n = g_hash_table_size(table);
    GHashTableIter i;
    void *key, *value;

    PASS(s, n);
    g_hash_table_iter_init(&i, table);
    for (; n && s->at <= s->bytes->len; n--) {
        uint32_t number = 0;

        value = NULL;
        if (!s->read && g_hash_table_iter_next(&i, &key, &value)) {
            number = GPOINTER_TO_UINT(key);
        }
        PASS(s, number);
        value = pass_one(s, fn, number, value);
        if (s->read) {
            g_hash_table_insert(table, GUINT_TO_POINTER(number), value);
        }
    }
}

static void *pass_cq(Stream *s, Fn *fn, uint32_t number, void *value)
{
    Cq *cq = value ?: g_new0(Cq, 1);

    pass(s, cq, offsetof(Cq, pages));
    pass_pages(s, &cq->pages, 1ULL << (cq->log_size + cq->log_stride), cq->log_page);
    return cq;
}

static void *pass_wq(Stream *s, Fn *fn, uint32_t number, void *value)
{
    Wq *wq = value ?: g_new0(Wq, 1);

    pass(s, wq, offsetof(Wq, pages));
    pass_pages(s, &wq->pages, 1ULL << (wq->log_size + wq->log_stride), wq->log_page);
    return wq;
}

static void *pass_kept(Stream *s, Fn *fn, uint32_t number, void *value)
{
    Kept *kept = value ?: g_new0(Kept, 1);

    kept->id = number;
    PASS(s, kept->made_by);
    pass_bytes(s, &kept->in, &kept->length);
    return kept;
}

static void *pass_traffic(Stream *s, Fn *fn, uint32_t number, void *value)
{
    Traffic *traffic = value ?: g_new0(Traffic, 1);

    PASS(s, *traffic);
    return traffic;
}

static void *pass_group(Stream *s, Table *table, Group *group)
{
    uint32_t id = group ? group->id : 0;
    uint64_t mask[MATCH_BYTES / 8] = {};

    if (group) {
        memcpy(mask, group->mask, sizeof(mask));
    }
    PASS(s, id);
    PASS(s, mask);
    if (s->read) {
        group_add(table, id, (uint8_t *)mask);
    }
    return group;
}

static void *pass_flow_table(Stream *s, Fn *fn, uint32_t number, void *value)
{
    Table *table = value ?: table_new(number, 0);
    uint32_t groups = g_hash_table_size(table->groups), rules = table->rules->len;
    GHashTableIter i;
    void *group = NULL;

    PASS(s, table->type);
    PASS(s, table->level);
    PASS(s, table->miss_action);
    PASS(s, table->miss_id);
    PASS(s, groups);
    g_hash_table_iter_init(&i, table->groups);
    for (; groups && s->at <= s->bytes->len; groups--) {
        if (!s->read) {
            g_hash_table_iter_next(&i, NULL, &group);
        }
        pass_group(s, table, group);
    }
    PASS(s, rules);
    for (uint32_t r = 0; r < rules && s->at <= s->bytes->len; r++) {
        Rule *rule = s->read ? NULL : g_ptr_array_index(table->rules, r);
        uint8_t *in = rule ? rule->in : NULL;
        uint32_t length = rule ? rule->length : 0;

        pass_bytes(s, &in, &length);
        if (s->read) {
            rule_set(table, in, length);
            g_free(in);
        }
    }
    return table;
}

static void pass_fn(Stream *s, Fn *fn)
{
    PASS(s, fn->queue);
    PASS(s, fn->queue_low);
    PASS(s, fn->issi);
    PASS(s, fn->running);
    PASS(s, fn->stopped);
    PASS(s, fn->slot);
    PASS(s, fn->busy);
    PASS(s, fn->due);
    PASS(s, fn->root);
    PASS(s, fn->root_vhca);
    PASS(s, fn->last_id);
    PASS(s, fn->uar_used);
    pass_caps(s, fn->cur);
    pass_array(s, fn->pages);
    for (int e = 0; e < EQS; e++) {
        Eq *eq = &fn->eq[e];

        PASS(s, eq->used);
        if (eq->used) {
            pass(s, eq, offsetof(Eq, pages));
            pass_pages(s, &eq->pages, 64ULL << eq->log_size, eq->log_page);
        }
    }
    pass_table(s, fn, fn->cqs, pass_cq);
    pass_table(s, fn, fn->sqs, pass_wq);
    pass_table(s, fn, fn->rqs, pass_wq);
    pass_table(s, fn, fn->objects, pass_kept);
    pass_table(s, fn, fn->counters, pass_traffic);
    pass_table(s, fn, fn->tables, pass_flow_table);
}

static void pass_registers(Stream *s, Pf *pf)
{
    uint32_t n = g_hash_table_size(pf->registers);
    GHashTableIter i;
    void *key, *value;

    PASS(s, n);
    g_hash_table_iter_init(&i, pf->registers);
    for (; n && s->at <= s->bytes->len; n--) {
        uint64_t id = 0;
        uint32_t length = 0;
        uint8_t *data = NULL;

        if (!s->read && g_hash_table_iter_next(&i, &key, &value)) {
            id = *(uint64_t *)key;
            data = ((GByteArray *)value)->data;
            length = ((GByteArray *)value)->len;
        }
        PASS(s, id);
        pass_bytes(s, &data, &length);
        if (s->read) {
            g_hash_table_replace(pf->registers, g_memdup2(&id, 8),
                                 g_byte_array_new_take(data, length));
        }
    }
}

static void pass_pf(Stream *s, Pf *pf)
{
    PASS(s, pf->port_admin);
    PASS(s, pf->port_up);
    PASS(s, pf->unplugged);
    PASS(s, pf->eth_proto_admin);
    PASS(s, pf->lag_active);
    PASS(s, pf->lagc);
    PASS(s, pf->arrivals);
    if (s->read) {
        g_hash_table_remove_all(pf->registers);
    }
    pass_registers(s, pf);
    for (uint32_t i = 0; i < vports(pf); i++) {
        Vport *v = &pf->vports[i];

        PASS(s, v->nic);
        PASS(s, v->esw);
        PASS(s, v->hca);
        PASS(s, v->admin);
        PASS(s, v->mtu);
        PASS(s, v->enabled);
        PASS(s, v->sf_state);
        PASS(s, v->unseen);
        PASS(s, v->sf_armed);
        PASS(s, v->sf_number);
        PASS(s, v->acl);
        PASS(s, v->traffic);
        for (int l = 0; l < 3; l++) {
            PASS(s, v->list[l].n);
            v->list[l].n = MIN(v->list[l].n, MAX_LIST);
            pass(s, v->list[l].e, v->list[l].n * 8);
        }
        pass_caps(s, v->cap);
        pass_array(s, v->pages);
    }
    for (unsigned i = 0; i < pf->sfs; i++) {
        pass_fn(s, pf->sf[i]);
    }
}

static int fn_pre_save(Fn *fn)
{
    Stream s = { .bytes = g_byte_array_new() };

    pass_fn(&s, fn);
    if (!fn->vport) {
        pass_pf(&s, fn->pf);
    }
    g_free(fn->saved);
    fn->saved_len = s.bytes->len;
    fn->saved = g_byte_array_free(s.bytes, false);
    return 0;
}

static int fn_post_load(Fn *fn)
{
    Stream s = { .bytes = g_byte_array_new_take(fn->saved, fn->saved_len), .read = true };
    Pf *pf = fn->pf;

    fn->saved = NULL;
    firmware_forget(fn);
    fn_release(fn);
    pass_fn(&s, fn);
    if (!fn->vport) {
        pass_pf(&s, pf);
    }
    int left = s.at != s.bytes->len;
    g_byte_array_unref(s.bytes);
    if (left) {
        return -EINVAL;
    }
    firmware_resume(fn);
    for (unsigned i = 0; !fn->vport && i < pf->sfs; i++) {
        firmware_resume(pf->sf[i]);
    }
    return 0;
}

static int pf_pre_save(void *opaque)
{
    return fn_pre_save(&((Pf *)opaque)->fn);
}

static int vf_pre_save(void *opaque)
{
    return fn_pre_save(&((Vf *)opaque)->fn);
}

static int pf_post_load(void *opaque, int version)
{
    Pf *pf = opaque;
    uint8_t *cap = pf->pci.config + SRIOV_CAP, *mask = pf->pci.wmask + SRIOV_CAP;

    /* QEMU 10.0.2 takes VFs for enabled in every state that is loaded: NumVFs stays read-only. */
    if (!(pci_get_word(cap + PCI_SRIOV_CTRL) & PCI_SRIOV_CTRL_VFE)) {
        pci_set_word(mask + PCI_SRIOV_NUM_VF, 0xffff);
    }
    return fn_post_load(&pf->fn);
}

static int vf_post_load(void *opaque, int version)
{
    return fn_post_load(&((Vf *)opaque)->fn);
}

/* A PF's state comes first: when it is loaded, its VFs appear, and are reset thereby. */
#define SAVED(type, first, before, after) { \
    .name = "mlx5fw", \
    .version_id = 2, \
    .minimum_version_id = 2, \
    .priority = first, \
    .pre_save = before, \
    .post_load = after, \
    .fields = (const VMStateField[]) { \
        VMSTATE_PCI_DEVICE(pci, type), \
        VMSTATE_MSIX(pci, type), \
        VMSTATE_UINT32(fn.saved_len, type), \
        VMSTATE_VBUFFER_ALLOC_UINT32(fn.saved, type, 1, NULL, fn.saved_len), \
        VMSTATE_END_OF_LIST() \
    } \
}
const VMStateDescription pf_saved = SAVED(Pf, MIG_PRI_PCI_BUS, pf_pre_save, pf_post_load);
const VMStateDescription vf_saved = SAVED(Vf, MIG_PRI_DEFAULT, vf_pre_save, vf_post_load);
