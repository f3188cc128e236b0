// Decode mode: at most 16 packed rows. mma.sync, with the keys of a block split over the warps of a warpgroup, and the
// blocks over two warpgroups, so that no warp waits for another inside a block. A tile padded to the 128 rows of prefill
// mode would take three times as long on data that has already arrived.
#pragma once

#include "device/mma.cuh"
#include "device/pipeline.cuh"
#include "sm90/output.cuh"
#include "sm90/softmax.cuh"

namespace varattn::sm90 {

// What a lane holds of accumulators, in tiles of four elements: of scores rows and keys, of outputs rows and dims. Products
// have 16 rows, which up to 8 rows of a task would leave half empty: for them operands are swapped, keys or dims are the 16.
template <bool kSwapped>
struct DecodeLayout {
    static constexpr int kColumns = kSwapped ? 16 : 8;  // keys or dims of a tile
    // Element x: which of the lane's two rows, and the key or dim in the tile.
    __device__ static constexpr int which_row(int x) { return kSwapped ? x % 2 : x / 2; }
    __device__ static int column(int lane, int x) { return kSwapped ? lane / 4 + x / 2 * 8 : lane % 4 * 2 + x % 2; }
    __device__ static int row(int lane, int which) { return kSwapped ? lane % 4 * 2 + which : lane / 4 + which * 8; }
    // The lanes that hold the same rows.
    __device__ static uint32_t lanes_of_rows(int lane) {
        return kSwapped ? 0x11111111u << lane % 4 : 15u << (lane & ~3);
    }
    template <class Operation>
    __device__ static float reduce(float x, Operation operation) {
#pragma unroll
        for (int lanes = kSwapped ? 4 : 1; lanes < (kSwapped ? 32 : 4); lanes *= 2)
            x = operation(x, __shfl_xor_sync(~0u, x, lanes));
        return x;
    }
};

// Merges the results of two warpgroups and writes them. The second warpgroup leaves its own with the first and goes on, so
// that the stream of keys does not wait for the merge. `q`: the Q tile, which is read no more.
template <class C, bool kSwapped, int kTiles>
__device__ __forceinline__ void merge_warps(const LaunchParams& p, SharedMemory<C>& sm, const Work& w, uint8_t* q,
                                            float (&o)[kTiles][4], DecodeRow (&rows)[2], int wg, uint32_t thread) {
    using T = typename C::T;
    using Layout = DecodeLayout<kSwapped>;
    constexpr int kMine = kTiles / 4;  // tiles that a warp writes
    const int warp = thread / 32 % 4, lane = thread % 32;
    const int my_rows[2] = {Layout::row(lane, 0), Layout::row(lane, 1)};
    const bool exists = my_rows[0] < w.num_rows;
#pragma unroll
    for (DecodeRow& row : rows)
        row.sum = Layout::reduce(row.sum, [](float x, float y) { return x + y; });
    // (warp, tile, lane), as the accumulators are: a thread finds its part of another warp's where its own would be.
    static_assert(4 * kTiles * 32 * sizeof(float4) <= C::kQBytes);
    float4* const outputs = reinterpret_cast<float4*>(q) + lane;
    auto leave_results = [&] {
        if (!exists) return;
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
            outputs[(warp * kTiles + i) * 32] = {o[i][0], o[i][1], o[i][2], o[i][3]};
        if ((Layout::lanes_of_rows(lane) & ((1u << lane) - 1)) == 0)  // the first of them
#pragma unroll
            for (int e = 0; e < 2; ++e)
                sm.decode_rows[wg][warp][my_rows[e]] = rows[e];
    };
    if (wg == 1) {
        // The first has read Q, and what it was left before: the second is never ahead by a whole task.
        named_barrier_sync(kBarrierDecodeQ, 256);
        leave_results();
        fence_async_proxy();  // before the next Q
        named_barrier_arrive(kBarrierDecodeRows, C::kConsumerWarps * 32);
        return;
    }
    named_barrier_sync(kBarrierDecodeRows, C::kConsumerWarps * 32);
    if (wg > 1) return;  // a third one, which has only kept step with the ring

    // What rescales results relative to one reference to those of another.
    auto factor = [&](float from, float to) {
        return exp2_approx(from * p.scale_log2 - (to == -INFINITY ? 0.f : to * p.scale_log2));
    };
    if (exists) {
        float mine[2], theirs[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const DecodeRow other = sm.decode_rows[1][warp][my_rows[e]];
            const float top = fmaxf(rows[e].top, other.top);
            mine[e] = factor(rows[e].top, top);
            theirs[e] = factor(other.top, top);
            rows[e] = {top, rows[e].sum * mine[e] + other.sum * theirs[e]};
        }
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
            const float4 y = outputs[(warp * kTiles + i) * 32];
            const float other[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int x = 0; x < 4; ++x)
                o[i][x] = o[i][x] * mine[Layout::which_row(x)] + other[x] * theirs[Layout::which_row(x)];
        }
    }
    leave_results();
    fence_async_proxy();
    named_barrier_sync(kBarrierWarpgroup, 128);

