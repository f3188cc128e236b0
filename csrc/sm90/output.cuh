// Writing results: final rows, partial results of a split, and the merge by the last split of a tile to arrive.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/layout.h"
#include "device/barrier.cuh"
#include "device/memory.cuh"
#include "device/mma.cuh"
#include "device/trace.cuh"
#include "sm90/row_result.cuh"

namespace varattn::sm90 {

using namespace device;

enum NamedBarrier : int {  // 0 is __syncthreads
    kBarrierConsumers = 1,
    kBarrierTurn = 2,       // one a warpgroup
    kBarrierWarpgroup = 5,  // one a warpgroup
    kBarrierDecodeQ = 8,    // this and the next: see merge_warps
    kBarrierDecodeRows,
};
template <class C>
__device__ __forceinline__ void sync_consumers() {
    named_barrier_sync(kBarrierConsumers, C::kConsumerWarps * 32);
}

// The same number, but the compiler does not know it: or it would compute every address that depends on the thread alone
// before the loop over items, and spill them.
template <class I>
__device__ __forceinline__ I opaque(I x) {
    asm volatile("" : "+r"(x));
    return x;
}

template <class C>
__device__ __forceinline__ typename C::T* out_row(const LaunchParams& p, const RowAddress& at) {
    return static_cast<typename C::T*>(p.a.out) + at.q_row * p.a.out_row_stride + at.head_q * p.a.out_head_stride;
}
__device__ __forceinline__ void write_lse(const LaunchParams& p, const RowAddress& at, float lse) {
    if (p.a.lse) p.a.lse[at.head_q * p.a.lse_head_stride + at.q_row] = lse;
}

// The end of a task for a consumer warp: it has written its results and leaves the item's slot.
template <class C>
__device__ __forceinline__ void end_task(const LaunchParams& p, SharedMemory<C>& sm, int slot, int thread) {
    const Work& task = sm.work[slot];
    if (p.a.trace && thread == 0 && closes_item<C>(task))
        record(p.a, task.item_index, task.head_kv, kTraceTask, task.begin_ns);
    __syncwarp();
    if (thread % 32 == 0) mbarrier_arrive(&sm.item_empty[slot]);
}

// Partial results of a split tile in this launch's workspace.
struct Partials {
    float* lse;
    float* out;
    __device__ Partials(const LaunchParams& p, const Work& w) {
        const int64_t row = w.head_kv * p.workspace.partial_rows + w.item.partial_row;
        char* base = static_cast<char*>(p.a.workspace);
        lse = reinterpret_cast<float*>(base + p.workspace.partial_lse) + row;
        out = reinterpret_cast<float*>(base + p.workspace.partial_out) + row * p.a.config.head_dim_v;
    }
};
// How many of its splits have arrived.
__device__ __forceinline__ uint32_t* arrivals_of(const LaunchParams& p, const Work& w) {
    return reinterpret_cast<uint32_t*>(static_cast<char*>(p.a.workspace) + p.workspace.arrivals) +
           w.item.split_tile * p.a.config.num_heads_kv + w.head_kv;
}

// The partial results of a lane's columns: 0 unless they exist.
template <int kColumns>
__device__ __forceinline__ void load_columns(float (&x)[kColumns], const float* from, bool exists) {
    constexpr int kVector = min_of(kColumns, 4);
#pragma unroll
    for (int i = 0; i < kColumns; i += kVector) {
        if constexpr (kVector == 4) {
            const float4 y = exists ? __ldcg(reinterpret_cast<const float4*>(from + i)) : float4{};
            x[i] = y.x, x[i + 1] = y.y, x[i + 2] = y.z, x[i + 3] = y.w;
        } else {
            const float2 y = exists ? __ldcg(reinterpret_cast<const float2*>(from + i)) : float2{};
            x[i] = y.x, x[i + 1] = y.y;
        }
    }
}
template <int kWords>
__device__ __forceinline__ void store_words(void* to, const uint32_t (&x)[kWords]) {
    if constexpr (kWords == 4)
        *static_cast<uint4*>(to) = {x[0], x[1], x[2], x[3]};
    else if constexpr (kWords == 2)
        *static_cast<uint2*>(to) = {x[0], x[1]};
    else
        *static_cast<uint32_t*>(to) = x[0];
}

// Merges rows of a tile from first_row on, by a warp: kLoads rows split by split, or, of a decode, one row kLoads splits (or
// segments) at a time. What is loaded at a time depends on nothing, so that it takes the memory's latency once. Lanes work out
// the weights of kLoads results at once; in index order, so that the bits do not depend on who merges.
template <class C, bool kDecode, int kLoads>
__device__ __forceinline__ void merge_rows(const LaunchParams& p, const Work& w, const Partials& partials,
                                           int first_row, int lane) {
    constexpr int kColumns = C::kDim / 32, kRows = kDecode ? 1 : kLoads;  // of a lane; of the warp
    const Range segments = C::kFoldsSegments ? tile_segments(p, w.item) : Range{0, w.item.num_splits};
    const int num_splits = segments.end - segments.begin, split_rows = tile_rows(w.item), dim = p.a.config.head_dim_v;
    const int rows = min_of(w.num_rows - first_row, kRows), column = lane * kColumns;
    const int my_row = first_row + min_of(lane, rows - 1), my_load = min_of(lane, kLoads - 1);
    // What of load i: its row and its split, from first_row and from the first split of a turn.
    auto row_of = [](int i) { return kDecode ? 0 : i; };
    auto split_of = [](int i) { return kDecode ? i : 0; };
    auto over_splits = [](float x, auto operation) {  // of a row
#pragma unroll
        for (int lanes = 1; kDecode && lanes < kLoads; lanes *= 2)
            x = operation(x, __shfl_xor_sync(~0u, x, lanes));
        return x;
    };
    // Maximum and sum of this lane's row; or the LSE of what is folded.
    float top = -INFINITY, sum = 0.f, acc[kRows][kColumns] = {};
#pragma unroll 1
    for (int split = 0; split < num_splits; split += kDecode ? kLoads : 1) {
        const int my_split = split + split_of(my_load);
        const float lse = my_split < num_splits ? __ldcg(partials.lse + my_split * split_rows + my_row) : -INFINITY;
        const float* from = partials.out + (int64_t{split} * split_rows + first_row) * dim + column;
        float x[kLoads][kColumns];
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            load_columns(x[i], from, split + split_of(i) < num_splits && row_of(i) < rows && column < dim);
            from += kDecode ? int64_t{split_rows} * dim : dim;
        }
        if constexpr (C::kFoldsSegments) {
#pragma unroll
            for (int i = 0; i < kLoads; ++i) {
                if (i > 0 && !kDecode) break;
                const Fold fold(top, kDecode ? __shfl_sync(~0u, lse, i) : lse);
                top = fold.lse;
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    const Fold of_row = fold.of_lane(r);
#pragma unroll
                    for (int c = 0; c < kColumns; ++c)
                        acc[r][c] = of_row(acc[r][c], x[i + r][c]);
                }
            }
            continue;
        }
        const float next_top = fmaxf(top, over_splits(lse, [](float a, float b) { return fmaxf(a, b); }));
        const float reference = next_top == -INFINITY ? 0.f : next_top;
        const float factor = exp2_approx((top - reference) * kLog2e), weight = exp2_approx((lse - reference) * kLog2e);
        top = next_top;
        sum = sum * factor + over_splits(weight, [](float a, float b) { return a + b; });
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const float row_factor = __shfl_sync(~0u, factor, r);
#pragma unroll
            for (int c = 0; c < kColumns; ++c)
                acc[r][c] *= row_factor;
        }
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const float load_weight = __shfl_sync(~0u, weight, i);
#pragma unroll
            for (int c = 0; c < kColumns; ++c)
                acc[row_of(i)][c] += load_weight * x[i][c];
        }
    }
    const RowAddress mine = row_address(p, w, my_row);
    const Denominator d =
        C::kFoldsSegments ? finish_fold(p, mine.head_q, top) : finish_row(p, mine.head_q, top * kLog2e, sum, true);
    if (lane < rows) write_lse(p, mine, d.lse);
    const auto my_out = reinterpret_cast<uintptr_t>(out_row<C>(p, mine));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const float reciprocal = __shfl_sync(~0u, d.reciprocal, r);
        auto* const out = reinterpret_cast<typename C::T*>(__shfl_sync(~0u, my_out, r));
        if (r >= rows || column >= dim) continue;
        uint32_t packed[kColumns / 2];
