// SPDX-License-Identifier: Apache-2.0
/*
 * Sends a burst of frames in one run of the program, each by the interface that its slot names. The
 * kernel runs it with softirqs off, so that the far ends of veths receive the burst together and
 * not each frame by itself.
 */
#include "maps.h"
#include <linux/pkt_cls.h>

/* Slots of a burst, and bytes of a frame; `transmit.rs` has the same. */
#define OVL_SLOTS 256
#define OVL_FRAME 2040
/* An Ethernet header: nothing shorter is a frame. */
#define OVL_SHORTEST 14

struct ovl_slot {
	__u32 interface;
	/* Bytes; 0 after the run when the frame was refused. */
	__u32 length;
	__u8 bytes[OVL_FRAME];
};

/* Filled by one thread, which runs the program then; counters are for good. */
struct ovl_burst {
	__u32 count;
	__u32 reserved;
	__u64 sent;
	/* The interface is gone, down or full, or memory is short. */
	__u64 refused;
	__u64 padding[5];
	struct ovl_slot slots[OVL_SLOTS];
};
_Static_assert(sizeof(struct ovl_burst) == 64 + OVL_SLOTS * 2048, "burst layout");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ovl_burst);
} burst SEC(".maps");

struct ovl_run {
	struct __sk_buff *skb;
	struct ovl_burst *burst;
};

static long send_one(__u32 number, struct ovl_run *run)
{
	struct ovl_slot *slot;
	__u32 length;

	if (number >= OVL_SLOTS)
		return 1;
	slot = &run->burst->slots[number];
	length = slot->length;
	if (length < OVL_SHORTEST || length > OVL_FRAME ||
	    (run->skb->len != length && bpf_skb_change_tail(run->skb, length, 0)) ||
	    bpf_skb_store_bytes(run->skb, 0, slot->bytes, length, 0) ||
	    bpf_clone_redirect(run->skb, slot->interface, 0)) {
		run->burst->refused++;
		/* So the thread finds which. */
		slot->length = 0;
	} else {
		run->burst->sent++;
	}
	return 0;
}

SEC("tc")
int ovl_transmit(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct ovl_run run = { .skb = skb, .burst = bpf_map_lookup_elem(&burst, &key) };

	if (run.burst)
		bpf_loop(run.burst->count, send_one, &run, 0);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
