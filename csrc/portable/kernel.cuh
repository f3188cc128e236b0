// The portable attention kernel, compute capability 8.0 and newer: mma.sync products, cp.async copies.
//
// A persistent CTA of four warps pops tasks: a tile of 64 packed query rows, 16 a warp, against a range of KV blocks. K
// and V blocks stream through a ring of stages. Blocks are visited upwards, and block b always covers the same keys.
#pragma once

#include "device/padding.cuh"
#include "device/trace.cuh"
#include "portable/output.cuh"
#include "portable/tiles.cuh"

namespace varattn::portable {

template <class C>
__device__ __forceinline__ void attend(const AttentionParams& p, SharedMemory<C>& sm) {
    if (!is_own_plan(p)) return;
    device::write_padding<typename C::T, 1>(p, threadIdx.x, kThreads / 32, [] { return false; });

    const int first_row = threadIdx.x / 32 * kWarpRows;  // of this warp's rows in the tile
    while (pop_task(p, sm.task)) {
        const uint64_t begin_ns = p.trace ? device::now_ns() : 0;
        const Work work = Work::of<C>(p, sm.task.item);
        const RowBounds bounds = RowBounds::of<C>(p, sm.task, work, first_row + threadIdx.x % 32 / 4);
        const bool warp_has_rows = first_row < work.num_rows;
        OnlineSoftmax softmax;
        float out[C::kDim / 8][4] = {};

        if (work.blocks.begin < work.blocks.end) {
            // Prologue: q and all stages but one.
            KvRows<C> kv_rows(p, sm, work);
            locate_q_rows<C>(p, sm, work);
            for (int stage = 0; stage < C::kStages - 1; ++stage) {
                const int32_t block = work.blocks.begin + stage;
                kv_rows.fetch_page_ids(block);
                kv_rows.locate(block);
                __syncthreads();
                if (stage == 0) load_tile<C, C::kTileRows>(sm.q, sm.q_rows, p.q, p.config.head_dim);
                load_kv<C>(p, sm, stage, block < work.blocks.end);
                __syncthreads();
            }
            kv_rows.fetch_page_ids(work.blocks.begin + C::kStages - 1);
            kv_rows.locate(work.blocks.begin + C::kStages - 1);

            // At the top of each turn: kStages - 1 blocks, two groups each, are in flight, and the rows of the next block
            // are located.
            int stage = 0, free_stage = C::kStages - 1;
            for (int32_t block = work.blocks.begin; block < work.blocks.end; ++block) {
                const int32_t load_block = block + C::kStages - 1;
                cp_async_wait<2 * C::kStages - 3>();
                __syncthreads();  // K has arrived, the previous block's stage is free
                load_kv<C>(p, sm, free_stage, load_block < work.blocks.end);
                kv_rows.fetch_page_ids(load_block + 1);

                float scores[C::kBlockN / 8][4];
                if (warp_has_rows) {
                    multiply_qk<C>(scores, sm.q, sm.k[stage]);
                    scale_scores(scores, p.softmax_scale, p.softcap);
                    const int32_t first_key = block * C::kBlockN;
                    if (first_key < work.whole_keys.begin || first_key + C::kBlockN > work.whole_keys.end)
                        mask_scores(scores, bounds, first_key);
                    softmax.update(scores, out);
                }

                cp_async_wait<2 * C::kStages - 2>();
                __syncthreads();  // V has arrived, the located rows are no longer in use
                kv_rows.locate(load_block + 1);
                if (warp_has_rows) multiply_pv<C>(out, scores, sm.v[stage]);
                free_stage = stage;
                stage = stage + 1 == C::kStages ? 0 : stage + 1;
            }
        }

        write_rows<C>(p, sm.task, work, out, softmax);
        if (sm.task.item.num_splits > 1) merge_if_last<C>(p, sm, work);
        if (p.trace && threadIdx.x == 0) device::record(p, sm.task.item_index, sm.task.head_kv, kTraceTask, begin_ns);
    }
    leave_queue(p);
}

template <class C>
__global__ void __launch_bounds__(kThreads, C::kCtasPerSm) attention_kernel(const __grid_constant__ AttentionParams p) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    attend<C>(p, *reinterpret_cast<SharedMemory<C>*>(shared_memory));
}

}  // namespace varattn::portable
