// Writing results: final rows, partial rows of a split, and the merge by the last split of a tile to arrive.
#pragma once

#include "portable/softmax.cuh"

namespace varattn::portable {

template <class C>
__device__ __forceinline__ typename C::T* out_row(const AttentionParams& p, const RowAddress& at) {
    return static_cast<typename C::T*>(p.out) + at.q_row * p.out_row_stride + at.head * p.out_head_stride;
}

__device__ __forceinline__ void write_lse(const AttentionParams& p, const RowAddress& at, float lse) {
    if (p.lse) p.lse[at.head * p.lse_head_stride + at.q_row] = lse;
}

// What turns a row's sums into its result: weights are in units of 2^max, sum is theirs.
struct Denominator {
    float factor;  // of the unnormalised output
    float lse;     // natural log
};
__device__ __forceinline__ Denominator denominator(float max, float sum, float sink) {
    const float top = fmaxf(max, sink * kLog2e);
    if (top == -INFINITY) return {0.f, -INFINITY};
    const float rescale = exp2f(max - top);
    const float total = sum * rescale + exp2f(sink * kLog2e - top);
    return {rescale / total, top * kLn2 + logf(total)};
}
__device__ __forceinline__ float sink_of(const AttentionParams& p, int32_t head) {
    return p.sinks ? p.sinks[head] : -INFINITY;
}

// A task's slots in the workspace.
struct Partials {
    float* out;  // (num_splits, rows, head_dim_v)
    float* lse;  // (num_splits, rows)
    uint32_t* arrivals;
    int32_t rows;

    __device__ Partials(const AttentionParams& p, const Task& task) {
        const WorkspaceLayout layout = workspace_layout(p.config);
        char* workspace = static_cast<char*>(p.workspace);
        const int64_t first = task.head_kv * layout.partial_rows + task.item.partial_row;
        rows = task.item.row_end - task.item.row_begin;
        out = reinterpret_cast<float*>(workspace + layout.partial_out) + first * p.config.head_dim_v;
        lse = reinterpret_cast<float*>(workspace + layout.partial_lse) + first;
        arrivals = reinterpret_cast<uint32_t*>(workspace + layout.arrivals) +
                   int64_t{task.item.split_tile} * p.config.num_heads_kv + task.head_kv;
    }
};

// A warp's rows, from its accumulators.
template <class C>
__device__ __forceinline__ void write_rows(const AttentionParams& p, const Task& task, const Work& work,
                                           const float (&out)[C::kDim / 8][4], const OnlineSoftmax& softmax) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool is_split = task.item.num_splits > 1;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = warp * kWarpRows + lane / 4 + i * 8;
        const float sum = quad_sum(softmax.sum[i]);
        if (row >= work.num_rows) continue;
        const RowAddress at = row_address(p, task, row);
        const Denominator d = denominator(softmax.max[i], sum, is_split ? -INFINITY : sink_of(p, at.head));
        if (is_split) {
            const Partials partials(p, task);
            const int64_t slot = int64_t{task.item.split} * partials.rows + row;
            float* to = partials.out + slot * p.config.head_dim_v;
#pragma unroll
            for (int tile = 0; tile < C::kDim / 8; ++tile)
                if (tile * 8 < p.config.head_dim_v)
                    *reinterpret_cast<float2*>(to + tile * 8 + lane % 4 * 2) =
                        make_float2(out[tile][i * 2] * d.factor, out[tile][i * 2 + 1] * d.factor);
            if (lane % 4 == 0) partials.lse[slot] = d.lse;
        } else {
            typename C::T* to = out_row<C>(p, at);
#pragma unroll
            for (int tile = 0; tile < C::kDim / 8; ++tile)
                if (tile * 8 < p.config.head_dim_v)
                    *reinterpret_cast<uint32_t*>(to + tile * 8 + lane % 4 * 2) =
                        pack2<typename C::T>(out[tile][i * 2] * d.factor, out[tile][i * 2 + 1] * d.factor);
            if (lane % 4 == 0) write_lse(p, at, d.lse);
        }
    }
}

// All threads, after write_rows of a split. The last split to arrive merges all of them, in index order: the bits do not
// depend on who is last.
template <class C>
__device__ __forceinline__ void merge_if_last(const AttentionParams& p, SharedMemory<C>& sm, const Work& work) {
    const Task& task = sm.task;
    const Partials partials(p, task);
    const int32_t num_splits = task.item.num_splits;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        sm.is_last_split = atomicAdd(partials.arrivals, 1u) == static_cast<uint32_t>(num_splits - 1);
        if (sm.is_last_split) *partials.arrivals = 0;
    }
    __syncthreads();
    if (!sm.is_last_split) return;
    __threadfence();

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dims = p.config.head_dim_v;
    for (int row = warp; row < work.num_rows; row += kWarps) {
        auto lse_of = [&](int split) { return kLog2e * __ldcg(partials.lse + int64_t{split} * partials.rows + row); };
        float top = -INFINITY;
        for (int split = 0; split < num_splits; ++split)
            top = fmaxf(top, lse_of(split));
        const float base = top == -INFINITY ? 0.f : top;
        float sum = 0.f;
        for (int split = 0; split < num_splits; ++split)
            sum += exp2f(lse_of(split) - base);

        const RowAddress at = row_address(p, task, row);
        const Denominator d = denominator(top, sum, sink_of(p, at.head));
        for (int dim = lane * 4; dim < dims; dim += 128) {
            float4 total{};
#pragma unroll 4
            for (int split = 0; split < num_splits; ++split) {
                const float weight = exp2f(lse_of(split) - base);
                const float* from = partials.out + (int64_t{split} * partials.rows + row) * dims + dim;
                const float4 x = __ldcg(reinterpret_cast<const float4*>(from));
                total.x += weight * x.x;
                total.y += weight * x.y;
                total.z += weight * x.z;
                total.w += weight * x.w;
            }
            auto* to = reinterpret_cast<uint32_t*>(out_row<C>(p, at) + dim);
            to[0] = pack2<typename C::T>(total.x * d.factor, total.y * d.factor);
            to[1] = pack2<typename C::T>(total.z * d.factor, total.w * d.factor);
        }
        if (lane == 0) write_lse(p, at, d.lse);
    }
}

}  // namespace varattn::portable
