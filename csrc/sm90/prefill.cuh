// Prefill mode: a warpgroup owns 64 packed rows of the tile and shares every KV block with the other one. WGMMA.
//
// Items are a chain: the first keys of the next item are multiplied together with the last values of this one, so that
// short sequences do not pay for filling and draining the pipeline.
#pragma once

#include <type_traits>

#include "device/pipeline.cuh"
#include "device/wgmma.cuh"
#include "sm90/output.cuh"

namespace varattn::sm90 {

// Online softmax of the two rows of a thread, in base 2. Every decision is a row's own: its bits do not depend on the
// other rows of the tile.
template <int kScores>
struct RowSoftmax {
    float top[2] = {-INFINITY, -INFINITY};  // maximum of raw scores
    float sum[2] = {0.f, 0.f};              // this thread's share

    // Takes in the scores' maxima. Sets what to subtract in base 2, and the factors for what was accumulated before.
    __device__ __forceinline__ void raise(const float (&s)[kScores], float scale_log2, float (&offset)[2],
                                          float (&rescale)[2]) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float m4[4] = {s[h * 2], s[h * 2 + 1], s[h * 2 + 4], s[h * 2 + 5]};  // four chains, which overlap
#pragma unroll
            for (int i = 4; i < kScores / 2; ++i)
                m4[i % 4] = fmaxf(m4[i % 4], s[i / 2 * 4 + h * 2 + i % 2]);
            float m = fmaxf(fmaxf(m4[0], m4[1]), fmaxf(m4[2], m4[3]));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
            m = fmaxf(top[h], fmaxf(m, __shfl_xor_sync(~0u, m, 2)));
            offset[h] = m == -INFINITY ? 0.f : m * scale_log2;
            rescale[h] = exp2_approx(top[h] * scale_log2 - offset[h]);
            top[h] = m;
            sum[h] *= rescale[h];
        }
    }
    // Scores become probabilities.
    __device__ __forceinline__ void exponentiate(float (&s)[kScores], float scale_log2, const float (&offset)[2]) {
#pragma unroll
        for (int i = 0; i < kScores; ++i) {
            s[i] = exp2_approx(fmaf(s[i], scale_log2, -offset[i / 2 % 2]));
            sum[i / 2 % 2] += s[i];
        }
    }
};

// Raw scores after softcap, as tanh(score * score_scale); raw scores of keys that a row does not see.
template <int kScores>
__device__ __forceinline__ void cap_scores(float (&s)[kScores], float score_scale) {
#pragma unroll
    for (int i = 0; i < kScores; ++i)
        s[i] = tanh_fast(s[i] * score_scale);
}
template <int kScores>
__device__ __forceinline__ void mask_scores(float (&s)[kScores], const Range (&visible)[2], int first_key, int lane) {
    const int column = first_key + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
        const int key = column + i / 4 * 8 + i % 2;
        if (key < visible[i / 2 % 2].begin || key >= visible[i / 2 % 2].end) s[i] = -INFINITY;
    }
}

// Zeroes rows of a V block outside [key_begin, key_end): stale memory may hold NaN, and 0 x NaN is NaN.
template <class C>
__device__ __forceinline__ void clean_values(uint8_t* stage, const Work& w, int first_key, int thread) {
    for (int i = thread; i < C::kParts * C::kBlockN * 8; i += 128) {
        const int key = first_key + i / 8 % C::kBlockN;
        if (key < w.key_begin || key >= w.key_end) *reinterpret_cast<uint4*>(stage + i * 16) = uint4{0, 0, 0, 0};
    }
    fence_async_proxy();
}

