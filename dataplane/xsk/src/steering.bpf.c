// SPDX-License-Identifier: Apache-2.0
//
// The steering program: for each packet, the AF_XDP socket of its queue or the kernel.
//
// What goes to the socket, and is dropped when there is none (the kernel would answer for us otherwise):
//   - anything to an address that is steered wholly, whatever the protocol;
//   - ARP requests and neighbour solicitations that ask for such an address;
//   - for an address that is steered by ports: matching TCP, UDP and SCTP packets, ICMP errors that quote a packet sent
//     from such a port, and later fragments of a datagram whose first fragment matched;
//   - where replies are told by their source (endpoints that see the clients' own addresses): TCP, UDP and SCTP packets
//     from such an (address, port) to a station that is neither steered nor the host itself, and their fragments; ICMP
//     errors to such a station that quote a packet sent to such an (address, port).
// Where a limit is set, SYNs to one address beyond so many in a window are dropped here, before they take a place in a ring
// that packets of connections need.
// All else goes to the kernel untouched, and so does what is for another station (a switch that floods, promiscuous
// mode), whatever its addresses: taken here it would reach a backend twice. No packet is changed.
//
// Sources: RFC 791, 792, 826, 4443, 4861, 8200; Documentation/bpf/map_xskmap.rst.

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ETH_P_IPV4 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_VLAN 0x8100
#define ETH_P_IPV6 0x86DD
#define ETH_P_QINQ 0x88A8

#define PROTO_HOP_BY_HOP 0
#define PROTO_ICMPV4 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_AUTH 51
#define PROTO_ICMPV6 58
#define PROTO_DESTINATION_OPTIONS 60
#define PROTO_SCTP 132

#define MAX_VLAN_TAGS 2
#define MAX_EXTENSION_HEADERS 6

// Keep in step with the constants of steering.rs.
#define MAX_QUEUES 64
#define MAX_ADDRESSES 65536
#define MAX_PORTS 262144
#define MAX_SOURCES 262144
#define MAX_FRAGMENTED 16384
#define MAX_FLOODED 16384
// Windows of SYNs: 2^24 ns, 16.8 ms.
#define WINDOW_SHIFT 24

// --- Headers, as on the wire: all fields in network order, no alignment assumed. ---

#define WIRE __attribute__((packed))

struct ethernet {
    __u8 destination[6];
    __u8 source[6];
    __be16 type;
} WIRE;

struct vlan_tag {
    __be16 control;
    __be16 type;
} WIRE;

struct arp {
    __be16 hardware;
    __be16 protocol;
    __u8 hardware_len;
    __u8 protocol_len;
    __be16 operation;
    __u8 sender_mac[6];
    __u8 sender[4];
    __u8 target_mac[6];
    __u8 target[4];
} WIRE;

struct ipv4 {
    __u8 version_and_len;
    __u8 service;
    __be16 total_len;
    __be16 id;
    __be16 fragment;
    __u8 ttl;
    __u8 protocol;
    __be16 checksum;
    __u8 source[4];
    __u8 destination[4];
} WIRE;

struct ipv6 {
    __be32 version_and_flow;
    __be16 payload_len;
    __u8 next;
    __u8 hop_limit;
    __u8 source[16];
    __u8 destination[16];
} WIRE;

struct ipv6_extension {
    __u8 next;
    __u8 len;
} WIRE;

struct ipv6_fragment {
    __u8 next;
    __u8 reserved;
    __be16 offset;
    __be32 id;
} WIRE;

struct icmp {
    __u8 type;
    __u8 code;
    __be16 checksum;
    __be32 rest;
} WIRE;

struct ports_header {
    __be16 source;
    __be16 destination;
} WIRE;

struct tcp {
    struct ports_header ports;
    __be32 sequence;
    __be32 acknowledgment;
    __u8 offset;
    __u8 flags;
} WIRE;

// FIN, SYN, RST and ACK, of which a segment that opens a connection has the second alone.
#define TCP_CONTROLS 0x17
#define TCP_SYN 0x02

