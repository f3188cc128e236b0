// Rows of q that belong to no sequence: in a graph captured for more tokens than a step has, say.
#pragma once

#include <cmath>

#include "core/host_device.h"
#include "varattn/params.h"

namespace varattn::device {

// Their outputs become 0, their LSE -inf. By `num_warps` warps of each CTA, which take the CTA's share: a row a warp, as many
// heads at a time as its lanes have room for, 16 bytes a lane; LSEs a head a warp.
template <class T>
__device__ __forceinline__ void write_padding(const AttentionParams& p, int thread, int num_warps) {
    if (p.leave_padding) return;
    const auto& plan = *static_cast<const PlanHeader*>(p.plan);
    const int32_t end = clamp(plan.q_end, 0, p.total_q), begin = clamp(plan.q_begin, 0, end);
    const int32_t num_rows = p.total_q - (end - begin), step = gridDim.x * num_warps, lane = thread % 32;
    const int32_t first = blockIdx.x * num_warps + thread / 32, heads = p.config.num_heads_q;
    if (num_rows == 0) return;
    auto row = [&](int32_t i) { return i < begin ? i : i + (end - begin); };

    const int32_t chunks = p.config.head_dim_v / 8, heads_at_a_time = 32 / chunks;
    const int32_t first_head = lane / chunks < heads_at_a_time ? lane / chunks : heads;
    for (int32_t i = first; i < num_rows; i += step) {
        T* out = static_cast<T*>(p.out) + row(i) * p.out_row_stride + lane % chunks * 8;
        for (int32_t head = first_head; head < heads; head += heads_at_a_time)
            *reinterpret_cast<uint4*>(out + head * p.out_head_stride) = uint4{0, 0, 0, 0};
    }
    if (!p.lse) return;
    for (int32_t head = first; head < heads; head += step)
        for (int32_t i = lane; i < num_rows; i += 32)
            p.lse[head * p.lse_head_stride + row(i)] = -INFINITY;
}

}  // namespace varattn::device