// The accumulated rows of a thread, written as final rows or as a split's partials. `q`: the warpgroup's 64 rows of the
// item's Q tile, which nothing reads any more.
template <class C, int kOutGroups, int kOutRegs>
__device__ __forceinline__ void write_prefill(const LaunchParams& p, const Work& w, uint8_t* q,
                                              const float (&o)[kOutGroups][kOutRegs], const float (&top)[2],
                                              const float (&sum)[2], int wg, int thread) {
    using T = typename C::T;
    const int warp = thread / 32 % 4, lane = thread % 32, row = wg * 64 + warp * 16 + lane / 4;
    Denominator denominator[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float total = sum[h];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        const int head_q = row_address(p, w, row + h * 8).head_q;
        denominator[h] = finish_row(p, head_q, top[h] * p.scale_log2, total, w.item->num_splits == 1);
    }
    if (w.item->num_splits > 1) {
        const Partials partials(p, w);
        const int dim = p.a.config.head_dim_v;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (row + h * 8 >= w.num_rows) continue;
            const int64_t at = int64_t{w.item->split} * tile_rows(*w.item) + row + h * 8;
            if (lane % 4 == 0) partials.lse[at] = denominator[h].lse;
#pragma unroll
            for (int i = 0; i < C::kDim / 8; ++i) {
                const int c = i * 8 + lane % 4 * 2;
                const float* x = &o[i / (kOutRegs / 4)][i % (kOutRegs / 4) * 4 + h * 2];
                if (c < dim)
                    *reinterpret_cast<float2*>(partials.out + at * dim + c) =
                        float2{x[0] * denominator[h].reciprocal, x[1] * denominator[h].reciprocal};
            }
        }
        return;
    }
    // Through the warp's own 16 rows of the Q tile, so that rows are written 16 bytes a lane. The same swizzle as Q keeps
    // both sides free of bank conflicts.
    uint8_t* const tile = q + warp * 16 * 128;
    const int tile_row = lane % 16, line = tile_row * 128;
#pragma unroll
    for (int i = 0; i < C::kDim / 16; ++i) {
        const float* x = &o[i * 8 / kOutRegs][i * 8 % kOutRegs];
        uint32_t r[4];
#pragma unroll
        for (int k = 0; k < 4; ++k)
            r[k] = pack2<T>(x[k * 2] * denominator[k % 2].reciprocal, x[k * 2 + 1] * denominator[k % 2].reciprocal);
        const uint32_t at =
            smem_address(tile) + i / 4 * C::kQPartBytes + line + (((i % 4 * 2 + lane / 16) ^ (tile_row % 8)) * 16);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r[0]), "r"(r[1]),
                     "r"(r[2]), "r"(r[3])
                     : "memory");
    }
    __syncwarp();
    constexpr int kChunks = C::kDim / 8;  // 16-byte chunks of a row
#pragma unroll
    for (int i = 0; i < 16 * kChunks / 32; ++i) {
        const int r = (i * 32 + lane) / kChunks, chunk = (i * 32 + lane) % kChunks, tile_r = wg * 64 + warp * 16 + r;
        if (tile_r < w.num_rows && chunk * 8 < p.a.config.head_dim_v)
            *reinterpret_cast<uint4*>(out_row<C>(p, row_address(p, w, tile_r)) + chunk * 8) =
                *reinterpret_cast<const uint4*>(tile + chunk / 8 * C::kQPartBytes + r * 128 +
                                                ((chunk % 8 ^ r % 8) * 16));
    }
#pragma unroll
    for (int h = 0; h < 2; ++h)
        if (lane % 4 == 0 && row + h * 8 < w.num_rows) write_lse(p, row_address(p, w, row + h * 8), denominator[h].lse);
    fence_async_proxy();
}