// --- Maps. Their layout is shared with steering.rs and with pins of other versions. ---

// IPv4 addresses are IPv4-mapped (::ffff:a.b.c.d).
struct address {
    __u8 bytes[16];
};

// ADDRESS_HOST: the host's own; nothing of it is steered, and nobody there is a client of an endpoint's.
enum { ADDRESS_WHOLE = 1, ADDRESS_PORTS = 2, ADDRESS_HOST = 3 };

struct address_rule {
    __u32 kind;
    // Inclusive, host order; low > high means that there is no range.
    __u16 low;
    __u16 high;
};

struct port_key {
    __u8 address[16];
    __be16 port;
    __u8 protocol;
    __u8 zero;
};

struct fragment_key {
    __u8 source[16];
    __u8 destination[16];
    __be32 id;
    __u8 protocol;
    __u8 zero[3];
};

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, MAX_QUEUES);
    __type(key, __u32);
    __type(value, __u32);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} xsks SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, MAX_ADDRESSES);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct address);
    __type(value, struct address_rule);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} addresses SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, MAX_PORTS);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct port_key);
    __type(value, __u32);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} ports SEC(".maps");

// Whose packets are replies: (address, port, protocol) of endpoints. Looked at only where `station.by_source` says so.
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, MAX_SOURCES);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct port_key);
    __type(value, __u32);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} sources SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, MAX_FRAGMENTED);
    __type(key, struct fragment_key);
    __type(value, __u32);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} fragments SEC(".maps");

// The one entry: what link-layer address this interface listens to.
struct station {
    __u8 mac[6];
    // 0: nobody has said it yet, or it has none; then every frame is for it.
    __u8 known;
    // 1: a packet whose destination is not in `addresses` is looked for in `sources`. It stands here because every
    // packet reads this entry already.
    __u8 by_source;
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct station);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} station SEC(".maps");

// The one entry: most SYNs to one address in a window; 0: no limit.
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} syn_limit SEC(".maps");

struct syn_window {
    // Which window since boot.
    __u64 number;
    // SYNs in it so far. CPUs that begin a window at a time may let some more pass.
    __u64 seen;
};

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, MAX_FLOODED);
    __type(key, struct address);
    __type(value, struct syn_window);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} syn_windows SEC(".maps");

enum { COUNT_REDIRECTED, COUNT_NO_SOCKET, COUNT_PASSED, COUNT_SYN_FLOOD, COUNTERS };

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, COUNTERS);
    __type(key, __u32);
    __type(value, __u64);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

// --- Verdicts ---

static __always_inline void count(__u32 which)
{
    __u64 *counter = bpf_map_lookup_elem(&counters, &which);
    if (counter)
        (*counter)++;
}

static __always_inline int to_kernel(void)
{
    count(COUNT_PASSED);
    return XDP_PASS;
}

static __always_inline int to_socket(struct xdp_md *ctx)
{
    // The flags are the verdict when the map has no socket for the queue.
    int verdict = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
    count(verdict == XDP_REDIRECT ? COUNT_REDIRECTED : COUNT_NO_SOCKET);
    return verdict;
}

// --- Lookups ---

// A header of type `type` at `at`, or return `otherwise` from the calling function.
#define HEADER(type, name, at, end, otherwise)                                                                        \
    struct type *name = (struct type *)(at);                                                                          \
    if ((void *)(name + 1) > (end))                                                                                   \
    return otherwise

static __always_inline struct address mapped(const __u8 ipv4[4])
{
    struct address address = {};
    address.bytes[10] = 0xff;
    address.bytes[11] = 0xff;
    __builtin_memcpy(address.bytes + 12, ipv4, 4);
    return address;
}

static __always_inline struct address plain(const __u8 ipv6[16])
{
    struct address address;
    __builtin_memcpy(address.bytes, ipv6, 16);
    return address;
}

