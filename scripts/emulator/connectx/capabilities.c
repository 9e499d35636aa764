/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a function can: the capabilities that QUERY_HCA_CAP tells, by type (enum mlx5_cap_type).
 *
 * A capability that is not set is one that the driver does without; the README says which of a
 * ConnectX-6 Dx's are not set, and why.
 */
#include "connectx.h"

enum { PF_EQS = 64, VF_EQS = 24 };
enum { VIRTQUEUES = 32, DOORBELL_PAGE = FIRST_UAR - 1 };
/* Merged receive buffers, checksums, segmentation: the MLX5_VIRTIO_NET_F_* of the driver. */
enum { VIRTIO_FEATURES = 1 << 2 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 };

static void flow_table(uint8_t *p)
{
    SET(flow_table_prop_layout, p, ft_support, 1);
    SET(flow_table_prop_layout, p, flow_counter, 1);
    SET(flow_table_prop_layout, p, flow_modify_en, 1);
    SET(flow_table_prop_layout, p, modify_root, 1);
    SET(flow_table_prop_layout, p, identified_miss_table_mode, 1);
    SET(flow_table_prop_layout, p, flow_table_modify, 1);
    SET(flow_table_prop_layout, p, reset_root_to_default, 1);
    SET(flow_table_prop_layout, p, pop_vlan, 1);
    SET(flow_table_prop_layout, p, push_vlan, 1);
    SET(flow_table_prop_layout, p, ignore_flow_level, 1);
    SET(flow_table_prop_layout, p, log_max_ft_size, 22);
    SET(flow_table_prop_layout, p, log_max_modify_header_context, 16);
    SET(flow_table_prop_layout, p, max_modify_header_actions, 16);
    SET(flow_table_prop_layout, p, max_ft_level, 64);
    SET(flow_table_prop_layout, p, log_max_ft_num, 20);
    SET(flow_table_prop_layout, p, log_max_flow_counter, 1);
    SET(flow_table_prop_layout, p, log_max_destination, 6);
    SET(flow_table_prop_layout, p, log_max_flow, 22);
    ONES(flow_table_prop_layout, p, ft_field_support);
    ONES(flow_table_prop_layout, p, ft_field_bitmask_support);
}

#define G(f, v) SET(cmd_hca_cap, c, f, v)

