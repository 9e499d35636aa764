/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Frames: their headers as flow tables match them, VLAN tags, checksums, segmentation.
 */
#include "connectx.h"

enum {
    ETH_HEADER = 14, ETH_TYPE = 12, VLAN_HEADER = 4,
    TYPE_IPV4 = 0x0800, TYPE_IPV6 = 0x86dd, TYPE_CVLAN = 0x8100, TYPE_SVLAN = 0x88a8,
    IPV4_LENGTH = 2, IPV4_ID = 4, IPV4_FRAGMENT = 6, IPV4_SUM = 10, IPV4_ADDRESSES = 12,
    IPV6_LENGTH = 4, IPV6_HEADER = 40, IPV6_ADDRESSES = 8,
    TCP_SEQUENCE = 4, TCP_OFFSET = 12, TCP_FLAGS = 13, TCP_SUM = 16, UDP_LENGTH = 4, UDP_SUM = 6,
    UDP_HEADER = 8, FIN_PSH = 0x09, CWR = 0x80,
};

Frame *frame_copy(const Frame *f)
{
    Frame *copy = g_malloc(sizeof(*copy));

    memcpy(copy, f, offsetof(Frame, data) + f->length);
    return copy;
}

bool frame_tagged(const Frame *f)
{
    return f->length >= ETH_HEADER + VLAN_HEADER && lduw_be_p(f->data + ETH_TYPE) == TYPE_CVLAN;
}