// Whether a frame is sent to this interface or to a group, and whether its source may tell that it is ours.
enum { FOR_ANOTHER, FOR_US, FOR_US_BY_SOURCE };

static __always_inline int station_of(const __u8 destination[6])
{
    // A group's members are nobody's clients.
    if (destination[0] & 1)
        return FOR_US;
    __u32 first = 0;
    struct station *own = bpf_map_lookup_elem(&station, &first);
    if (!own)
        return FOR_US;
    __u8 differ = 0;
    // By hand: clang makes a call of a memcmp of six octets.
#pragma unroll
    for (int octet = 0; octet < 6; octet++)
        differ |= own->mac[octet] ^ destination[octet];
    if (own->known && differ)
        return FOR_ANOTHER;
    return own->by_source ? FOR_US_BY_SOURCE : FOR_US;
}

static __always_inline int steered_wholly(const struct address *address)
{
    struct address_rule *rule = bpf_map_lookup_elem(&addresses, address);
    return rule && rule->kind == ADDRESS_WHOLE;
}

static __always_inline int has_ports(__u8 protocol)
{
    return protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP;
}

static __always_inline int port_steered(const struct address *address, const struct address_rule *rule, __u8 protocol,
                                        __be16 port)
{
    if (!has_ports(protocol))
        return 0;
    __u16 number = bpf_ntohs(port);
    if (number >= rule->low && number <= rule->high)
        return 1;
    struct port_key key = {.port = port, .protocol = protocol};
    __builtin_memcpy(key.address, address->bytes, 16);
    return bpf_map_lookup_elem(&ports, &key) != 0;
}

// Whether a packet's ports say that it is ours: by the destination's rule, or by its source where there is no rule.
static __always_inline int transport_steered(const struct address *source, const struct address *destination,
                                             const struct address_rule *rule, __u8 protocol,
                                             const struct ports_header *transport)
{
    if (rule)
        return port_steered(destination, rule, protocol, transport->destination);
    if (!has_ports(protocol))
        return 0;
    struct port_key key = {.port = transport->source, .protocol = protocol};
    __builtin_memcpy(key.address, source->bytes, 16);
    return bpf_map_lookup_elem(&sources, &key) != 0;
}

// Whether a packet that an ICMP error quotes went through us: it was sent from one of our ports or, where the error is for
// no address of ours, to an endpoint that sees the clients' own. The quote starts with its IP header.
static __always_inline int quoted_steered(const struct address *source, const struct address *destination, int ours,
                                          __u8 protocol, const struct ports_header *transport)
{
    if (ours) {
        struct address_rule *rule = bpf_map_lookup_elem(&addresses, source);
        return rule && port_steered(source, rule, protocol, transport->source);
    }
    if (!has_ports(protocol))
        return 0;
    struct port_key key = {.port = transport->destination, .protocol = protocol};
    __builtin_memcpy(key.address, destination->bytes, 16);
    return bpf_map_lookup_elem(&sources, &key) != 0;
}

static __always_inline int quoted_ipv4_steered(void *at, void *end, int ours)
{
    HEADER(ipv4, quoted, at, end, 0);
    __u32 len = (quoted->version_and_len & 0x0f) * 4;
    if (quoted->version_and_len >> 4 != 4 || len < sizeof(*quoted))
        return 0;
    // A quoted later fragment has no ports.
    if (quoted->fragment & bpf_htons(0x1fff))
        return 0;
    HEADER(ports_header, transport, at + len, end, 0);
    struct address source = mapped(quoted->source), destination = mapped(quoted->destination);
    return quoted_steered(&source, &destination, ours, quoted->protocol, transport);
}

