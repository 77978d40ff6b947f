// SPDX-License-Identifier: Apache-2.0
/*
 * The live-frames generator. The kernel's test run (BPF_F_TEST_XDP_LIVE_FRAMES) calls it for one
 * frame after the other and sends what it redirects. Pages come back with whatever their receivers
 * made of the headers, so all headers are written anew each time; they are those of writer.rs, made
 * of the same templates and sums.
 *
 *   not due yet, or enough sent   XDP_DROP: the page comes again, nothing is sent
 *   else                          XDP_REDIRECT to the interface
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

/* Sizes of frames, and turns until they repeat. */
#define CLASSES 3
#define TURNS 12
/* Most bytes of headers: outer Ethernet, IPv6, UDP, Geneve, Ethernet, tag, IPv6, TCP; in words. */
#define HEADERS 152
/* Longest frame in memory: 1514 bytes, with the headers of a tunnel over IPv6. */
#define LONGEST 1584
#define STAMP 18
#define MAGIC 0x4f56
/* Frames of a batch, which the kernel sends together. */
#define BATCH 64
/* Frames that the kernel hands to the device together (DEV_MAP_BULK_SIZE): flat out, they have one
 * time, as they leave at one time. */
#define BULK 16
/* Looks at the clock while waiting, some 20 ns each. */
#define LOOKS 40
/* A power of two. */
#define PICKS (1 << 20)

enum order { RANDOM, ZIPF, IN_ORDER };

struct ovl_class {
	__u32 length;
	/* Sums of the IPv4 header, the segment and the outer datagram without what varies. */
	__u32 sums[3];
	__u32 stamped;
	/* Does the stamp begin at an odd byte of the segment? */
	__u32 odd;
	__u8 headers[HEADERS];
};

struct ovl_side {
	/* Last 32 bits of the first address. */
	__u32 address;
	__u32 addresses;
	__u32 port;
	__u32 ports;
};

/* What user space asks for, and never changes. */
const volatile struct ovl_live {
	/* Nanoseconds from one frame to the next, times 65536; 0: flat out. */
	__u64 period;
	/* Frames to send; 0: no limit. */
	__u64 limit;
	__u64 factor;
	__u64 summand;
	struct ovl_side source;
	struct ovl_side destination;
	struct ovl_class classes[CLASSES];
	__u8 pattern[TURNS];
	__u32 turns;
	__u32 longest;
	__u32 flows;
	__u32 order;
	__u32 interface;
	__u32 udp;
	/* Offsets from the start of the frame; see Layout in writer.rs. */
	__u32 outer_udp;
	__u32 outer_checksum;
	__u32 ip_checksum;
	__u32 from;
	__u32 to;
	__u32 transport;
	__u32 checksum;
	__u32 headers;
} live = {};

/* State of the run. One thread runs the program, so nobody else writes here meanwhile. */
struct ovl_run {
	__u64 frames;
	__u64 bytes;
	__u64 stamped;
	/* When the first frame was due, and one of the last 16 was written. */
	__u64 first;
	__u64 last;
	/* The next frame's time after `first`, times 65536. */
	__u64 due;
	/* The most that a frame was behind its time, nanoseconds. */
	__u64 late;
	/* Of the flows' order. */
	__u64 state;
	/* Calls, by which a batch is told from the next. */
	__u64 calls;
	__u32 turn;
	/* Is something in this batch to be sent? */
	__u32 pending;
	/* User space was away: the schedule goes on from now. */
	__u32 resume;
	/* Calls that ended because a frame was malformed; a mistake of ours. */
	__u32 broken;
} run = {};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} picks SEC(".maps");