    // Lane r works out what the warps' results of row r weigh. Every warp writes some dims of all rows.
    const int row = min_of(lane, w.num_rows - 1), split_row = w.item.split * tile_rows(w.item);
    const bool splits = w.item.num_splits > 1;
    float weight[4], top = -INFINITY, sum = 0.f;
#pragma unroll
    for (int x = 0; x < 4; ++x)
        top = fmaxf(top, sm.decode_rows[0][x][row].top);
#pragma unroll
    for (int x = 0; x < 4; ++x) {
        weight[x] = factor(sm.decode_rows[0][x][row].top, top);
        sum += weight[x] * sm.decode_rows[0][x][row].sum;
    }
    const RowAddress at = row_address(p, w, row);
    const Denominator d = finish_row(p, at.head_q, top * p.scale_log2, sum, !splits);
    const Partials partials(p, w);
    if (warp == 0 && lane < w.num_rows) {
        if (splits)
            partials.lse[split_row + row] = d.lse;
        else
            write_lse(p, at, d.lse);
    }
    float acc[kMine][4] = {};
#pragma unroll
    for (int x = 0; x < 4; ++x) {
        weight[x] *= d.reciprocal;
        const float of_rows[2] = {__shfl_sync(~0u, weight[x], my_rows[0]), __shfl_sync(~0u, weight[x], my_rows[1])};
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
            const float4 y = exists ? outputs[(x * kTiles + warp * kMine + i) * 32] : float4{};
            acc[i][0] += of_rows[Layout::which_row(0)] * y.x;
            acc[i][1] += of_rows[Layout::which_row(1)] * y.y;
            acc[i][2] += of_rows[Layout::which_row(2)] * y.z;
            acc[i][3] += of_rows[Layout::which_row(3)] * y.w;
        }
    }
    const int first_dim = warp * kMine * Layout::kColumns, dim = p.a.config.head_dim_v;
    if (splits) {
#pragma unroll
        for (int i = 0; i < kMine; ++i)
#pragma unroll
            for (int x = 0; x < 4; ++x) {
                const int to = my_rows[Layout::which_row(x)];
                const int column = first_dim + i * Layout::kColumns + Layout::column(lane, x);
                if (to < w.num_rows && column < dim) partials.out[(split_row + to) * int64_t{dim} + column] = acc[i][x];
            }
        return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        // Pairs of dims; of a swapped tile, once they are exchanged for pairs of rows.
        const int to = kSwapped ? lane / 4 : my_rows[h];
        T* const out = out_row<C>(p, row_address(p, w, to));
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
            uint32_t pair = pack2<T>(acc[i][h * 2], acc[i][h * 2 + 1]);
            if (kSwapped) pair = transpose_8x8(pair);
            const int column = first_dim + i * Layout::kColumns + (kSwapped ? h * 8 : 0) + lane % 4 * 2;
            if (to < w.num_rows && column < dim) *reinterpret_cast<uint32_t*>(out + column) = pair;
        }
    }
}