static __always_inline int quoted_ipv6_steered(void *at, void *end, int ours)
{
    HEADER(ipv6, quoted, at, end, 0);
    void *payload = quoted + 1;
    __u8 protocol = quoted->next;
    // Of the extension headers the one that the verifier has patience for, and that senders use.
    if (protocol == PROTO_FRAGMENT) {
        HEADER(ipv6_fragment, fragment, payload, end, 0);
        // A quoted later fragment has no ports.
        if (fragment->offset & bpf_htons(0xfff8))
            return 0;
        protocol = fragment->next;
        payload = fragment + 1;
    }
    HEADER(ports_header, transport, payload, end, 0);
    struct address source = plain(quoted->source), destination = plain(quoted->destination);
    return quoted_steered(&source, &destination, ours, protocol, transport);
}

// For how many seconds a datagram's later fragments are held to be on their way: as long as the kernel would wait for
// them. Identifications of IPv4 come again soon (RFC 4963).
#define FRAGMENTED_SECONDS 30

static __always_inline __u32 seconds(void)
{
    return bpf_ktime_get_ns() / 1000000000;
}

// Whether the first fragment of a later one's datagram was steered.
static __always_inline int later_steered(const struct fragment_key *key)
{
    __u32 *since = bpf_map_lookup_elem(&fragments, key);
    // Another CPU may have noted it after this one looked at the clock.
    return since && (__s32)(seconds() - *since) <= FRAGMENTED_SECONDS;
}

// Takes note of a first fragment: of one that is not steered as well, for an earlier datagram may have had its key.
static __always_inline void note_first(const struct fragment_key *key, int steered)
{
    if (!steered) {
        bpf_map_delete_elem(&fragments, key);
        return;
    }
    __u32 since = seconds();
    bpf_map_update_elem(&fragments, key, &since, BPF_ANY);
}

// --- Protocols: each returns whether the packet is for a socket ---

static __always_inline int steer_arp(void *at, void *end)
{
    HEADER(arp, arp, at, end, 0);
    if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IPV4) || arp->hardware_len != 6 ||
        arp->protocol_len != 4 || arp->operation != bpf_htons(1))
        return 0;
    // An announcement asks for nothing. It goes up, where the control plane notices another machine with our address.
    if (__builtin_memcmp(arp->sender, arp->target, 4) == 0)
        return 0;
    struct address target = mapped(arp->target);
    return steered_wholly(&target);
}

// An IPv4 packet to an address of the host's own, or (no rule) one that its source may tell.
static __always_inline int steer_ipv4_ports(struct ipv4 *ip, void *end, const struct address *destination,
                                            const struct address_rule *rule)
{
    __u32 len = (ip->version_and_len & 0x0f) * 4;
    if (len < sizeof(*ip))
        return 0;
    void *payload = (void *)ip + len;
    int offset = ip->fragment & bpf_htons(0x1fff), more = ip->fragment & bpf_htons(0x2000);
    struct fragment_key key = {};
    struct address source = mapped(ip->source);
    if (offset || more) {
        __builtin_memcpy(key.source, source.bytes, 16);
        __builtin_memcpy(key.destination, destination->bytes, 16);
        key.id = ip->id;
        key.protocol = ip->protocol;
    }
    if (offset)
        return later_steered(&key);
    if (ip->protocol == PROTO_ICMPV4) {
        HEADER(icmp, icmp, payload, end, 0);
        if (icmp->type != 3 && icmp->type != 11 && icmp->type != 12)
            return 0;
        return quoted_ipv4_steered(icmp + 1, end, rule != 0);
    }
    HEADER(ports_header, transport, payload, end, 0);
    int steered = transport_steered(&source, destination, rule, ip->protocol, transport);
    if (more)
        note_first(&key, steered);
    return steered;
}

static __always_inline int steer_ipv4(void *at, void *end, int by_source)
{
    HEADER(ipv4, ip, at, end, 0);
    if (ip->version_and_len >> 4 != 4)
        return 0;
    struct address destination = mapped(ip->destination);
    struct address_rule *rule = bpf_map_lookup_elem(&addresses, &destination);
    if (rule && rule->kind == ADDRESS_WHOLE)
        return 1;
    if (rule ? rule->kind == ADDRESS_HOST : !by_source)
        return 0;
    return steer_ipv4_ports(ip, end, &destination, rule);
}

