// Rows of q that belong to no sequence: in a graph captured for more tokens than a step has, say.
#pragma once

#include <cmath>

#include "core/host_device.h"
#include "varattn/params.h"

namespace varattn::device {

// Their outputs become 0, their LSE -inf. By all of `num_threads` threads of each CTA.
template <class T>
__device__ __forceinline__ void write_padding(const AttentionParams& p, int thread, int num_threads) {
    if (p.leave_padding) return;
    const auto& plan = *static_cast<const PlanHeader*>(p.plan);
    const int32_t end = clamp(plan.q_end, 0, p.total_q), begin = clamp(plan.q_begin, 0, end);
    const int32_t heads = p.config.num_heads_q, chunks = p.config.head_dim_v / 8;  // 16 bytes
    const int64_t count = int64_t{p.total_q - (end - begin)} * heads * chunks;
    for (int64_t i = int64_t{blockIdx.x} * num_threads + thread; i < count; i += int64_t{gridDim.x} * num_threads) {
        const int32_t chunk = static_cast<int32_t>(i % chunks), head = static_cast<int32_t>(i / chunks % heads);
        int32_t row = static_cast<int32_t>(i / chunks / heads);
        if (row >= begin) row += end - begin;
        T* out = static_cast<T*>(p.out) + row * p.out_row_stride + head * p.out_head_stride;
        *reinterpret_cast<uint4*>(out + chunk * 8) = uint4{0, 0, 0, 0};
        if (chunk == 0 && p.lse) p.lse[head * p.lse_head_stride + row] = -INFINITY;
    }
}

}  // namespace varattn::device