// Attends the decode in `slot`, and those after it that are alike and whole. Leaves `slot` at the last of them.
// kSwapped: of up to 8 rows.
template <class C, bool kSwapped>
__device__ __forceinline__ void attend_decode(const LaunchParams& p, SharedMemory<C>& sm, RingPosition<C::kStages>& kv,
                                              RingPosition<C::kQSlots>& q_slot, RingPosition<kItemSlots>& slot, int wg,
                                              uint32_t thread) {
    using T = typename C::T;
    using Layout = DecodeLayout<kSwapped>;
    constexpr int kKeys = C::kBlockN / 4, kKeySteps = kKeys / 16,
                  kDimSteps = C::kDim / 16;  // of a warp: steps of products
    constexpr int kScoreTiles = kKeys / Layout::kColumns, kOutTiles = C::kDim / Layout::kColumns;
    constexpr int kStepTiles = 16 / Layout::kColumns;
    const int warp = thread / 32 % 4, lane = thread % 32;

    const uint32_t part_stride = p.part_step * 16;
    auto key_line = [&](int key) { return key / kUnitKeys * p.unit_step * 16 + key % kUnitKeys * 128; };
    // Of four 8x8 matrices, the second is 8 lines further down and the third 8 columns on, or the other way round.
    const int down = lane % 16, on = lane / 16, down_last = lane / 16 * 8 + lane % 8, on_first = lane / 8 % 2;
    uint32_t k_line[kKeySteps], v_line[kKeySteps], k_chunk[4], v_chunk[4];
#pragma unroll
    for (int t = 0; t < kKeySteps; ++t) {
        k_line[t] = key_line(warp * kKeys + t * 16 + (kSwapped ? down : down_last));
        v_line[t] = key_line(warp * kKeys + t * 16 + (kSwapped ? down_last : down));
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        k_chunk[c] = (((kSwapped ? on : on_first) ^ (lane % 8)) * 16) ^ c * 32;
        v_chunk[c] = (((kSwapped ? on_first : on) ^ (lane % 8)) * 16) ^ c * 32;
    }
    // Where the 64-dim parts of a stage start. Opaque, or the compiler would keep a register for every sum of offsets.
    auto find_parts = [&](uint32_t (&parts)[C::kParts], uint32_t stage) {
#pragma unroll
        for (int i = 0; i < C::kParts; ++i)
            parts[i] = opaque(stage + i * part_stride);
    };
    // A warpgroup skips the other's phases of a stage, and parity cannot tell phase n from n - 2: it first makes sure that
    // phase n - 1 was consumed.
    auto wait_full = [&](const RingPosition<C::kStages>& at) {
        mbarrier_wait(&sm.kv_empty[at.stage], at.empty_parity());
        mbarrier_wait(&sm.kv_full[at.stage], at.full_parity());
    };
    auto release = [&](int stage) {  // for all warpgroups: the others do not read this stage
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&sm.kv_empty[stage], C::kConsumerWarpgroups);
    };

    for (;;) {
        const Work& w = sm.work[slot.stage];
        mbarrier_wait(&sm.q_full[q_slot.stage], q_slot.full_parity());
        uint8_t* const q = sm.q[q_slot.stage];
        // Swapped: of 8 rows, a load has 32 dims.
        uint32_t q_frag[kSwapped ? kDimSteps / 2 : kDimSteps][4];
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(q_frag) / 16); ++i)
            ldmatrix_x4(q_frag[i], smem_address(q) + (kSwapped ? i / 2 : i / 4) * C::kQPartBytes +
                                       (kSwapped ? lane % 8 * 128 + (((i % 2 * 4 + lane / 8) ^ (lane % 8)) * 16)
                                                 : down * 128 + (((on ^ (lane % 8)) * 16) ^ i % 4 * 32)));
        if (wg == 0) named_barrier_arrive(kBarrierDecodeQ, 256);

        const int my_rows[2] = {Layout::row(lane, 0), Layout::row(lane, 1)};
        float o[kOutTiles][4] = {}, offset[2] = {};  // of exponents
        DecodeRow rows[2] = {{-INFINITY, 0.f}, {-INFINITY, 0.f}};
        bool all_begun = false;  // every row has a reference

        // This warpgroup's next stages, at K(i) and V(i) of i = first, first + 2, ... in the order K0 K1 V0 K2 V1 ... V(n-1).
        // The second warpgroup is the first to be here, see merge_warps. A third one has none.
        const int n = w.num_blocks, first = wg ^ 1, end = wg < kDecodeWarps / 4 ? n : 0;
        RingPosition<C::kStages> k_at = kv, v_at = kv;
        if (first < end) {
            k_at.advance(first);
            v_at.advance(first == n - 1 ? 2 * n - 1 : 2 * first + 2);
        }
        for (int i = first; i < end; i += 2) {
            const int block = w.block_end - 1 - i, first_key = block * C::kBlockN + warp * kKeys;
            float s[kScoreTiles][4] = {};
            wait_full(k_at);
            uint32_t k_part[C::kParts], v_part[C::kParts];
            find_parts(k_part, smem_address(sm.kv[k_at.stage]));
#pragma unroll
            for (int kk = 0; kk < kDimSteps; ++kk)
#pragma unroll
                for (int t = 0; t < kKeySteps; ++t) {
                    uint32_t k[4];
                    ldmatrix_x4(k, k_part[kk / 4] + k_line[t] + k_chunk[kk % 4]);
                    if constexpr (kSwapped) {
                        mma_m16n8k16<T>(s[t], k, q_frag[kk / 2][kk % 2 * 2], q_frag[kk / 2][kk % 2 * 2 + 1]);
                    } else {
                        mma_m16n8k16<T>(s[t * 2], q_frag[kk], k[0], k[1]);
                        mma_m16n8k16<T>(s[t * 2 + 1], q_frag[kk], k[2], k[3]);
                    }
                }
            release(k_at.stage);

            if (p.score_scale != 0.f)
#pragma unroll
                for (int x = 0; x < kScoreTiles * 4; ++x)
                    s[x / 4][x % 4] = tanh_fast(s[x / 4][x % 4] * p.score_scale);
            if (block >= w.whole_end[0] || block < w.whole_begin[0]) {
                const Range visible[2] = {visible_to_row(p, w, my_rows[0]), visible_to_row(p, w, my_rows[1])};
#pragma unroll
                for (int x = 0; x < kScoreTiles * 4; ++x) {
                    const int key = first_key + x / 4 * Layout::kColumns + Layout::column(lane, x % 4);
                    const Range& sees = visible[Layout::which_row(x % 4)];
                    if (key < sees.begin || key >= sees.end) s[x / 4][x % 4] = -INFINITY;
                }
            }

            // As in prefill (softmax.cuh): probabilities are relative to a reference, the maximum of the row's first block,
            // which stays until those of a block turn out large.
            auto raise = [&](int e, bool late) {
                float m = -INFINITY;
#pragma unroll
                for (int x = 0; x < kScoreTiles * 4; ++x)
                    if (Layout::which_row(x % 4) == e) m = fmaxf(m, s[x / 4][x % 4]);
                m = fmaxf(rows[e].top, Layout::reduce(m, [](float x, float y) { return fmaxf(x, y); }));
                if (!late) m = rows[e].top;
                const float factor = m == rows[e].top ? 1.f : exp2_approx((rows[e].top - m) * p.scale_log2);
                offset[e] = m == -INFINITY ? 0.f : m * p.scale_log2;
                rows[e] = {m, rows[e].sum * factor};
                return factor;
            };
            float prob[kScoreTiles][4], block_sum[2];
            auto exponentiate = [&] {
                block_sum[0] = block_sum[1] = 0.f;
#pragma unroll
                for (int x = 0; x < kScoreTiles * 4; ++x) {
                    const int e = Layout::which_row(x % 4);
                    prob[x / 4][x % 4] = exp2_approx(fmaf(s[x / 4][x % 4], p.scale_log2, -offset[e]));
                    block_sum[e] += prob[x / 4][x % 4];
                }
            };
            auto is_late = [&](int e) { return my_rows[e] < w.num_rows && !(block_sum[e] <= kLargeProbabilities); };
            if (!all_begun) {  // a warp may see no key of the first block
                bool begun = true;
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    raise(e, rows[e].top == -INFINITY);
                    begun &= rows[e].top != -INFINITY || my_rows[e] >= w.num_rows;
                }
                all_begun = __all_sync(~0u, begun);
            }
            exponentiate();
            if (__any_sync(~0u, is_late(0) || is_late(1))) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const uint32_t late = __ballot_sync(~0u, is_late(e));
                    const float factor = raise(e, late & Layout::lanes_of_rows(lane));
