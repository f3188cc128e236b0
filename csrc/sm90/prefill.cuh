// Prefill mode: a warpgroup owns 64 packed rows of the tile and shares every KV block with the other one. WGMMA.
#pragma once

#include "device/pipeline.cuh"
#include "device/wgmma.cuh"
#include "sm90/output.cuh"

namespace varattn::sm90 {

// Online softmax of the two rows of a thread, in base 2. Every decision is a row's own: its bits do not depend on the
// other rows of the tile.
template <int kScores>
struct RowSoftmax {
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};  // maximum of raw scores; this thread's share of the sum

    // Turns scores into exp2(score - maximum). Returns the factors for what was accumulated before.
    __device__ __forceinline__ void update(float (&s)[kScores], float scale_log2, float (&rescale)[2]) {
        float offset[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float m = s[h * 2];
#pragma unroll
            for (int i = 0; i < kScores / 2; ++i) m = fmaxf(m, s[i / 2 * 4 + h * 2 + i % 2]);
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
            m = fmaxf(top[h], fmaxf(m, __shfl_xor_sync(~0u, m, 2)));
            offset[h] = m == -INFINITY ? 0.f : m * scale_log2;
            rescale[h] = exp2_approx(top[h] * scale_log2 - offset[h]);
            top[h] = m;
            sum[h] *= rescale[h];
        }
#pragma unroll
        for (int i = 0; i < kScores; ++i) {
            s[i] = exp2_approx(fmaf(s[i], scale_log2, -offset[i / 2 % 2]));
            sum[i / 2 % 2] += s[i];
        }
    }
};

// Raw scores after softcap, as tanh(score * score_scale), and masked by column bounds relative to the block.
template <int kScores>
__device__ __forceinline__ void cap_scores(float (&s)[kScores], float score_scale) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) s[i] = tanh_fast(s[i] * score_scale);
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