/* The headers, and fte_match_param filled from them and from what is known of the frame's way. */
void frame_parse(Frame *f)
{
    uint8_t *k = (uint8_t *)f->key, *o = AT(fte_match_param, k, outer_headers);
    uint8_t *misc = AT(fte_match_param, k, misc_parameters);
    uint8_t *misc2 = AT(fte_match_param, k, misc_parameters_2);
    uint32_t at = ETH_TYPE;
    uint16_t type = lduw_be_p(f->data + at);

    memset(k, 0, sizeof(f->key));
    f->l3 = f->l4 = f->ip_version = f->protocol = 0;
    memcpy(AT(fte_match_set_lyr_2_4, o, dmac_47_16), f->data, 6);
    memcpy(AT(fte_match_set_lyr_2_4, o, smac_47_16), f->data + 6, 6);
    while ((type == TYPE_CVLAN || type == TYPE_SVLAN) && at + VLAN_HEADER + 2 <= f->length) {
        if (at == ETH_TYPE) {
            uint16_t tci = lduw_be_p(f->data + at + 2);

            SET(fte_match_set_lyr_2_4, o, first_vid, tci & 0xfff);
            SET(fte_match_set_lyr_2_4, o, first_cfi, tci >> 12 & 1);
            SET(fte_match_set_lyr_2_4, o, first_prio, tci >> 13);
            SET(fte_match_set_lyr_2_4, o, cvlan_tag, type == TYPE_CVLAN);
            SET(fte_match_set_lyr_2_4, o, svlan_tag, type == TYPE_SVLAN);
        }
        at += VLAN_HEADER;
        type = lduw_be_p(f->data + at);
    }
    at += 2;
    SET(fte_match_set_lyr_2_4, o, ethertype, type);

    uint8_t *ip = f->data + at;
    bool first = true;
    if (type == TYPE_IPV4 && f->length >= at + 20) {
        f->ip_version = 4;
        f->l3 = at;
        f->protocol = ip[9];
        f->l4 = at + (ip[0] & 0xf) * 4;
        first = !(lduw_be_p(ip + IPV4_FRAGMENT) & 0x1fff);
        SET(fte_match_set_lyr_2_4, o, frag, (lduw_be_p(ip + IPV4_FRAGMENT) & 0x3fff) != 0);
        SET(fte_match_set_lyr_2_4, o, ip_dscp, ip[1] >> 2);
        SET(fte_match_set_lyr_2_4, o, ip_ecn, ip[1] & 3);
        SET(fte_match_set_lyr_2_4, o, ttl_hoplimit, ip[8]);
        memcpy(AT(fte_match_set_lyr_2_4, o, src_ipv4_src_ipv6) + 12, ip + IPV4_ADDRESSES, 4);
        memcpy(AT(fte_match_set_lyr_2_4, o, dst_ipv4_dst_ipv6) + 12, ip + IPV4_ADDRESSES + 4, 4);
    } else if (type == TYPE_IPV6 && f->length >= at + IPV6_HEADER) {
        f->ip_version = 6;
        f->l3 = at;
        f->protocol = ip[6];
        f->l4 = at + IPV6_HEADER;
        SET(fte_match_set_lyr_2_4, o, ip_dscp, (lduw_be_p(ip) >> 6) & 0x3f);
        SET(fte_match_set_lyr_2_4, o, ttl_hoplimit, ip[7]);
        memcpy(AT(fte_match_set_lyr_2_4, o, src_ipv4_src_ipv6), ip + IPV6_ADDRESSES, 16);
        memcpy(AT(fte_match_set_lyr_2_4, o, dst_ipv4_dst_ipv6), ip + IPV6_ADDRESSES + 16, 16);
        if (f->protocol == 0 && f->length >= f->l4 + 8) {       /* hop-by-hop: MLD */
            f->protocol = f->data[f->l4];
            f->l4 += 8 + f->data[f->l4 + 1] * 8;
        }
    }
    SET(fte_match_set_lyr_2_4, o, ip_version, f->ip_version);
    SET(fte_match_set_lyr_2_4, o, ip_protocol, f->protocol);
    if (!first || f->length < f->l4 + UDP_HEADER) {
        f->l4 = 0;
    }
    if (f->l4 && f->protocol == IP_PROTO_TCP && f->length >= f->l4 + 20) {
        memcpy(AT(fte_match_set_lyr_2_4, o, tcp_sport), f->data + f->l4, 4);
        SET(fte_match_set_lyr_2_4, o, tcp_flags, lduw_be_p(f->data + f->l4 + TCP_OFFSET) & 0x1ff);
    } else if (f->l4 && f->protocol == IP_PROTO_UDP) {
        memcpy(AT(fte_match_set_lyr_2_4, o, udp_sport), f->data + f->l4, 4);
    }
    SET(fte_match_set_misc, misc, source_sqn, f->sqn);
    SET(fte_match_set_misc, misc, source_port, f->source_port);
    SET(fte_match_set_misc, misc, source_eswitch_owner_vhca_id, f->source_vhca);
    SET(fte_match_set_misc2, misc2, metadata_reg_a, f->reg_a);
    for (int i = 0; i < 8; i++) {       /* reg_c_7 comes first */
        stl_be_p(AT(fte_match_set_misc2, misc2, metadata_reg_c_7) + (7 - i) * 4, f->reg_c[i]);
    }
}