static __always_inline __u32 fold(__u64 sum)
{
	/* At most 33 bits, then 18, 17 and 16: sums here are of a few 32-bit words. */
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __u32 finish(__u64 sum)
{
	return ~fold(sum) & 0xffff;
}

/* In a UDP header, 0 says that there is no checksum (RFC 768). */
static __always_inline __u32 udp_finish(__u64 sum)
{
	__u32 checksum = finish(sum);

	return checksum ? checksum : 0xffff;
}

/* Takes a digit to the base `count` off `rest`; the verifier knows the count, and a count of 1. */
static __always_inline __u32 digit(__u32 *rest, __u32 count)
{
	__u32 quotient, digit;

	if (count == 1)
		return 0;
	quotient = *rest / count;
	digit = *rest - quotient * count;
	*rest = quotient;
	return digit;
}

static __always_inline __u32 draw(void)
{
	__u32 key, *pick;

	if (live.order == RANDOM) {
		run.state = run.state * live.factor + live.summand;
		return ((run.state >> 32) * live.flows) >> 32;
	}
	if (live.order == ZIPF) {
		key = run.state++ & (PICKS - 1);
		pick = bpf_map_lookup_elem(&picks, &key);
		return pick ? *pick : 0;
	}
	key = run.state;
	run.state = key + 1 == live.flows ? 0 : key + 1;
	return key;
}

/* Is a frame to be sent now? Says for which time. */
static __always_inline int is_due(__u64 *time)
{
	__u64 now, due;
	int look;

	if (run.calls++ % BATCH == 0)
		run.pending = 0;
	if (live.limit && run.frames >= live.limit)
		return 0;
	if (!live.period) {
		if (run.frames % BULK == 0) {
			run.last = bpf_ktime_get_ns();
			if (!run.first)
				run.first = run.last;
		}
		*time = run.last;
		return 1;
	}
	now = bpf_ktime_get_ns();
	if (!run.first)
		run.first = now;
	if (run.resume) {
		run.resume = 0;
		run.first = now - (run.due >> 16);
	}
	due = run.first + (run.due >> 16);
	/* What is in the batch already does not wait for what is not due. */
	for (look = 0; look < LOOKS && now < due && !run.pending; look++)
		now = bpf_ktime_get_ns();
	if (now < due)
		return 0;
	if (now - due > run.late)
		run.late = now - due;
	run.due += live.period;
	run.last = now;
	*time = due;
	return 1;
}

/* The template's headers over the frame's, word by word; their length is even. */
static __always_inline int write_headers(void *data, void *data_end, const volatile struct ovl_class *class)
{
	__u32 length = live.headers, at, tail, i;

	if (length > HEADERS || data + length > data_end)
		return -1;
#pragma unroll
	for (i = 0; i < HEADERS / 8; i++) {
		if (i * 8 + 8 > length)
			break;
		*(__u64 *)(data + i * 8) = *(const volatile __u64 *)(class->headers + i * 8);
	}
	tail = length & ~7;
#pragma unroll
	for (i = 0; i < 3; i++) {
		at = tail + i * 2;
		if (at + 2 > length || at + 2 > HEADERS)
			break;
		*(__u16 *)(data + at) = *(const volatile __u16 *)(class->headers + at);
	}
	return 0;
}

/* Where frames of shorter sizes have their stamp, this one has payload: writer.rs, payload_byte. */
static __always_inline int restore_payload(void *data, void *data_end, __u32 length)
{
	__u32 offset, number, i;

#pragma unroll
	for (number = 0; number < CLASSES; number++) {
		if (!live.classes[number].stamped || live.classes[number].length >= length)
			continue;
		offset = live.classes[number].length - STAMP;
		if (offset > LONGEST || data + offset + STAMP > data_end)
			return -1;
		for (i = 0; i < STAMP; i++)
			*(__u8 *)(data + offset + i) = (offset + i - live.headers) ^ 0x5a;
	}
	return 0;
}

static __always_inline void put16(void *place, __u32 value)
{
	*(__u16 *)place = bpf_htons(value);
}

static __always_inline void put32(void *place, __u32 value)
{
	*(__u32 *)place = bpf_htonl(value);
}

/* Writes the stamp at the end of the frame and returns its part of the segment's sum. */
static __always_inline __u64 write_stamp(void *data, void *data_end,
					 const volatile struct ovl_class *class, __u64 time)
{
	__u32 offset = class->length - STAMP, sum;
	__u64 sequence = run.stamped++;
	void *place;

	if (offset > LONGEST)
		return 0;
	place = data + offset;
	if (place + STAMP > data_end) {
		run.broken++;
		return 0;
	}
	put16(place, MAGIC);
	put32(place + 2, sequence >> 32);
	put32(place + 6, sequence);
	put32(place + 10, time >> 32);
	put32(place + 14, time);
	sum = fold(MAGIC + (sequence >> 32) + (sequence & 0xffffffff) + (time >> 32) +
		   (time & 0xffffffff));
	return class->odd ? (sum & 0xff) << 8 | sum >> 8 : sum;
}

static __always_inline int write_frame(void *data, void *data_end,
				       const volatile struct ovl_class *class, __u64 time)
{
	__u32 flow = draw(), rest = flow, from, to, from_port, to_port, part;
	__u64 addresses, varying;

	if (live.turns > 1 && restore_payload(data, data_end, class->length))
		return -1;
	if (write_headers(data, data_end, class))
		return -1;
	to = live.destination.address + digit(&rest, live.destination.addresses);
	from_port = live.source.port + digit(&rest, live.source.ports);
	from = live.source.address + digit(&rest, live.source.addresses);
	to_port = live.destination.port + rest;
	addresses = (__u64)from + to;
	varying = addresses + from_port + to_port;
	if (class->stamped)
		varying += write_stamp(data, data_end, class, time);
	put32(data + live.from, from);
	put32(data + live.to, to);
	put16(data + live.transport, from_port);
	put16(data + live.transport + 2, to_port);
	part = live.udp ? udp_finish(class->sums[1] + varying) : finish(class->sums[1] + varying);
	put16(data + live.checksum, part);
	varying += part;
	if (live.ip_checksum) {
		part = finish(class->sums[0] + addresses);
		put16(data + live.ip_checksum, part);
		varying += part;
	}
	if (live.outer_udp) {
		part = 49152 | (flow * 0x9e3779b1) >> 18;
		put16(data + live.outer_udp, part);
		if (live.outer_checksum)
			put16(data + live.outer_udp + 6, udp_finish(class->sums[2] + varying + part));
	}
	return 0;
}

SEC("xdp")
int ovl_live(struct xdp_md *ctx)
{
	const volatile struct ovl_class *class;
	__u64 time = 0;
	__u32 number;

	if (!is_due(&time))
		return XDP_DROP;
	number = run.turn < TURNS ? live.pattern[run.turn] : 0;
	run.turn = run.turn + 1 >= live.turns ? 0 : run.turn + 1;
	if (number >= CLASSES)
		number = 0;
	class = &live.classes[number];
	if (live.turns > 1 && class->length != live.longest &&
	    bpf_xdp_adjust_tail(ctx, (int)class->length - (int)live.longest))
		goto broken;
	if (write_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end, class, time))
		goto broken;
	run.frames++;
	run.bytes += class->length;
	run.pending = 1;
	return bpf_redirect(live.interface, 0);
broken:
	run.broken++;
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Apache-2.0";
