/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Steering: flow tables as the driver made them, and the way of a frame through them.
 *
 *   send queue -> NIC transmit tables -> vport's ingress ACL -> FDB -> egress ACL of each vport
 *   that it is for -> NIC receive tables -> TIR -> receive queue
 *
 * Everything that decides is the driver's: an FDB of MAC addresses in legacy mode, ACLs for VLAN and
 * spoof checking, representors and miss rules in switchdev mode. Only what happens without any table,
 * or with no rule that matches in the last one, is decided here.
 */
#include "connectx.h"

enum { MISS_DEFAULT = 0, MISS_FORWARD = 1 };
enum { DEEPEST = 64, COPY_ACTION = 3, SET_ACTION = 1, ADD_ACTION = 2 };

typedef enum { DROPPED, ALLOWED, MISSED, TAKEN } Verdict;

static void to_vport(Pf *pf, uint16_t vport, const Frame *f);

/* ---- tables --------------------------------------------------------------------------------- */

static void rule_free(void *p)
{
    Rule *rule = p;

    g_free(rule->in);
    g_free(rule);
}

Table *table_new(uint32_t id, uint8_t type)
{
    Table *table = g_new0(Table, 1);

    table->id = id;
    table->type = type;
    table->groups = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    table->rules = g_ptr_array_new_with_free_func(rule_free);
    return table;
}

void table_free(void *p)
{
    Table *table = p;

    g_ptr_array_unref(table->rules);
    g_hash_table_unref(table->groups);
    g_free(table);
}

void group_add(Table *table, uint32_t id, const uint8_t *criteria)
{
    Group *group = g_new0(Group, 1);

    group->id = id;
    memcpy(group->mask, criteria, MATCH_BYTES);
    for (unsigned i = 0; i < MATCH_BYTES / 8; i++) {
        if (group->mask[i]) {
            group->word[group->words++] = i;
        }
    }
    g_hash_table_replace(table->groups, GUINT_TO_POINTER(id), group);
}

bool group_remove(Table *table, uint32_t id)
{
    Group *group = g_hash_table_lookup(table->groups, GUINT_TO_POINTER(id));

    for (unsigned i = table->rules->len; i-- > 0;) {
        Rule *rule = g_ptr_array_index(table->rules, i);

        if (rule->group == group) {
            g_ptr_array_remove_index(table->rules, i);
        }
    }
    return g_hash_table_remove(table->groups, GUINT_TO_POINTER(id));
}