template <class C>
__device__ __forceinline__ void attend_prefill(const LaunchParams& p, SharedMemory<C>& sm, const Work& w,
                                               RingPosition<C::kStages>& kv, RingPosition<C::kQSlots>& q_slot, int wg,
                                               int thread) {
    using T = typename C::T;
    constexpr int kScores = C::kBlockN / 2;                   // of a thread
    constexpr int kOutRegs = min_of(C::kDim, 128) / 2, kOutGroups = C::kDim / min_of(C::kDim, 128);
    const int warp = thread / 32 % 4, lane = thread % 32;
    const int row = wg * 64 + warp * 16 + lane / 4;           // and row + 8

    float s[kScores], o[kOutGroups][kOutRegs], rescale[2];
    uint32_t prob[kScores / 2];
    RowSoftmax<kScores> softmax;
    const Range visible[2] = {visible_to_row(p, w, row), visible_to_row(p, w, row + 8)};
    // Blocks outside [whole_begin, whole_end) hold keys that some row of the warpgroup does not see.
    const int last_row = min_of(wg * 64 + 63, w.num_rows - 1);
    const int whole_end = visible_to_row(p, w, wg * 64).end / C::kBlockN;
    const int whole_begin = ceil_div(visible_to_row(p, w, last_row).begin, C::kBlockN);

    uint8_t* const q = sm.q[q_slot.stage] + wg * 64 * 128;
    const uint64_t q_desc = swizzle128_descriptor(warp_uniform(smem_address(q)), 1024);

    auto multiply_keys = [&](int stage) {  // s = q k^T
        const uint64_t k_desc = swizzle128_descriptor(warp_uniform(smem_address(sm.kv[stage])), 1024);
#pragma unroll
        for (int kk = 0; kk < C::kDim / 16; ++kk)
            wgmma_ss<T>(s, advance(q_desc, kk / 4 * C::kQPartBytes + kk % 4 * 32),
                        advance(k_desc, kk / 4 * C::kKvPartBytes + kk % 4 * 32), kk > 0);
        wgmma_commit();
    };
    auto multiply_values = [&](int stage, bool accumulate) {  // o (+)= prob v
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
    auto pin_output = [&] {
#pragma unroll
        for (int g = 0; g < kOutGroups; ++g) pin_registers(o[g]);
    };
    auto release = [&](int stage) {
        if (lane == 0) mbarrier_arrive(&sm.kv_empty[stage]);
    };
    // Only the first and the last block can hold keys outside [key_begin, key_end). Their V is cleaned while no product is
    // in flight: inside the loop, the branch would make the compiler serialise the products.
    auto clean = [&](const RingPosition<C::kStages>& at, int block) {
        const int first_key = block * C::kBlockN;
        if (first_key >= w.key_begin && first_key + C::kBlockN <= w.key_end) return;
        mbarrier_wait(&sm.kv_full[at.stage], at.full_parity());
        clean_values<C>(sm.kv[at.stage], w, first_key, thread % 128);
        named_barrier_sync(kBarrierWarpgroup + wg, 128);
    };
    auto score = [&](int block) {
        if (p.score_scale != 0.f) cap_scores(s, p.score_scale);
        if (block >= whole_end || block < whole_begin) mask_scores(s, visible, block * C::kBlockN, lane);
        softmax.update(s, p.scale_log2, rescale);
    };
    auto pack_probabilities = [&] {
#pragma unroll
        for (int i = 0; i < kScores / 2; ++i) prob[i] = pack2<T>(s[i * 2], s[i * 2 + 1]);
    };
    // The warpgroups take turns at issuing products, so that one's softmax runs while the other's products do.
    auto take_turn = [&] { named_barrier_sync(kBarrierTurn + wg, 256); };
    auto pass_turn = [&] { named_barrier_arrive(kBarrierTurn + (wg ^ 1), 256); };

    int block = w.block_end - 1;
    mbarrier_wait(&sm.q_full[q_slot.stage], q_slot.full_parity());
    mbarrier_wait(&sm.kv_full[kv.stage], kv.full_parity());
    take_turn();
    wgmma_fence();
    multiply_keys(kv.stage);
    pass_turn();
    wgmma_wait<0>();
    pin_registers(s);
    release(kv.stage);
    kv.advance();
    score(block);
    pack_probabilities();
    RingPosition<C::kStages> v_first = kv;
    v_first.advance(w.num_blocks > 1 ? 1 : 0);
    clean(v_first, block);
    mbarrier_wait(&sm.kv_full[kv.stage], kv.full_parity());

    for (int left = w.num_blocks - 1; left > 0; --left) {
        const int k_stage = kv.stage;
        kv.advance();
        const int v_stage = kv.stage;
        take_turn();
        wgmma_fence();
        multiply_keys(k_stage);
        mbarrier_wait(&sm.kv_full[v_stage], kv.full_parity());
        kv.advance();
        pin_registers(prob);
        pin_output();
        wgmma_fence();
        multiply_values(v_stage, block != w.block_end - 1);
        pass_turn();
        --block;
        wgmma_wait<1>();
        pin_registers(s);
        release(k_stage);
        score(block);
        pin_registers(s);
        // The next stage is awaited here, since it takes a branch to keep the assembler from sinking the softmax below the
        // wait for the product that it should hide.
        mbarrier_wait(&sm.kv_full[kv.stage], kv.full_parity());
        wgmma_wait<0>();
        pin_output();
        pin_registers(prob);
        release(v_stage);
#pragma unroll
        for (int g = 0; g < kOutGroups; ++g)
#pragma unroll
            for (int i = 0; i < kOutRegs; ++i) o[g][i] *= rescale[i / 2 % 2];
        pack_probabilities();
    }
    if (w.num_blocks > 1) clean(kv, block);
    pin_registers(prob);
    pin_output();
    wgmma_fence();
    multiply_values(kv.stage, w.num_blocks > 1);

    // Denominators while the last product runs.
    Denominator denominator[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = softmax.sum[h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int head_q = row_address(p, w, row + h * 8).head_q;
        denominator[h] = finish_row(p, head_q, softmax.top[h] * p.scale_log2, sum, w.item->num_splits == 1);
    }
    wgmma_wait<0>();
    pin_output();
    release(kv.stage);
    kv.advance();

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
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&sm.q_empty[q_slot.stage]);
    } else {
        // Through the warp's own 16 rows of the Q tile, which nothing reads any more, so that rows are written 16 bytes a
        // lane. The same swizzle as Q keeps both sides free of bank conflicts.
        uint8_t* const tile = q + warp * 16 * 128;
        const int tile_row = lane % 16, line = tile_row * 128;
#pragma unroll
        for (int i = 0; i < C::kDim / 16; ++i) {
            const float* x = &o[i * 8 / kOutRegs][i * 8 % kOutRegs];
            uint32_t r[4];
#pragma unroll
            for (int k = 0; k < 4; ++k)
                r[k] = pack2<T>(x[k * 2] * denominator[k % 2].reciprocal, x[k * 2 + 1] * denominator[k % 2].reciprocal);
            const uint32_t at = smem_address(tile) + i / 4 * C::kQPartBytes + line +
                                (((i % 4 * 2 + lane / 16) ^ (tile_row % 8)) * 16);
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r[0]),
                         "r"(r[1]), "r"(r[2]), "r"(r[3])
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
            if (lane % 4 == 0 && row + h * 8 < w.num_rows)
                write_lse(p, row_address(p, w, row + h * 8), denominator[h].lse);
        fence_async_proxy();
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&sm.q_empty[q_slot.stage]);
    }
    q_slot.advance();
}

}  // namespace varattn::sm90