unsigned frame_cast(const Frame *f)
{
    static const uint8_t all[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

    return !(f->data[0] & 1) ? UNICAST : memcmp(f->data, all, 6) ? MULTICAST : BROADCAST;
}

void frame_push_vlan(Frame *f, uint16_t ethertype, uint16_t tci)
{
    if (f->length + VLAN_HEADER > FRAME_BYTES) {
        return;
    }
    memmove(f->data + ETH_TYPE + VLAN_HEADER, f->data + ETH_TYPE, f->length - ETH_TYPE);
    stw_be_p(f->data + ETH_TYPE, ethertype ?: TYPE_CVLAN);
    stw_be_p(f->data + ETH_TYPE + 2, tci);
    f->length += VLAN_HEADER;
    frame_parse(f);
}

void frame_pop_vlan(Frame *f)
{
    f->length -= VLAN_HEADER;
    memmove(f->data + ETH_TYPE, f->data + ETH_TYPE + VLAN_HEADER, f->length - ETH_TYPE);
    frame_parse(f);
}

/* ---- checksums ------------------------------------------------------------------------------ */

static uint32_t sum(const uint8_t *p, uint32_t n, uint32_t s)
{
    for (; n > 1; n -= 2, p += 2) {
        s += lduw_be_p(p);
    }
    s += n ? *p << 8 : 0;
    while (s >> 16) {
        s = (s & 0xffff) + (s >> 16);
    }
    return s;
}

uint16_t frame_sum(const Frame *f)
{
    return sum(f->data + ETH_HEADER, f->length - ETH_HEADER, 0);
}

void frame_checksums(Frame *f, bool l3, bool l4)
{
    uint8_t *ip = f->data + f->l3, *to = f->data + f->l4;

    if (l3 && f->ip_version == 4) {
        stw_be_p(ip + IPV4_SUM, 0);
        stw_be_p(ip + IPV4_SUM, ~sum(ip, f->l4 ? f->l4 - f->l3 : (ip[0] & 0xf) * 4, 0));
    }
    if (!l4 || !f->l4 || (f->protocol != IP_PROTO_TCP && f->protocol != IP_PROTO_UDP)) {
        return;
    }
    uint32_t end = f->l3 + (f->ip_version == 4 ? lduw_be_p(ip + IPV4_LENGTH)
                            : IPV6_HEADER + lduw_be_p(ip + IPV6_LENGTH));
    uint32_t n = MIN(end, f->length) - f->l4;
    uint32_t s = f->ip_version == 4 ? sum(ip + IPV4_ADDRESSES, 8, 0)
                 : sum(ip + IPV6_ADDRESSES, 32, 0);
    unsigned field = f->protocol == IP_PROTO_TCP ? TCP_SUM : UDP_SUM;

    stw_be_p(to + field, 0);
    s = ~sum(to, n, s + f->protocol + n) & 0xffff;
    stw_be_p(to + field, s || f->protocol == IP_PROTO_TCP ? s : 0xffff);
}

/* The same for both directions of a connection, and not Toeplitz's. */
uint32_t frame_hash(const Frame *f)
{
    const uint8_t *ip = f->data + f->l3;
    uint32_t h = 0;

    if (f->ip_version == 4) {
        h = ldl_be_p(ip + IPV4_ADDRESSES) ^ ldl_be_p(ip + IPV4_ADDRESSES + 4);
    } else if (f->ip_version == 6) {
        for (int i = 0; i < 8; i++) {
            h ^= ldl_be_p(ip + IPV6_ADDRESSES + i * 4);
        }
    }
    if (f->l4 && (f->protocol == IP_PROTO_TCP || f->protocol == IP_PROTO_UDP)) {
        h ^= lduw_be_p(f->data + f->l4) ^ lduw_be_p(f->data + f->l4 + 2);
    }
    return h * 0x9e3779b1u;
}

/* ---- segmentation --------------------------------------------------------------------------- */

bool frame_segment(const Frame *large, const uint8_t *payload, uint32_t bytes, uint32_t mss,
                   uint32_t *at, Frame *f)
{
    uint32_t n = MIN(mss, bytes - *at), index = mss ? *at / mss : 0;
    uint8_t *ip = f->data + large->l3, *l4 = f->data + large->l4;

    if (*at >= bytes || !n || !large->l4 || large->length + n > FRAME_BYTES - 64) {
        return false;
    }
    memcpy(f, large, offsetof(Frame, data) + large->length);
    memcpy(f->data + large->length, payload + *at, n);
    f->length += n;
    if (f->ip_version == 4) {
        stw_be_p(ip + IPV4_LENGTH, f->length - f->l3);
        stw_be_p(ip + IPV4_ID, lduw_be_p(ip + IPV4_ID) + index);
    } else {
        stw_be_p(ip + IPV6_LENGTH, f->length - f->l3 - IPV6_HEADER);
    }
    if (f->protocol == IP_PROTO_TCP) {
        stl_be_p(l4 + TCP_SEQUENCE, ldl_be_p(l4 + TCP_SEQUENCE) + *at);
        l4[TCP_FLAGS] &= ~((*at + n < bytes ? FIN_PSH : 0) | (index ? CWR : 0));
    } else {
        stw_be_p(l4 + UDP_LENGTH, n + UDP_HEADER);
    }
    *at += n;
    frame_checksums(f, true, true);
    frame_parse(f);
    return true;
}