// Attends item `w`, in slot `slot`, and all that are chained to it. Leaves `w` and `slot` at the last of them.
template <class C>
__device__ __forceinline__ void attend_prefill(const LaunchParams& p, SharedMemory<C>& sm, Work& w,
                                               RingPosition<C::kStages>& kv, RingPosition<C::kQSlots>& q_slot,
                                               RingPosition<kItemSlots>& slot, int wg, int thread) {
    using T = typename C::T;
    constexpr int kScores = C::kBlockN / 2;  // of a thread
    constexpr int kOutRegs = min_of(C::kDim, 128) / 2, kOutGroups = C::kDim / min_of(C::kDim, 128);
    const int lane = thread % 32, row = wg * 64 + thread / 32 % 4 * 16 + lane / 4;  // and row + 8

    float s[kScores], o[kOutGroups][kOutRegs], offset[2], rescale[2];
    uint32_t prob[kScores / 2];
    RowSoftmax<kScores> softmax;

    // Of the item whose scores are next.
    Range visible[2];
    int32_t whole_begin, whole_end;  // blocks outside hold keys that some row of the warpgroup does not see
    int32_t dirty_begin, dirty_end;  // blocks outside hold keys outside [key_begin, key_end)
    int32_t block, last_block;
    auto q_tile = [&](int stage) { return sm.q[stage] + wg * 64 * 128; };
    auto begin_item = [&] {
        visible[0] = visible_to_row(p, w, row);
        visible[1] = visible_to_row(p, w, row + 8);
        const int last_row = min_of(wg * 64 + 63, w.num_rows - 1);
        whole_end = visible_to_row(p, w, wg * 64).end / C::kBlockN;
        whole_begin = ceil_div(visible_to_row(p, w, last_row).begin, C::kBlockN);
        dirty_end = w.key_end / C::kBlockN;
        dirty_begin = ceil_div(w.key_begin, C::kBlockN);
        block = w.block_end - 1;
        last_block = w.block_end - w.num_blocks;
        mbarrier_wait(&sm.q_full[q_slot.stage], q_slot.full_parity());
        mbarrier_wait(&sm.kv_full[kv.stage], kv.full_parity());
    };

    auto multiply_keys = [&](int stage) {  // s = q k^T
        const uint64_t q_desc = swizzle128_descriptor(warp_uniform(smem_address(q_tile(q_slot.stage))), 1024);
        const uint64_t k_desc = swizzle128_descriptor(warp_uniform(smem_address(sm.kv[stage])), 1024);
        wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < C::kDim / 16; ++kk)
            wgmma_ss<T>(s, advance(q_desc, kk / 4 * C::kQPartBytes + kk % 4 * 32),
                        advance(k_desc, kk / 4 * C::kKvPartBytes + kk % 4 * 32), kk > 0);
        wgmma_commit();
    };
    auto multiply_values = [&](int stage, bool accumulate) {  // o (+)= prob v
        pin_registers(prob);
#pragma unroll
        for (int g = 0; g < kOutGroups; ++g)
            pin_registers(o[g]);
        wgmma_fence();
#pragma unroll
        for (int g = 0; g < kOutGroups; ++g) {
            const uint64_t v_desc = swizzle128_descriptor(
                warp_uniform(smem_address(sm.kv[stage]) + g * 2 * C::kKvPartBytes), 1024, C::kKvPartBytes);
#pragma unroll
            for (int kk = 0; kk < C::kBlockN / 16; ++kk)
                wgmma_rs<T>(o[g], prob + kk * 4, advance(v_desc, kk * 2048), accumulate || kk > 0);
        }
        wgmma_commit();
    };
    auto await_values = [&](int stage) {
        wgmma_wait<0>();
#pragma unroll
        for (int g = 0; g < kOutGroups; ++g)
            pin_registers(o[g]);
        pin_registers(prob);
        if (lane == 0) mbarrier_arrive(&sm.kv_empty[stage]);
    };
    // V of a block that holds keys outside [key_begin, key_end) is cleaned while no product is in flight: a branch beside
    // products would make the compiler serialise them.
    auto clean = [&](const RingPosition<C::kStages>& at) {
        mbarrier_wait(&sm.kv_full[at.stage], at.full_parity());
        clean_values<C>(sm.kv[at.stage], w, block * C::kBlockN, opaque(thread) % 128);
        named_barrier_sync(kBarrierWarpgroup + wg, 128);
    };
    auto is_dirty = [&] { return block >= dirty_end || block < dirty_begin; };
    auto finish_scores = [&] {  // up to the maxima
        if (p.score_scale != 0.f) cap_scores(s, p.score_scale);
        if (block >= whole_end || block < whole_begin) mask_scores(s, visible, block * C::kBlockN, lane);
        softmax.raise(s, p.scale_log2, offset, rescale);
    };
    auto pack_probabilities = [&] {
#pragma unroll
        for (int i = 0; i < kScores / 2; ++i)
            prob[i] = pack2<T>(s[i * 2], s[i * 2 + 1]);
    };
    // The warpgroups take turns at issuing products, so that one's softmax runs while the other's products do.
    auto take_turn = [&] { named_barrier_sync(kBarrierTurn + wg, 256); };
    auto pass_turn = [&] { named_barrier_arrive(kBarrierTurn + (wg ^ 1), 256); };

    // Multiplies the probabilities of one block by its values, and makes those of the next, which is `block`. A warp that
    // issues products is held until they have nearly ended, so there is time for the maxima between the ends of the two, and
    // for no more: exponentials before the wait made it slower (docs/performance.md).
    auto round = [&](bool accumulate, auto same_item) {
        const int k_stage = kv.stage;
        take_turn();
        multiply_keys(k_stage);
        kv.advance();
        const int v_stage = kv.stage;
        mbarrier_wait(&sm.kv_full[v_stage], kv.full_parity());
        kv.advance();
        multiply_values(v_stage, accumulate);
        pass_turn();
        wgmma_wait<1>();
        pin_registers(s);
        if (lane == 0) mbarrier_arrive(&sm.kv_empty[k_stage]);
        finish_scores();
        if (block > last_block) mbarrier_wait(&sm.kv_full[kv.stage], kv.full_parity());  // of the next round
        await_values(v_stage);
        if constexpr (decltype(same_item)::value)
#pragma unroll
            for (int g = 0; g < kOutGroups; ++g)
#pragma unroll
                for (int i = 0; i < kOutRegs; ++i)
                    o[g][i] *= rescale[i / 2 % 2];
        softmax.exponentiate(s, p.scale_log2, offset);
        pack_probabilities();
    };
    auto end_item = [&](const Work& done, int q_stage, const RowSoftmax<kScores>& sums) {
        write_prefill<C>(p, done, q_tile(q_stage), o, sums.top, sums.sum, wg, opaque(thread));
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&sm.q_empty[q_stage]);
    };

    begin_item();
    take_turn();
    multiply_keys(kv.stage);
    pass_turn();
    wgmma_wait<0>();
    pin_registers(s);
    if (lane == 0) mbarrier_arrive(&sm.kv_empty[kv.stage]);
    kv.advance();
    finish_scores();
    softmax.exponentiate(s, p.scale_log2, offset);
    pack_probabilities();
    for (;;) {
        bool accumulate = false;
        if (block > last_block) {
            if (is_dirty()) clean(kv.next());
            mbarrier_wait(&sm.kv_full[kv.stage], kv.full_parity());
        }
        for (; block > last_block; accumulate = true) {
            --block;
            round(accumulate, std::true_type{});
        }
        // The probabilities are those of the last block.
        const RingPosition<kItemSlots> next_slot = slot.next();
        bool chained = is_chained<C>(w);
        if (chained) {
            mbarrier_wait(&sm.item_full[next_slot.stage], next_slot.full_parity());
            chained =
                sm.items[next_slot.stage].head_kv >= 0 && is_chained<C>(read_work<C>(p, sm.items[next_slot.stage]));
        }
        if (is_dirty()) clean(chained ? kv.next() : kv);
        if (!chained) {
            mbarrier_wait(&sm.kv_full[kv.stage], kv.full_parity());
            multiply_values(kv.stage, accumulate);
            await_values(kv.stage);
            kv.advance();
            end_item(w, q_slot.stage, softmax);
            q_slot.advance();
            return;
        }
        const int done_slot = slot.stage, done_q = q_slot.stage;
        const RowSoftmax<kScores> done_softmax = softmax;
        softmax = {};
        slot = next_slot;
        q_slot.advance();
        w = read_work<C>(p, sm.items[slot.stage]);
        begin_item();
        round(accumulate, std::false_type{});
        end_item(read_work<C>(p, sm.items[done_slot]), done_q, done_softmax);
        end_task(p, sm, done_slot, thread);
    }
}

}  // namespace varattn::sm90
