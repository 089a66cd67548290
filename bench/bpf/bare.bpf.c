// SPDX-License-Identifier: Apache-2.0
//
// Every packet to the AF_XDP socket of its queue: the least that an AF_XDP forwarder needs of XDP.

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
} sockets SEC(".maps");

SEC("xdp")
int bare(struct xdp_md *ctx)
{
    return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
}

char bare_license[] SEC("license") = "Apache-2.0";