static void general_caps(Pf *pf, uint16_t vport, uint8_t *c)
{
    G(vhca_id, pf->vhca + (vport < SF_BASE ? vport : 1 + pf->vfs + vport - SF_BASE));
    G(hca_cap_2, 1);
    G(port_type, !pf->infiniband);
    G(ib_virt, pf->infiniband);
    G(num_ports, 1);
    G(native_port_num, pf->port);
    G(eth_net_offloads, 1);
    G(nic_flow_table, 1);
    G(vport_counters, 1);
    G(cqe_version, 1);
    G(cmdif_checksum, 0);
    G(log_pg_sz, 12);
    G(uar_sz, 0);
    G(num_of_uars_per_page, 1);
    G(bf, 1);
    G(log_bf_reg_size, 9);
    G(driver_version, 1);
    G(fast_teardown, 1);
    G(release_all_pages, 1);
    G(cq_moderation, 1);
    G(cq_period_mode_modify, 1);
    G(cq_period_start_from_cqe, 1);
    G(cq_oi, 1);
    G(cq_resize, 1);
    G(disable_local_lb_uc, 1);
    G(disable_local_lb_mc, 1);
    G(device_frequency_mhz, 1000);
    G(device_frequency_khz, 1000000);
    G(steering_format_version, 1);
    G(log_max_qp, 17);
    G(log_max_qp_sz, 15);
    G(log_max_srq, 20);
    G(log_max_srq_sz, 15);
    G(log_max_cq, 20);
    G(log_max_cq_sz, 22);
    G(log_max_eq, 7);
    G(log_max_eq_sz, 22);
    G(max_num_eqs, PF_EQS);
    G(log_max_mkey, 20);
    G(log_max_mrw_sz, 40);
    G(log_max_klm_list_size, 16);
    G(log_max_msg, 30);
    G(log_max_transport_domain, 16);
    G(log_max_pd, 20);
    G(log_max_xrcd, 16);
    G(log_max_rq, 17);
    G(log_max_sq, 17);
    G(log_max_tir, 17);
    G(log_max_tis, 17);
    G(log_max_rqt, 17);
    G(log_max_rqt_size, 11);
    G(log_max_tis_per_sq, 1);
    G(log_max_rmp, 17);
    G(basic_cyclic_rcv_wqe, 1);
    G(log_max_stride_sz_rq, 16);
    G(log_min_stride_sz_rq, 4);
    G(log_max_stride_sz_sq, 6);
    G(log_min_stride_sz_sq, 6);
    G(log_max_wq_sz, 17);
    G(max_wqe_sz_sq, 1024);
    G(max_wqe_sz_rq, 512);
    G(max_sgl_for_optimized_performance, 32);
    G(log_max_current_uc_list, 7);
    G(log_max_current_mc_list, 8);
    G(log_max_vlan_list, 9);
    G(max_qp_cnt, 256);
    G(max_flow_counter_15_0, 0x8000);
    G(max_tc, 8);
    G(pkey_table_size, 0);
    G(gid_table_size, 4);
    G(sw_owner_id, 1);
    G(pcam_reg, 1);
    G(mcam_reg, 1);
    G(qcam_reg, 1);
    G(log_max_current_uc_list_wr_supported, 1);
    G(roce, 1);
    G(roce_rw_supported, 1);
    G(rc, 1);
    G(uc, 1);
    G(ud, 1);
    G(xrc, 1);
    G(apm, 1);
    G(atomic, 1);
    G(local_ca_ack_delay, 16);
    G(log_max_ra_req_qp, 4);
    G(log_max_ra_res_qp, 4);
    G(log_max_mcg, 21);
    G(max_qp_mcg, 240);
    G(umr_fence, 2);
    G(umr_modify_entity_size_disabled, 1);      /* else mlx5_ib fills a cache of thousands of mkeys */
    G(max_indirection, 4);
    G(umem_uid_0, 1);
    G(general_obj_types, pf->vdpa ? MLX5_GENERAL_OBJ_TYPES_CAP_VIRTIO_NET_Q : 0);
    G(num_lag_ports, pf->lag ? 2 : 0);
    G(lag_tx_port_affinity, pf->lag);
    G(lag_native_fdb_selection, pf->lag);
    G(create_lag_when_not_master_up, pf->lag);
    G(port_selection_cap, pf->lag);
    if (!vport) {
        G(lag_master, pf->lag);
        G(num_total_dynamic_vf_msix, pf->vfs * VF_VECTORS);
        G(min_dynamic_vf_msix_table_size, 2);
        G(max_dynamic_vf_msix_table_size, VF_VECTORS);
        G(vport_group_manager, 1);
        G(vhca_group_manager, 1);
        G(eswitch_manager, 1);
        G(eth_virt, 1);
        G(vhca_resource_manager, 1);
        G(nic_vport_change_event, 1);
        G(log_max_l2_table, 10);
        G(qos, 1);
        G(ets, 1);
        G(dcbx, 1);
        G(uplink_follow, 1);
        G(migration, 1);
        if (pf->sfs) {
            G(sf, 1);
            G(max_num_sf, pf->sfs);
            G(sf_base_id, SF_BASE);
            G(log_min_sf_size, LOG_SF_BAR - 12);
            G(vhca_state, 1);
            G(event_on_vhca_state_allocated, 1);
            G(event_on_vhca_state_active, 1);
            G(event_on_vhca_state_in_use, 1);
            G(event_on_vhca_state_teardown_request, 1);
        }
        G(sbcam_reg, 1);
    }
}