#pragma unroll
                    for (int x = 0; x < kOutTiles * 4; ++x)
                        if (Layout::which_row(x % 4) == e) o[x / 4][x % 4] *= factor;
                }
                exponentiate();
            }
            rows[0].sum += block_sum[0];
            rows[1].sum += block_sum[1];
            uint32_t operand[kKeySteps][kStepTiles * 2];
#pragma unroll
            for (int x = 0; x < kScoreTiles * 2; ++x) {
                uint32_t& pair = operand[x / 2 / kStepTiles][x % (kStepTiles * 2)];
                pair = pack2<T>(prob[x / 2][x % 2 * 2], prob[x / 2][x % 2 * 2 + 1]);
                if (kSwapped) pair = transpose_8x8(pair);
            }

            wait_full(v_at);
            uint8_t* const v = sm.kv[v_at.stage];
            if (first_key < w.key_begin || first_key + kKeys > w.key_end) {
                // Stale memory may hold NaN, and 0 x NaN is NaN.
#pragma unroll 1
                for (int x = opaque(lane); x < kKeys * C::kParts * 8; x += 32) {
                    const int key = x / (C::kParts * 8), part = x / 8 % C::kParts;
                    if (first_key + key < w.key_begin || first_key + key >= w.key_end)
                        *reinterpret_cast<uint4*>(v + key_line(warp * kKeys + key) + part * part_stride + x % 8 * 16) =
                            uint4{0, 0, 0, 0};
                }
                fence_async_proxy();
                __syncwarp();
            }
            find_parts(v_part, smem_address(v));
