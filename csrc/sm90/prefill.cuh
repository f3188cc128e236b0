// Prefill mode: a warpgroup owns 64 packed rows of the tile and shares every KV block with the others. WGMMA.
//
// Items are a chain: the first keys of the next item are multiplied together with the last values of this one, so that
// short sequences do not pay for filling and draining the pipeline.
#pragma once

#include <type_traits>

#include "device/pipeline.cuh"
#include "device/wgmma.cuh"
#include "sm90/prefill_output.cuh"
#include "sm90/softmax.cuh"

namespace varattn::sm90 {

// Zeroes rows of a V block outside [key_begin, key_end): stale memory may hold NaN, and 0 x NaN is NaN.
template <class C>
__device__ __forceinline__ void clean_values(const LaunchParams& p, uint8_t* stage, const Work& w, int first_key,
                                             int thread) {
#pragma unroll 1  // seldom run
    for (int i = thread; i < C::kParts * C::kBlockN * 8; i += 128) {
        const int part = i / 8 / C::kBlockN, key = i / 8 % C::kBlockN;
        if (first_key + key >= w.key_begin && first_key + key < w.key_end) continue;
        const uint32_t line = (key / kUnitKeys * p.unit_step + part * p.part_step) * 16 + key % kUnitKeys * 128;
        *reinterpret_cast<uint4*>(stage + line + i % 8 * 16) = uint4{0, 0, 0, 0};
    }
    fence_async_proxy();
}

// Attends the task in `slot` and all that are chained to it. Leaves `slot` at the last of them.
template <class C>
__device__ __forceinline__ void attend_prefill(const LaunchParams& p, SharedMemory<C>& sm, RingPosition<C::kStages>& kv,
                                               RingPosition<C::kQSlots>& q_slot, RingPosition<kItemSlots>& slot, int wg,
                                               int thread) {
    using T = typename C::T;
    constexpr int kScores = C::kBlockN / 2;  // of a thread
    constexpr int kOutRegs = min_of(C::kDim, 128) / 2, kOutGroups = C::kDim / min_of(C::kDim, 128);
    const int lane = thread % 32, row = wg * 64 + thread / 32 % 4 * 16 + lane / 4;  // and row + 8

    constexpr int kEarly = C::kEarlyScores;
    constexpr bool kChains = C::kQSlots > 1;  // tasks
    // A task's second keys are multiplied while the rows of the one before are written. With folding, that spills.
    constexpr bool kAhead = C::kWholeLoop && !C::kFoldsSegments;
    // Zeroed, though nothing counts on that: without it the assembler takes the accumulators as live all through the loop
    // over tasks, decode included, which then spills.
    float o[kOutGroups][kOutRegs] = {};
    float s[kScores];
    uint32_t prob[kScores / 2] = {};
    RowSoftmax<kScores> softmax;

    int has_output = 0;  // unless kAhead: whether `o` holds products of the task at hand
    bool values_are_in;  // with a loop of whole blocks: V of the next round was seen to be there
    // Of the task whose scores are next. Blocks outside of the whole ones hold keys that some row of the warpgroup does not see;
    // with a softcap, no block is whole.
    int32_t whole_begin, whole_end;
    int32_t block, last_block;
    bool is_short;  // of the task's first block, no row of the warpgroup sees the second half
    auto task = [&]() -> const Work& { return sm.work[slot.stage]; };
    auto begin_task = [&] {
        const Work& w = task();
        whole_begin = w.whole_begin[wg];
        whole_end = p.score_scale != 0.f ? 0 : w.whole_end[wg];
        block = w.block_end - 1;
        last_block = w.block_end - w.num_blocks;
        is_short =
            visible_to_row(p, w, min_of(wg * 64 + 63, w.num_rows - 1)).end - block * C::kBlockN <= C::kBlockN / 2;
        mbarrier_wait(&sm.q_full[q_slot.stage], q_slot.full_parity());
    };
    auto await_block = [&](const RingPosition<C::kStages>& at) {
        mbarrier_wait(&sm.kv_full[at.stage], at.full_parity());
    };
    // Asked for long before it is needed, the answer costs nothing. Parity suffices: the phase before is over, since this warp has
    // awaited it, or has had its turn after the other warpgroup did. (Without turns, decode sees to that: see its end.)
    auto has_block = [&](const RingPosition<C::kStages>& at) {
        return mbarrier_test(&sm.kv_full[at.stage], at.full_parity());
    };
    auto release = [&](int stage) {
        if (lane == 0) mbarrier_arrive(&sm.kv_empty[stage]);
    };

    auto q_descriptor = [&] {
        return swizzle128_descriptor(warp_uniform(smem_address(sm.q[q_slot.stage] + wg * 64 * 128)), 1024);
    };
    auto kv_descriptor = [&](int stage) {
        return descriptor_at(p.kv_descriptor, warp_uniform(smem_address(sm.kv[stage])));
    };
    auto multiply_keys = [&](uint64_t q_desc, uint64_t k_desc) {  // s = q k^T
        wgmma_fence();
#pragma unroll
        for (int part = 0; part < C::kParts; ++part) {
#pragma unroll
            for (int kk = 0; kk < 4; ++kk)
                wgmma_ss<T>(s, advance(q_desc, kk * 2), advance(k_desc, kk * 2), part + kk > 0);
            q_desc = advance(q_desc, C::kQPartBytes / 16);
            k_desc = advance(k_desc, p.part_step);
        }
        wgmma_commit();
    };
    // o (+)= prob v. A task's first product does not add; with kAhead, `begins` says which one that is, as the assembler can
    // know: it then has the registers of `o` where rows are written.
    auto multiply_values = [&](uint64_t v_desc, auto begins) {
        const int adds = kAhead ? !decltype(begins)::value : has_output;
        pin_registers(prob);
#pragma unroll
        for (int g = 0; g < kOutGroups; ++g)
            pin_registers(o[g]);
        wgmma_fence();
#pragma unroll
        for (int g = 0; g < kOutGroups; ++g) {
            uint64_t at = advance(v_desc, g * 2 * p.part_step);
#pragma unroll
            for (int kk = 0; kk < C::kBlockN / 16; ++kk) {
                wgmma_rs<T>(o[g], prob + kk * 4, at, kk > 0 || adds);
                at = advance(at, 16 / kUnitKeys * p.unit_step);
            }
        }
        wgmma_commit();
        has_output = 1;
    };
    auto clear_output = [&] {
#pragma unroll
        for (int g = 0; g < kOutGroups; ++g)
#pragma unroll
            for (int i = 0; i < kOutRegs; ++i)
                o[g][i] = 0.f;
    };
    auto await_keys = [&](int stage, auto beside_values) {  // whose product goes on
        wgmma_wait<decltype(beside_values)::value>();
        pin_registers(s);
        release(stage);
    };
    auto await_values = [&] {
        wgmma_wait<0>();
#pragma unroll
        for (int g = 0; g < kOutGroups; ++g)
            pin_registers(o[g]);
        pin_registers(prob);
    };
    // V of a block that holds keys outside [key_begin, key_end) is cleaned while no product is in flight: a branch beside
    // products would make the compiler serialise them.
    auto clean = [&](const Work& w, const RingPosition<C::kStages>& at) {
        await_block(at);
        clean_values<C>(p, sm.kv[at.stage], w, block * C::kBlockN, opaque(thread) % 128);
        named_barrier_sync(kBarrierWarpgroup + wg, 128);
    };
    auto finish_scores = [&] {
        if (block >= whole_end || block < whole_begin) {
            if (p.score_scale != 0.f) cap_scores(s, p.score_scale);
            const Range visible = visible_to_row(p, task(), row), next_visible = visible_to_row(p, task(), row + 8);
            const int column = block * C::kBlockN + lane % 4 * 2;
            mask_end(s, visible.end - column, next_visible.end - column);
            if (block < whole_begin) mask_begin(s, visible.begin - column, next_visible.begin - column);
        }
    };
    auto pack = [&](const auto& x, int at) {  // an operand of probabilities
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(x) / 8); ++i)
            prob[at / 2 + i] = pack2<T>(x[i * 2], x[i * 2 + 1]);
    };
    auto begin_softmax = [&] {  // of a task's first block
        softmax = {};
        softmax.raise(0, true, s, p.scale_log2);
        softmax.raise(1, true, s, p.scale_log2);
    };
    float block_sum[2] = {};  // of a round
    auto add_sums = [&] {
        softmax.sum[0] += block_sum[0];
        softmax.sum[1] += block_sum[1];
    };
    // Rows of a later block whose probabilities are too large get a new reference.
    auto mend = [&] {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint32_t late = __ballot_sync(~0u, softmax.is_late(h, block_sum));
            const bool row_is_late = late >> (lane & ~3) & 15;  // of its four threads
            const float factor = softmax.raise(h, row_is_late, s, p.scale_log2);
#pragma unroll
            for (int g = 0; g < kOutGroups; ++g)
#pragma unroll
                for (int i = 0; i < kOutRegs; i += 4) {
                    o[g][i + h * 2] *= factor;
                    o[g][i + h * 2 + 1] *= factor;
                }
        }
        float x[kScores];
        softmax.template exponentiate<0, kScores>(s, p.scale_log2, x, block_sum);
        pack(x, 0);
    };
    // The warpgroups take turns at issuing products.
    auto take_turn = [&] {
        if (C::kTakeTurns) named_barrier_sync(kBarrierTurn + wg, 256);
    };
    auto pass_turn = [&] {
        if (C::kTakeTurns) named_barrier_arrive(kBarrierTurn + (wg + 1) % C::kConsumerWarpgroups, 256);
    };

    // Multiplies the probabilities of one block by its values, and makes those of the next, which is `block`. The stages at
    // `kv`: K of the next, V of the one. Without a block before, the product takes K in place of V, and means nothing.
    // is_first: the next block is the first of its task. is_whole: nobody's view of it ends or begins in it. is_begun: the product
    // with its keys has begun.
    // Returns whether some row needs another reference, see mend.
    auto round = [&](auto is_first, auto is_whole, auto is_begun, bool has_values) {
        constexpr bool kIsFirst = decltype(is_first)::value, kMayHaveValues = !kIsFirst || kChains;
        const RingPosition<C::kStages> v_at = has_values ? kv.next() : kv;
        const uint64_t q_desc = q_descriptor(), k_desc = kv_descriptor(kv.stage), v_desc = kv_descriptor(v_at.stage);
        if (C::kWholeLoop && !kIsFirst && !values_are_in) await_block(v_at);  // the loops of other head dims spill here
        take_turn();
        if constexpr (!decltype(is_begun)::value) multiply_keys(q_desc, k_desc);
        if constexpr (kMayHaveValues) multiply_values(v_desc, is_begun);
        pass_turn();
        await_keys(kv.stage, std::bool_constant<kMayHaveValues>{});
        if constexpr (!decltype(is_whole)::value) finish_scores();
        kv = v_at.next();
        if constexpr (kIsFirst) begin_softmax();
        const bool keys_are_in = C::kWholeLoop && has_block(kv);
        float early[kEarly], late[kScores - kEarly];
        softmax.template exponentiate<0, kEarly>(s, p.scale_log2, early, block_sum);
        if (block > last_block && !keys_are_in) await_block(kv);
        if constexpr (kMayHaveValues) await_values();
        if (has_values) release(v_at.stage);
        if (C::kWholeLoop) values_are_in = has_block(kv.next());
        if (!C::kWholeLoop && block > last_block) await_block(kv.next());
        pack(early, 0);
        if (C::kWholeLoop && kIsFirst && is_short) {
#pragma unroll
            for (int i = kEarly / 2; i < kScores / 2; ++i)
                prob[i] = 0;
        } else {
            softmax.template exponentiate<kEarly, kScores - kEarly>(s, p.scale_log2, late, block_sum);
            pack(late, kEarly);
        }
        if constexpr (!kIsFirst)
            if (__any_sync(~0u, softmax.is_late(0, block_sum) || softmax.is_late(1, block_sum))) {
                if constexpr (C::kWholeLoop) return true;
                mend();
            }
        add_sums();
        return false;
    };

    // A warpgroup without rows keeps step with the others, and leaves them the tensor cores.
    if (wg * 64 >= task().num_rows) {
        auto skip_block = [&] {
            await_block(kv);
            release(kv.stage);
            kv.advance();
        };
        mbarrier_wait(&sm.q_full[q_slot.stage], q_slot.full_parity());
        for (int i = 0; i < task().num_blocks; ++i) {
            take_turn();
            pass_turn();
            skip_block();             // of keys
            if (i > 0) skip_block();  // of the values before
        }
        skip_block();
        if (lane == 0) mbarrier_arrive(&sm.q_empty[q_slot.stage]);
        q_slot.advance();
        return;
    }

    // Each turn of the loop ends one task, unless it is the first, and begins the next, unless there is none.
    int done_slot = -1;
    RowSoftmax<kScores> done_softmax;
    for (bool has_next = true;;) {
        const bool has_done = done_slot >= 0;
        await_block(kv);
        if (has_next) {
            begin_task();
            if (has_done) await_block(kv.next());
            round(std::true_type{}, std::false_type{}, std::false_type{}, has_done);
        } else {
            multiply_values(kv_descriptor(kv.stage), std::false_type{});
            await_values();
            release(kv.stage);
            kv.advance();
        }
        auto write_done = [&](auto may_split) {
            if (has_done)
                write_prefill<C, decltype(may_split)::value>(p, sm.work[done_slot], o, done_softmax.top,
                                                             done_softmax.sum, wg, opaque(thread));
        };
        if (!kAhead || !has_next) write_done(std::true_type{});
        if (!has_next) return;
        if (block > last_block && task().first_is_dirty) clean(task(), kv.next());
        if constexpr (kAhead) {
            // Of the second block, if there is one; else of no use. (A branch would make the compiler serialise products.)
            multiply_keys(q_descriptor(), kv_descriptor(kv.stage));
            write_done(std::false_type{});
        }
        if (has_done) end_task(p, sm, done_slot, thread);
        has_output = 0;

        bool is_late = false;
        if constexpr (kAhead) {
            if (block > last_block) {
                --block;
                is_late = round(std::false_type{}, std::false_type{}, std::true_type{}, true);
            } else {
                wgmma_wait<0>();
                pin_registers(s);
                clear_output();  // the task's only product with values is one that adds
            }
        }
        // Whole blocks have a loop of their own, with nothing in it that is seldom run: instructions are fetched ahead in a
        // line, so that every jump waits for them.
        while (block > last_block || is_late) {
            if (!is_late && (!C::kWholeLoop || block > whole_end || block <= whole_begin)) {
                --block;
                is_late = round(std::false_type{}, std::false_type{}, std::false_type{}, true);
            } else if (!is_late) {
                const int32_t last_whole = max_of(last_block, whole_begin);
                do {
                    --block;
                    is_late = round(std::false_type{}, std::true_type{}, std::false_type{}, true);
                } while (!is_late && block > last_whole);
            }
            if (is_late) {
                mend();
                add_sums();
                is_late = false;
            }
        }
        // The probabilities are those of the last block.
        const RingPosition<kItemSlots> next_slot = slot.next();
        has_next = kChains && task().chained;
        if (has_next) {
            mbarrier_wait(&sm.item_full[next_slot.stage], next_slot.full_parity());
            has_next = sm.work[next_slot.stage].chained;
        }
        if (task().last_is_dirty) clean(task(), has_next ? kv.next() : kv);
        if (lane == 0) mbarrier_arrive(&sm.q_empty[q_slot.stage]);  // the last product with its keys is done
        q_slot.advance();
        done_slot = slot.stage;
        done_softmax = softmax;
        if (has_next) slot = next_slot;
    }
}

}  // namespace varattn::sm90