// Where an IPv6 packet's extension headers end.
struct ipv6_payload {
    void *at;
    __u8 protocol;
    // A later fragment: `at` is in the middle of something.
    __u8 later;
    // The first of several fragments.
    __u8 first;
    __be32 id;
};

static __always_inline int walk_extensions(struct ipv6 *ip, void *end, struct ipv6_payload *payload)
{
    void *at = ip + 1;
    __u8 next = ip->next;
#pragma unroll
    for (int header = 0; header < MAX_EXTENSION_HEADERS; header++) {
        if (next == PROTO_FRAGMENT) {
            HEADER(ipv6_fragment, fragment, at, end, 0);
            payload->id = fragment->id;
            payload->later = (fragment->offset & bpf_htons(0xfff8)) != 0;
            payload->first = !payload->later && (fragment->offset & bpf_htons(1)) != 0;
            next = fragment->next;
            at = fragment + 1;
            if (payload->later)
                break;
        } else if (next == PROTO_HOP_BY_HOP || next == PROTO_ROUTING || next == PROTO_DESTINATION_OPTIONS) {
            HEADER(ipv6_extension, extension, at, end, 0);
            next = extension->next;
            at += 8 + extension->len * 8;
        } else if (next == PROTO_AUTH) {
            HEADER(ipv6_extension, extension, at, end, 0);
            next = extension->next;
            at += 8 + extension->len * 4;
        } else {
            break;
        }
    }
    payload->at = at;
    payload->protocol = next;
    return 1;
}

// An IPv6 packet to an address of the host's own, or (no rule) one that its source may tell.
static __always_inline int steer_ipv6_ports(struct ipv6 *ip, void *end, const struct address *destination,
                                            const struct address_rule *rule)
{
    struct ipv6_payload payload = {};
    if (!walk_extensions(ip, end, &payload))
        return 0;
    struct fragment_key key = {.id = payload.id};
    __builtin_memcpy(key.source, ip->source, 16);
    __builtin_memcpy(key.destination, ip->destination, 16);
    // Only the first fragment tells the protocol behind headers of its own, so the key leaves it out (RFC 8200, 4.5).
    if (payload.later)
        return later_steered(&key);
    if (payload.protocol == PROTO_ICMPV6) {
        HEADER(icmp, icmp, payload.at, end, 0);
        if (icmp->type < 1 || icmp->type > 4)
            return 0;
        return quoted_ipv6_steered(icmp + 1, end, rule != 0);
    }
    HEADER(ports_header, transport, payload.at, end, 0);
    struct address source = plain(ip->source);
    int steered = transport_steered(&source, destination, rule, payload.protocol, transport);
    if (payload.first)
        note_first(&key, steered);
    return steered;
}

// A neighbour solicitation, mostly sent to the solicited-node group rather than to the address that it asks for.
static __always_inline int steer_solicitation(struct ipv6 *ip, void *end)
{
    if (ip->next != PROTO_ICMPV6)
        return 0;
    HEADER(icmp, icmp, ip + 1, end, 0);
    if (icmp->type != 135 || icmp->code != 0)
        return 0;
    HEADER(address, target, icmp + 1, end, 0);
    struct address wanted = plain(target->bytes);
    return steered_wholly(&wanted);
}

static __always_inline int steer_ipv6(void *at, void *end, int by_source)
{
    HEADER(ipv6, ip, at, end, 0);
    if (bpf_ntohl(ip->version_and_flow) >> 28 != 6)
        return 0;
    struct address destination = plain(ip->destination);
    struct address_rule *rule = bpf_map_lookup_elem(&addresses, &destination);
    if (!rule && ip->destination[0] == 0xff)
        return steer_solicitation(ip, end);
    if (rule && rule->kind == ADDRESS_WHOLE)
        return 1;
    if (rule ? rule->kind == ADDRESS_HOST : !by_source)
        return 0;
    return steer_ipv6_ports(ip, end, &destination, rule);
}

