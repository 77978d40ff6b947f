// SPDX-License-Identifier: Apache-2.0
/*
 * The counting sink, at the ingress of an interface: every frame is counted and dropped.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct ovl_sunk {
	__u64 frames;
	/* With their Ethernet headers, without check sequences. */
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ovl_sunk);
} sunk SEC(".maps");

SEC("tc")
int ovl_sink(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct ovl_sunk *all = bpf_map_lookup_elem(&sunk, &key);

	if (all) {
		all->frames++;
		all->bytes += skb->len;
	}
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
