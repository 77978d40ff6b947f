// SPDX-License-Identifier: Apache-2.0
/*
 * The counting sink, at the ingress of an interface: every frame is counted and dropped. It can also
 * tell how long stamped frames took, which costs it the reading of a stamp and of the clock.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

/* The stamp at the end of a frame, all of it big-endian: `Stamp` of traffic.rs. */
#define STAMP_LEN 18
#define STAMP_MAGIC 0x4f56

/* Log-linear buckets: 64 for each doubling, up to 2^36 ns. The same as overlane_api::buckets. */
#define SUB_BITS 6
#define LONGEST ((1ULL << 36) - 1)
#define BUCKETS 1984

/* Are stamps looked at? Set before loading. */
const volatile __u32 timing = 0;

struct ovl_sunk {
	__u64 frames;
	/* With their Ethernet headers, without check sequences. */
	__u64 bytes;
	/* Frames whose stamp was read. */
	__u64 timed;
	/* Of those, with a smaller sequence number than one before, seen on the same CPU. */
	__u64 reordered;
	__u64 largest;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ovl_sunk);
} sunk SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, __u64);
} latencies SEC(".maps");

static __always_inline __u32 bucket_of(__u64 ns)
{
	__u32 shift = 0, width = 32;

	if (ns > LONGEST)
		ns = LONGEST;
	/* The number of its highest bit, by halves; above SUB_BITS it is the shift. */
	if (ns >> (SUB_BITS + 1)) {
		__u64 rest = ns >> SUB_BITS;

#pragma unroll
		for (int step = 0; step < 6; step++, width >>= 1) {
			if (rest >> width) {
				rest >>= width;
				shift += width;
			}
		}
	}
	return (shift << SUB_BITS) + (__u32)(ns >> shift);
}

static __always_inline void take_time(struct __sk_buff *skb, struct ovl_sunk *all)
{
	struct {
		__be16 magic;
		__be64 sequence;
		__be64 ns;
	} __attribute__((packed)) stamp;
	__u64 now, then, sequence, *place;
	__u32 bucket;

	if (skb->len < STAMP_LEN ||
	    bpf_skb_load_bytes(skb, skb->len - STAMP_LEN, &stamp, sizeof(stamp)) ||
	    stamp.magic != bpf_htons(STAMP_MAGIC))
		return;
	now = bpf_ktime_get_ns();
	then = bpf_be64_to_cpu(stamp.ns);
	sequence = bpf_be64_to_cpu(stamp.sequence);
	bucket = bucket_of(now > then ? now - then : 0);
	place = bpf_map_lookup_elem(&latencies, &bucket);
	if (place)
		(*place)++;
	all->timed++;
	if (sequence < all->largest)
		all->reordered++;
	else
		all->largest = sequence;
}

SEC("tc")
int ovl_sink(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct ovl_sunk *all = bpf_map_lookup_elem(&sunk, &key);

	if (all) {
		all->frames++;
		all->bytes += skb->len;
		if (timing)
			take_time(skb, all);
	}
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
