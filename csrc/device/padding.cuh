// Rows of q that belong to no sequence: in a graph captured for more tokens than a step has, say.
#pragma once

#include <cmath>

#include "core/host_device.h"
#include "varattn/params.h"

namespace varattn::device {

// Their outputs become 0, their LSE -inf. By `num_warps` warps of each CTA, which take the CTA's share: a row a warp, as many
// heads at a time as its lanes have room for, 16 bytes a lane; LSEs a head a warp. As long as has_time(), outputs are read
// first, kLoads at a time, and written where they are not 0: what the layer or the replay before left in the same place is
// often in the L2 still, and memory is spared the writes.
template <class T, int kLoads, class HasTime>
__device__ __forceinline__ void write_padding(const AttentionParams& p, int thread, int num_warps, HasTime has_time) {
    if (p.leave_padding) return;
    const auto& plan = *static_cast<const PlanHeader*>(p.plan);
    const int32_t end = clamp(plan.q_end, 0, p.total_q), begin = clamp(plan.q_begin, 0, end);
    const int32_t num_rows = p.total_q - (end - begin), step = gridDim.x * num_warps, lane = thread % 32;
    const int32_t first = blockIdx.x * num_warps + thread / 32, heads = p.config.num_heads_q;
    if (num_rows == 0) return;
    auto row = [&](int32_t i) { return i < begin ? i : i + (end - begin); };

    const int32_t chunks = p.config.head_dim_v / 8, heads_at_a_time = 32 / chunks;
    const int32_t first_head = lane / chunks < heads_at_a_time ? lane / chunks : heads;
    const int64_t next_head = heads_at_a_time * p.out_head_stride;
    for (int32_t i = first; i < num_rows; i += step) {
        T* out =
            static_cast<T*>(p.out) + row(i) * p.out_row_stride + first_head * p.out_head_stride + lane % chunks * 8;
        const bool reads = has_time();
        for (int32_t head = first_head; head < heads; head += heads_at_a_time * kLoads, out += next_head * kLoads) {
            uint4 old[kLoads];
#pragma unroll
            for (int k = 0; k < kLoads; ++k) {
                const bool exists = head + heads_at_a_time * k < heads;
                old[k] = uint4{exists, 0, 0, 0};
                if (reads && exists) old[k] = *reinterpret_cast<const uint4*>(out + next_head * k);
            }
#pragma unroll
            for (int k = 0; k < kLoads; ++k)
                if (old[k].x | old[k].y | old[k].z | old[k].w)
                    *reinterpret_cast<uint4*>(out + next_head * k) = uint4{0, 0, 0, 0};
        }
    }
    if (!p.lse) return;
    for (int32_t head = first; head < heads; head += step)
        for (int32_t i = lane; i < num_rows; i += 32)
            p.lse[head * p.lse_head_stride + row(i)] = -INFINITY;
}

}  // namespace varattn::device