#pragma unroll
        for (int c = 0; c < kColumns / 2; ++c)
            packed[c] = pack2<typename C::T>(acc[r][c * 2] * reciprocal, acc[r][c * 2 + 1] * reciprocal);
        store_words(out + column, packed);
    }
}

// All consumer threads, after they have written their split's partials. The last split to arrive merges them all, in index
// order, so that the bits do not depend on who is last.
template <class C>
__device__ void merge_if_last(const LaunchParams& p, SharedMemory<C>& sm, const Work& w, int thread) {
    sync_consumers<C>();
    if (thread == 0) {
        // Releases what all threads wrote before the barrier, and acquires, for all after the next, what other CTAs did.
        uint32_t& count = *arrivals_of(p, w);
        const bool last = arrive_at(count) == static_cast<uint32_t>(w.item.num_splits - 1);
        if (last) count = 0;
        sm.is_last_split = last;
    }
    sync_consumers<C>();
    if (!sm.is_last_split) return;

    const Partials partials(p, w);
    // A decode has many splits of few rows, a prefill few of many: the same number of loads in flight, as registers allow.
    constexpr int kLoads = C::kConsumerWarpgroups == 3 ? 4 : 2048 / C::kDim;
    const int warp = thread / 32, lane = thread % 32;
    if (w.num_rows <= kDecodeRows) {
#pragma unroll 1
        for (int row = warp; row < w.num_rows; row += C::kConsumerWarps)
            merge_rows<C, true, kLoads>(p, w, partials, row, lane);
    } else {
#pragma unroll 1
        for (int row = warp * kLoads; row < w.num_rows; row += C::kConsumerWarps * kLoads)
            merge_rows<C, false, kLoads>(p, w, partials, row, lane);
    }
}

// A tile that sees no key: zeros and -inf (or the sink), as a final row or as this split's partial.
template <class C>
__device__ void write_empty(const LaunchParams& p, const Work& w, int thread) {
    const int warp = thread / 32, lane = thread % 32, dim = p.a.config.head_dim_v;
    for (int row = warp; row < w.num_rows; row += C::kConsumerWarps) {
        if (w.item.num_splits > 1) {
            const Partials partials(p, w);
            const int64_t r = int64_t{partial_slot<C>(w)} * tile_rows(w.item) + row;
            for (int c = lane; c < dim; c += 32)
                partials.out[r * dim + c] = 0.f;
            if (lane == 0) partials.lse[r] = -INFINITY;
        } else {
            const RowAddress at = row_address(p, w, row);
            for (int c = lane * 2; c < dim; c += 64)
                *reinterpret_cast<uint32_t*>(out_row<C>(p, at) + c) = 0;
            if (lane == 0) write_lse(p, at, finish_row(p, at.head_q, 0.f, 0.f, true).lse);
        }
    }
}

}  // namespace varattn::sm90