static unsigned rule_place(Table *table, uint32_t index)
{
    unsigned low = 0, high = table->rules->len;

    while (low < high) {
        unsigned middle = (low + high) / 2;
        Rule *rule = g_ptr_array_index(table->rules, middle);

        if (rule->index < index) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

void rule_delete(Table *table, uint32_t index)
{
    unsigned at = rule_place(table, index);

    if (at < table->rules->len && ((Rule *)g_ptr_array_index(table->rules, at))->index == index) {
        g_ptr_array_remove_index(table->rules, at);
    }
}

/* A rule, or another one in its place. */
void rule_set(Table *table, const uint8_t *in, uint32_t length)
{
    const uint8_t *x = AT(set_fte_in, in, flow_context);
    Rule *rule = g_new0(Rule, 1);

    rule->index = GET(set_fte_in, in, flow_index);
    rule->length = length;
    rule->in = g_memdup2(in, length);
    rule->group = g_hash_table_lookup(table->groups,
                                      GUINT_TO_POINTER((uint32_t)GET(flow_context, x, group_id)));
    memcpy(rule->value, AT(flow_context, x, match_value), MATCH_BYTES);
    rule_delete(table, rule->index);
    g_ptr_array_insert(table->rules, rule_place(table, rule->index), rule);
}

static Table *table_of(Fn *fn, uint32_t id)
{
    return g_hash_table_lookup(fn->tables, GUINT_TO_POINTER(id));
}

static Rule *match(Table *table, const Frame *f)
{
    for (unsigned i = 0; i < table->rules->len; i++) {
        Rule *rule = g_ptr_array_index(table->rules, i);
        Group *group = rule->group;
        unsigned w = 0;

        if (!group) {
            continue;
        }
        while (w < group->words) {
            unsigned at = group->word[w];

            if ((f->key[at] ^ rule->value[at]) & group->mask[at]) {
                break;
            }
            w++;
        }
        if (w == group->words) {
            return rule;
        }
    }
    return NULL;
}

/* ---- actions -------------------------------------------------------------------------------- */

/* The register that an action's field names; NULL where it is not one. */
static uint32_t *metadata(Frame *f, unsigned field)
{
    if (field == MLX5_ACTION_IN_FIELD_METADATA_REG_A) {
        return &f->reg_a;
    }
    if (field == MLX5_ACTION_IN_FIELD_METADATA_REG_B) {
        return &f->reg_b;
    }
    if (field >= MLX5_ACTION_IN_FIELD_METADATA_REG_C_0
        && field <= MLX5_ACTION_IN_FIELD_METADATA_REG_C_7) {
        return &f->reg_c[field - MLX5_ACTION_IN_FIELD_METADATA_REG_C_0];
    }
    return NULL;
}

static uint32_t bits_of(unsigned offset, unsigned length)
{
    return (length && length < 32 ? (1u << length) - 1 : ~0u) << offset;
}

static void modify_header(Fn *fn, uint32_t id, Frame *f)
{
    Kept *o = g_hash_table_lookup(fn->objects, GUINT_TO_POINTER(id));

    if (!o || o->made_by != MLX5_CMD_OP_ALLOC_MODIFY_HEADER_CONTEXT) {
        return;
    }
    unsigned n = GET(alloc_modify_header_context_in, o->in, num_of_actions);
    uint8_t *a = AT(alloc_modify_header_context_in, o->in, actions);
    for (; n && a + BYTES(set_action_in) <= o->in + o->length; n--, a += BYTES(set_action_in)) {
        unsigned type = GET(set_action_in, a, action_type);
        uint32_t *to = metadata(f, GET(set_action_in, a, field));

        if (type == SET_ACTION && to) {
            unsigned offset = GET(set_action_in, a, offset);
            uint32_t mask = bits_of(offset, GET(set_action_in, a, length));

            *to = (*to & ~mask) | ((uint32_t)GET(set_action_in, a, data) << offset & mask);
        } else if (type == COPY_ACTION) {
            uint32_t *from = to;
            unsigned length = GET(copy_action_in, a, length);
            unsigned right = GET(copy_action_in, a, src_offset);
            unsigned left = GET(copy_action_in, a, dst_offset);
            uint32_t mask = bits_of(left, length);

            to = metadata(f, GET(copy_action_in, a, dst_field));
            if (from && to) {
                *to = (*to & ~mask) | (*from >> right << left & mask);
            }
        } else if (type == ADD_ACTION && GET(add_action_in, a, field) == MLX5_ACTION_IN_FIELD_OUT_IP_TTL
                   && f->ip_version == 4) {
            f->data[f->l3 + 8] += GET(add_action_in, a, data);
            frame_checksums(f, true, false);
        } else if (type == SET_ACTION && GET(set_action_in, a, field)
                   == MLX5_ACTION_IN_FIELD_OUT_SMAC_47_16) {
            stl_be_p(f->data + 6, GET(set_action_in, a, data));
        } else if (type == SET_ACTION && GET(set_action_in, a, field)
                   == MLX5_ACTION_IN_FIELD_OUT_SMAC_15_0) {
            stw_be_p(f->data + 10, GET(set_action_in, a, data));
        } else if (type == SET_ACTION && GET(set_action_in, a, field)
                   == MLX5_ACTION_IN_FIELD_OUT_DMAC_47_16) {
            stl_be_p(f->data, GET(set_action_in, a, data));
        } else if (type == SET_ACTION && GET(set_action_in, a, field)
                   == MLX5_ACTION_IN_FIELD_OUT_DMAC_15_0) {
            stw_be_p(f->data + 4, GET(set_action_in, a, data));
        }
    }
    frame_parse(f);
}

static void count(Fn *fn, uint32_t id, const Frame *f)
{
    Traffic *t = g_hash_table_lookup(fn->counters, GUINT_TO_POINTER(id));

    if (!t) {
        t = g_new0(Traffic, 1);
        g_hash_table_insert(fn->counters, GUINT_TO_POINTER(id), t);
    }
    t->packets++;
    t->octets += f->length;
}

/* A TIR leads to a queue, or to one of an indirection table's by the frame's hash. */
static void to_tir(Fn *fn, uint32_t tirn, Frame *f)
{
    Kept *tir = g_hash_table_lookup(fn->objects, GUINT_TO_POINTER(tirn));
    uint32_t hash = frame_hash(f);

    if (!tir || tir->made_by != MLX5_CMD_OP_CREATE_TIR) {
        return;
    }
    uint8_t *x = AT(create_tir_in, tir->in, ctx);
    if (GET(tirc, x, disp_type) == MLX5_TIRC_DISP_TYPE_DIRECT) {
        receive(fn, GET(tirc, x, inline_rqn), f, hash);
        return;
    }
    Kept *rqt = g_hash_table_lookup(fn->objects,
                                      GUINT_TO_POINTER((uint32_t)GET(tirc, x, indirect_table)));
    if (!rqt || rqt->made_by != MLX5_CMD_OP_CREATE_RQT) {
        return;
    }
    uint8_t *t = AT(create_rqt_in, rqt->in, rqt_context);
    uint32_t n = GET(rqtc, t, rqt_actual_size);
    uint8_t *rq = t + BYTES(rqtc) + (n ? hash % n : 0) * 4;
    if (n && rq + 4 <= rqt->in + rqt->length) {
        receive(fn, ldl_be_p(rq) & 0xffffff, f, hash);
    }
}

static Verdict steer(Fn *fn, uint32_t id, Frame *f, int depth)
{
    Table *table;

    for (; depth < DEEPEST && (table = table_of(fn, id)); depth++) {
        Rule *rule = match(table, f);

        if (!rule) {
            if (table->miss_action != MISS_FORWARD) {
                return MISSED;
            }
            id = table->miss_id;
            continue;
        }
        uint8_t *x = AT(set_fte_in, rule->in, flow_context);
        unsigned action = GET(flow_context, x, action);
        unsigned n = GET(flow_context, x, destination_list_size);
        uint8_t *dest = AT(flow_context, x, destination);
        unsigned size = GET(flow_context, x, extended_destination) ? BYTES(extended_dest_format)
                        : BYTES(dest_format_struct);

        f->tag = GET(flow_context, x, flow_tag) ?: f->tag;
        if (action & MLX5_FLOW_CONTEXT_ACTION_COUNT) {
            uint8_t *counter = dest + n * size;

            for (unsigned i = GET(flow_context, x, flow_counter_list_size);
                 i && counter + size <= rule->in + rule->length; i--, counter += size) {
                count(fn, GET(flow_counter_list, counter, flow_counter_id), f);
            }
        }
        if (action & MLX5_FLOW_CONTEXT_ACTION_DROP) {
            return DROPPED;
        }
        if (action & (MLX5_FLOW_CONTEXT_ACTION_PACKET_REFORMAT | MLX5_FLOW_CONTEXT_ACTION_DECAP)) {
            note(fn, "a frame that is to be encapsulated is dropped: not modelled");
            return DROPPED;
        }
        if (action & MLX5_FLOW_CONTEXT_ACTION_VLAN_POP && frame_tagged(f)) {
            frame_pop_vlan(f);
        }
        if (action & MLX5_FLOW_CONTEXT_ACTION_MOD_HDR) {
            modify_header(fn, GET(flow_context, x, modify_header_id), f);
        }
        if (action & MLX5_FLOW_CONTEXT_ACTION_VLAN_PUSH) {
            frame_push_vlan(f, GET(flow_context, x, push_vlan.ethtype),
                            GET(flow_context, x, push_vlan.prio) << 13
                            | GET(flow_context, x, push_vlan.vid));
        }
        if (!(action & MLX5_FLOW_CONTEXT_ACTION_FWD_DEST)) {
            return ALLOWED;
        }
        Verdict last = DROPPED;
        for (unsigned i = 0; i < n; i++, dest += size) {
            unsigned type = GET(dest_format_struct, dest, destination_type);
            uint32_t to = GET(dest_format_struct, dest, destination_id);
            uint16_t vhca = GET(dest_format_struct, dest, destination_eswitch_owner_vhca_id);
            bool elsewhere = GET(dest_format_struct, dest, destination_eswitch_owner_vhca_id_valid);
            Pf *pf = elsewhere ? pf_of_vhca(fn->pf, vhca) : fn->pf;
            g_autofree Frame *copy = n > 1 ? frame_copy(f) : NULL;
            Frame *each = copy ?: f;

            switch (type) {
            case MLX5_IFC_FLOW_DESTINATION_TYPE_FLOW_TABLE:
            case MLX5_IFC_FLOW_DESTINATION_TYPE_TABLE_TYPE:
                last = steer(fn, to, each, depth + 1);
                break;
            case MLX5_IFC_FLOW_DESTINATION_TYPE_TIR:
                to_tir(fn, to, each);
                last = TAKEN;
                break;
            case MLX5_IFC_FLOW_DESTINATION_TYPE_VPORT:
                if (pf) {
                    to_vport(pf, to, each);
                }
                last = TAKEN;
                break;
            case MLX5_IFC_FLOW_DESTINATION_TYPE_UPLINK:
                if (pf) {
                    to_vport(pf, UPLINK, each);
                }
                last = TAKEN;
                break;
            default:
                note(fn, "a frame for a destination of type %#x is dropped: not modelled", type);
            }
        }
        return last;
    }
    return MISSED;
}

/* ---- the way of a frame --------------------------------------------------------------------- */

static void traffic(Vport *v, unsigned direction, const Frame *f)
{
    Traffic *t = &v->traffic[direction][frame_cast(f)];

    t->packets++;
    t->octets += f->length;
}

/* An ACL lets pass what it has no rule for. */
static bool acl_allows(Pf *pf, Vport *v, bool ingress, Frame *f)
{
    Verdict verdict = v->acl[ingress] ? steer(&pf->fn, v->acl[ingress], f, 0) : ALLOWED;

    return verdict == ALLOWED || verdict == MISSED;
}

/* The eswitch. What it has no rule for goes to the wire, or without any FDB from there to the PF. */
static void forward(Pf *pf, Frame *f)
{
    Pf *owner = pf->fn.root_vhca ? pf_of_vhca(pf, pf->fn.root_vhca - 1) ?: pf : pf;

    f->source_vhca = pf->vhca;
    frame_parse(f);
    if (pf->fn.root[FDB] && steer(&owner->fn, pf->fn.root[FDB], f, 0) != MISSED) {
        return;
    }
    if (f->from) {
        to_vport(pf, UPLINK, f);
    } else if (!pf->fn.root[FDB]) {
        to_vport(pf, 0, f);
    }
}

static void from_wire(Pf *pf, const Frame *f)
{
    g_autofree Frame *copy = frame_copy(f);

    copy->from = NULL;
    copy->sqn = copy->reg_a = copy->reg_b = copy->tag = 0;
    memset(copy->reg_c, 0, sizeof(copy->reg_c));
    copy->source_port = UPLINK;
    copy->source_vhca = pf->vhca;
    frame_parse(copy);
    if (acl_allows(pf, vport_of(pf, UPLINK), true, copy)) {
        forward(pf, copy);
    }
}

static void to_vport(Pf *pf, uint16_t vport, const Frame *frame)
{
    Vport *v = vport_of(pf, vport);
    Fn *fn = fn_of_vport(pf, vport);

    if (!v || (vport == frame->source_port && frame->source_vhca == pf->vhca)) {
        return;
    }
    if (vport == UPLINK) {
        if (pf->wire && pf->port_up) {
            for (Pf *other = next_pf(pf, NULL); other; other = next_pf(pf, other)) {
                if (other->port_up) {
                    from_wire(other, frame);
                }
            }
        }
        return;
    }
    if (!fn || !fn->running || !vport_up(pf, vport)) {
        return;
    }
    g_autofree Frame *f = frame_copy(frame);
    if (!acl_allows(pf, v, false, f)) {
        return;
    }
    if (GET(esw_vport_context, v->esw, vport_cvlan_strip) && frame_tagged(f)) {
        frame_pop_vlan(f);
    }
    if (!GET(esw_vport_context, v->esw, fdb_to_vport_reg_c_id)) {
        memset(f->reg_c, 0, sizeof(f->reg_c));
    }
    f->reg_a = f->tag = 0;
    frame_parse(f);
    traffic(v, RECEIVED, f);
    if (fn->root[NIC_RX]) {
        steer(fn, fn->root[NIC_RX], f, 0);
    }
}

void transmit(Fn *fn, Frame *f)
{
    Pf *pf = fn->pf;
    Vport *v = vport_of(pf, fn->vport);

    f->source_vhca = pf->vhca;
    frame_parse(f);
    if (fn->root[NIC_TX]) {
        Verdict verdict = steer(fn, fn->root[NIC_TX], f, 0);

        if (verdict != ALLOWED && verdict != MISSED) {
            return;
        }
    }
    if ((fn->vport && !vport_up(pf, fn->vport)) || !acl_allows(pf, v, true, f)) {
        return;
    }
    traffic(v, TRANSMITTED, f);
    if (GET(esw_vport_context, v->esw, vport_cvlan_insert) && !frame_tagged(f)) {
        frame_push_vlan(f, 0, GET(esw_vport_context, v->esw, cvlan_pcp) << 13
                        | GET(esw_vport_context, v->esw, cvlan_id));
    }
    forward(pf, f);
}