#pragma unroll
            for (int t = 0; t < kKeySteps; ++t)
#pragma unroll
                for (int d = 0; d < kDimSteps; ++d) {
                    uint32_t m[4];
                    ldmatrix_x4_trans(m, v_part[d / 4] + v_line[t] + v_chunk[d % 4]);
                    if constexpr (kSwapped) {
                        mma_m16n8k16<T>(o[d], m, operand[t][0], operand[t][1]);
                    } else {
                        mma_m16n8k16<T>(o[d * 2], operand[t], m[0], m[1]);
                        mma_m16n8k16<T>(o[d * 2 + 1], operand[t], m[2], m[3]);
                    }
                }
            release(v_at.stage);
            k_at.advance(i == 0 ? 3 : 4);
            v_at.advance(i + 2 == n - 1 ? 3 : 4);
        }
        kv.advance(2 * n);

        merge_warps<C, kSwapped>(p, sm, w, q, o, rows, wg, opaque(thread));
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&sm.q_empty[q_slot.stage]);
        q_slot.advance();

        if (w.item.num_splits > 1) return;  // to be merged, perhaps
        const RingPosition<kItemSlots> next_slot = slot.next();
        mbarrier_wait(&sm.item_full[next_slot.stage], next_slot.full_parity());
        if (sm.work[next_slot.stage].decode_row_tiles != (kSwapped ? 1 : 2)) {
            // Prefill waits for stages by parity alone. Without turns nothing else keeps the second warpgroup, which goes on
            // from merge_warps, behind the phases that the first still waits for.
            if constexpr (!C::kTakeTurns) sync_consumers<C>();
            return;
        }
        end_task(p, sm, slot.stage, thread);
        slot = next_slot;
    }
}

}  // namespace varattn::sm90
