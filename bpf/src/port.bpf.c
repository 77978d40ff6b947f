// SPDX-License-Identifier: Apache-2.0
/*
 * Program of a pod's port and of the host port: every frame belongs to the dataplane. Without
 * one, frames are dropped and never reach the host's stack, where no policy would see them.
 */
#include "maps.h"

struct ovl_xskmap xsks SEC(".maps");

SEC("xdp")
int ovl_port(struct xdp_md *ctx)
{
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
}

char LICENSE[] SEC("license") = "Apache-2.0";