void cap_default(Pf *pf, uint16_t vport, unsigned type, bool current, uint8_t *c)
{
    switch (type) {
    case MLX5_CAP_GENERAL:
        general_caps(pf, vport, c);
        break;
    case MLX5_CAP_ETHERNET_OFFLOADS:
        SET(per_protocol_networking_offload_caps, c, csum_cap, 1);
        SET(per_protocol_networking_offload_caps, c, vlan_cap, 1);
        SET(per_protocol_networking_offload_caps, c, self_lb_en_modifiable, 1);
        SET(per_protocol_networking_offload_caps, c, max_lso_cap, 18);
        SET(per_protocol_networking_offload_caps, c, wqe_inline_mode, pf->inline_mode);
        SET(per_protocol_networking_offload_caps, c, wqe_vlan_insert, 1);
        SET(per_protocol_networking_offload_caps, c, rss_ind_tbl_cap, 11);
        SET(per_protocol_networking_offload_caps, c, scatter_fcs, 1);
        break;
    case MLX5_CAP_ATOMIC:
        SET(atomic_caps, c, atomic_operations, 3);
        SET(atomic_caps, c, atomic_size_qp, 8);
        break;
    case MLX5_CAP_ROCE:
        SET(roce_cap, c, l3_type, 6);
        SET(roce_cap, c, roce_version, 5);
        SET(roce_cap, c, r_roce_dest_udp_port, 4791);
        SET(roce_cap, c, r_roce_min_src_udp_port, 0xc000);
        SET(roce_cap, c, r_roce_max_src_udp_port, 0xffff);
        SET(roce_cap, c, roce_address_table_size, 255);
        break;
    case MLX5_CAP_FLOW_TABLE:
        SET(flow_table_nic_cap, c, nic_rx_multi_path_tirs, 1);
        SET(flow_table_nic_cap, c, nic_rx_multi_path_tirs_fts, 1);
        flow_table(AT(flow_table_nic_cap, c, flow_table_properties_nic_receive));
        flow_table(AT(flow_table_nic_cap, c, flow_table_properties_nic_transmit));
        flow_table(AT(flow_table_nic_cap, c, flow_table_properties_nic_receive_rdma));
        flow_table(AT(flow_table_nic_cap, c, flow_table_properties_nic_transmit_rdma));
        SET(flow_table_nic_cap, c, flow_table_properties_nic_receive_rdma.table_miss_action_domain, 1);
        break;
    case MLX5_CAP_ESWITCH_FLOW_TABLE:
        SET(flow_table_eswitch_cap, c, fdb_to_vport_reg_c_id, 3);
        SET(flow_table_eswitch_cap, c, fdb_multi_path_any_table, 1);
        SET(flow_table_eswitch_cap, c, fdb_modify_header_fwd_to_table, 1);
        SET(flow_table_eswitch_cap, c, fdb_multi_path_to_table, 1);
        SET(flow_table_eswitch_cap, c, multi_fdb_encap, 1);
        SET(flow_table_eswitch_cap, c, flow_source, 1);
        SET(flow_table_eswitch_cap, c, egress_acl_forward_to_vport, 1);
        flow_table(AT(flow_table_eswitch_cap, c, flow_table_properties_nic_esw_fdb));
        SET(flow_table_eswitch_cap, c, flow_table_properties_nic_esw_fdb.reformat, 1);
        SET(flow_table_eswitch_cap, c, flow_table_properties_nic_esw_fdb.decap, 1);
        flow_table(AT(flow_table_eswitch_cap, c, flow_table_properties_esw_acl_ingress));
        flow_table(AT(flow_table_eswitch_cap, c, flow_table_properties_esw_acl_egress));
        break;
    case MLX5_CAP_ESWITCH:
        SET(e_switch_cap, c, vport_cvlan_strip, 1);
        SET(e_switch_cap, c, vport_cvlan_insert_if_not_exist, 1);
        SET(e_switch_cap, c, nic_vport_node_guid_modify, 1);
        SET(e_switch_cap, c, nic_vport_port_guid_modify, 1);
        SET(e_switch_cap, c, esw_uplink_ingress_acl, 1);
        SET(e_switch_cap, c, vxlan_encap_decap, 1);
        SET(e_switch_cap, c, max_encap_header_size, 128);
        SET(e_switch_cap, c, log_max_packet_reformat_context, 10);
        SET(e_switch_cap, c, merged_eswitch, pf->lag);
        SET(e_switch_cap, c, root_ft_on_other_esw, pf->lag);
        SET(e_switch_cap, c, esw_shared_ingress_acl, pf->lag);
        break;
    case MLX5_CAP_QOS:
        SET(qos_cap, c, esw_scheduling, 1);
        SET(qos_cap, c, esw_bw_share, 1);
        SET(qos_cap, c, esw_rate_limit, 1);
        SET(qos_cap, c, log_esw_max_sched_depth, 3);
        SET(qos_cap, c, esw_element_type, 0xf);
        SET(qos_cap, c, esw_tsar_type, 0x3);
        SET(qos_cap, c, max_tsar_bw_share, 100);
        break;
    case MLX5_CAP_VDPA_EMULATION:
        SET(virtio_emulation_cap, c, eth_frame_offload_type, 1);
        SET(virtio_emulation_cap, c, virtio_version_1_0, 1);
        SET(virtio_emulation_cap, c, device_features_bits_mask, VIRTIO_FEATURES);
        SET(virtio_emulation_cap, c, event_mode, MLX5_VIRTIO_Q_EVENT_MODE_QP_MODE);
        SET(virtio_emulation_cap, c, virtio_queue_type,
            MLX5_VIRTIO_EMULATION_CAP_VIRTIO_QUEUE_TYPE_SPLIT);
        SET(virtio_emulation_cap, c, doorbell_bar_offset, DOORBELL_PAGE * PAGE);
        SET(virtio_emulation_cap, c, max_num_virtio_queues, VIRTQUEUES);
        SET(virtio_emulation_cap, c, freeze_to_rdy_supported, 1);
        SET(virtio_emulation_cap, c, umem_1_buffer_param_b, PAGE);
        SET(virtio_emulation_cap, c, umem_2_buffer_param_b, PAGE);
        SET(virtio_emulation_cap, c, umem_3_buffer_param_b, PAGE);
        break;
    case MLX5_CAP_PORT_SELECTION:
        SET(port_selection_cap, c, port_select_flow_table, pf->lag);
        SET(port_selection_cap, c, port_select_flow_table_bypass, pf->lag);
        if (pf->lag) {
            flow_table(AT(port_selection_cap, c, flow_table_properties_port_selection));
        }
        break;
    case MLX5_CAP_GENERAL_2:
        SET(cmd_hca_cap_2, c, sw_vhca_id_valid, 1);
        SET(cmd_hca_cap_2, c, migratable, current ? 0 : 1);
        SET(cmd_hca_cap_2, c, max_num_eqs_24b, current && vport ? VF_EQS : PF_EQS);
        break;
    }
}
