// SPDX-License-Identifier: Apache-2.0
//
// The sender: run by BPF_PROG_RUN over live frames, it makes of each the next flow's UDP packet to the Service and
// redirects it to a wire.
//
// The whole header is written every time, for frames come back as the receiver left them. Between runs nothing is known
// of the frame but its length; the payload is zeros. A rate is kept by waiting in here for the clock.
//
// Sources: Documentation/bpf/bpf_prog_run.rst, RFC 768, 791, 1071.

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define WIRE __attribute__((packed))

struct headers {
    __u8 destination_mac[6];
    __u8 source_mac[6];
    __be16 type;
    __u8 version_and_len;
    __u8 service;
    __be16 total_len;
    __be16 id;
    __be16 fragment;
    __u8 ttl;
    __u8 protocol;
    __be16 ip_checksum;
    __be32 source;
    __be32 destination;
    __be16 source_port;
    __be16 destination_port;
    __be16 udp_len;
    __be16 udp_checksum;
} WIRE;

#define ETHERNET_LEN 14
#define IPV4_LEN 20

// Keep in step with sender.rs: flows are numbered over source addresses first, then over their ports. None of the
// addresses ends in 0 or 255.
#define SOURCES 250
#define FIRST_SOURCE 0xc6120001 // 198.18.0.1
#define FIRST_PORT 1024

// Times are nanoseconds in 1/256.
#define FRACTION 8
// How far sending may fall behind before the time is given up: what was missed is sent in a burst.
#define SLACK (20000ULL << FRACTION)
// Looks at the clock before a packet is sent whatever the time is: a hundred microseconds or so. The verifier takes no more.
#define LOOKS 4096

// Both are arrays of 64-bit words for userspace.
struct plan {
    __u64 interface;
    __u64 flows;
    __u64 interval;
    __u64 destination_mac;
    // Host order.
    __u64 destination;
    __u64 destination_port;
};

struct progress {
    __u64 next_flow;
    __u64 next_time;
    __u64 sent;
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct plan);
} plans SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct progress);
} progresses SEC(".maps");

static __always_inline __u32 words_of(__u32 address)
{
    return (address >> 16) + (address & 0xffff);
}

static __always_inline __be16 folded(__u32 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return bpf_htons(~sum & 0xffff);
}

static __always_inline void write(struct headers *headers, const struct plan *plan, __u32 flow, __u32 len)
{
    __u32 source = FIRST_SOURCE + flow % SOURCES, port = FIRST_PORT + flow / SOURCES;
    __u32 ip_len = len - ETHERNET_LEN, udp_len = ip_len - IPV4_LEN;
    __u32 addresses = words_of(source) + words_of(plan->destination);
    for (int octet = 0; octet < 6; octet++)
        headers->destination_mac[octet] = plan->destination_mac >> (40 - 8 * octet);
    __builtin_memcpy(headers->source_mac, "\x02\x00\x00\x00\x00\x01", 6);
    headers->type = bpf_htons(0x0800);
    headers->version_and_len = 0x45;
    headers->service = 0;
    headers->total_len = bpf_htons(ip_len);
    headers->id = 0;
    headers->fragment = bpf_htons(0x4000);
    headers->ttl = 64;
    headers->protocol = 17;
    headers->ip_checksum = folded(0x4500 + ip_len + 0x4000 + 0x4011 + addresses);
    headers->source = bpf_htonl(source);
    headers->destination = bpf_htonl(plan->destination);
    headers->source_port = bpf_htons(port);
    headers->destination_port = bpf_htons(plan->destination_port);
    headers->udp_len = bpf_htons(udp_len);
    // The length counts twice: in the pseudo-header and in the header.
    __be16 checksum = folded(addresses + 17 + 2 * udp_len + port + plan->destination_port);
    headers->udp_checksum = checksum ? checksum : 0xffff;
}

static __always_inline void wait(const struct plan *plan, struct progress *progress)
{
    __u64 due = progress->next_time, now = 0;
    for (int look = 0; look < LOOKS; look++) {
        now = bpf_ktime_get_ns() << FRACTION;
        if (now >= due)
            break;
    }
    __u64 next = due + plan->interval;
    progress->next_time = next + SLACK < now ? now : next;
}

SEC("xdp")
int send(struct xdp_md *ctx)
{
    void *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct headers *headers = at;
    __u32 first = 0;
    struct plan *plan = bpf_map_lookup_elem(&plans, &first);
    struct progress *progress = bpf_map_lookup_elem(&progresses, &first);
    if (!plan || !progress || (void *)(headers + 1) > end)
        return XDP_ABORTED;
    wait(plan, progress);
    __u32 flow = progress->next_flow;
    progress->next_flow = flow + 1 < plan->flows ? flow + 1 : 0;
    progress->sent++;
    write(headers, plan, flow, (__u32)(end - at));
    return bpf_redirect(plan->interface, 0);
}

char send_license[] SEC("license") = "Apache-2.0";