// Where the link-layer header ends, and what comes then; 0 where it is cut short.
static __always_inline void *behind_tags(struct ethernet *ethernet, void *end, __be16 *type)
{
    void *at = ethernet + 1;
    *type = ethernet->type;
#pragma unroll
    for (int tag = 0; tag < MAX_VLAN_TAGS; tag++) {
        if (*type != bpf_htons(ETH_P_VLAN) && *type != bpf_htons(ETH_P_QINQ))
            break;
        HEADER(vlan_tag, vlan, at, end, 0);
        *type = vlan->type;
        at = vlan + 1;
    }
    return at;
}

// --- Floods of SYNs ---

static __always_inline int opens(void *at, void *end)
{
    HEADER(tcp, tcp, at, end, 0);
    return (tcp->flags & TCP_CONTROLS) == TCP_SYN;
}

// Whether a frame that is ours is a SYN; gives the address that it is for.
static __always_inline int is_syn(void *at, void *end, struct address *destination)
{
    HEADER(ethernet, ethernet, at, end, 0);
    __be16 type;
    at = behind_tags(ethernet, end, &type);
    if (!at)
        return 0;
    if (type == bpf_htons(ETH_P_IPV4)) {
        HEADER(ipv4, ip, at, end, 0);
        __u32 len = (ip->version_and_len & 0x0f) * 4;
        if (ip->protocol != PROTO_TCP || len < sizeof(*ip) || ip->fragment & bpf_htons(0x1fff))
            return 0;
        *destination = mapped(ip->destination);
        return opens(at + len, end);
    }
    if (type == bpf_htons(ETH_P_IPV6)) {
        // Behind extension headers it is not looked for: hardly anybody sends SYNs so, and workers see to them.
        HEADER(ipv6, ip, at, end, 0);
        if (ip->next != PROTO_TCP)
            return 0;
        *destination = plain(ip->destination);
        return opens(ip + 1, end);
    }
    return 0;
}

// Whether this is one SYN more to an address than may come in this window.
static __always_inline int is_flood(void *at, void *end)
{
    __u32 first = 0;
    __u32 *most = bpf_map_lookup_elem(&syn_limit, &first);
    struct address destination;
    if (!most || !*most || !is_syn(at, end, &destination))
        return 0;
    __u64 number = bpf_ktime_get_ns() >> WINDOW_SHIFT;
    struct syn_window *window = bpf_map_lookup_elem(&syn_windows, &destination);
    if (!window) {
        struct syn_window begun = {.number = number, .seen = 1};
        bpf_map_update_elem(&syn_windows, &destination, &begun, BPF_ANY);
        return 0;
    }
    // Another CPU may be in the next window already.
    if (window->number < number) {
        window->number = number;
        window->seen = 0;
    }
    return __sync_fetch_and_add(&window->seen, 1) >= *most;
}

static __always_inline int steer(void *at, void *end)
{
    HEADER(ethernet, ethernet, at, end, 0);
    int station = station_of(ethernet->destination);
    if (station == FOR_ANOTHER)
        return 0;
    int by_source = station == FOR_US_BY_SOURCE;
    __be16 type;
    at = behind_tags(ethernet, end, &type);
    if (!at)
        return 0;
    if (type == bpf_htons(ETH_P_IPV4))
        return steer_ipv4(at, end, by_source);
    if (type == bpf_htons(ETH_P_IPV6))
        return steer_ipv6(at, end, by_source);
    if (type == bpf_htons(ETH_P_ARP))
        return steer_arp(at, end);
    return 0;
}

SEC("xdp.frags")
int millrace_steer(struct xdp_md *ctx)
{
    void *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    if (!steer(at, end))
        return to_kernel();
    if (is_flood(at, end)) {
        count(COUNT_SYN_FLOOD);
        return XDP_DROP;
    }
    return to_socket(ctx);
}

// None of the helpers used above is reserved to GPL programs.
char steering_license[] SEC("license") = "Apache-2.0";
