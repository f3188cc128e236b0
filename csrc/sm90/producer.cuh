// The producers: one warp or two that keep the ring of K and V full. Each copies its share of the boxes of every block, a
// box or two a lane. A block of one box takes one warp, with a loop of its own: a second would wait, and take issue slots and
// power from the products.
#pragma once

#include "device/barrier.cuh"
#include "device/pipeline.cuh"
#include "device/tma.cuh"
#include "device/trace.cuh"
#include "sm90/work.cuh"

namespace varattn::sm90 {

using namespace device;

// Where a KV box starts: page (or num_pages: the copy engine fills with zeros) and row in the page.
struct BoxStart {
    int32_t page, row;
};

// Start of the box of `key` and following, the page as the block table has it: nothing waits for the table yet.
__device__ __forceinline__ BoxStart find_box(const LaunchParams& p, const Work& w, int32_t key) {
    if (!p.a.block_table) return {0, w.item.k_begin + key};
    if (key >= w.key_end || key + p.box_rows <= w.key_begin) return {p.a.num_pages, -1};
    const int32_t index = p.page_shift >= 0 ? key >> p.page_shift : key / p.a.page_size;
    return {p.a.block_table[w.item.seq * p.a.block_table_stride + index], key - index * p.a.page_size};
}
__device__ __forceinline__ BoxStart check_page(const LaunchParams& p, BoxStart start) {
    if (p.a.block_table && start.row >= 0 &&
        static_cast<uint32_t>(start.page) >= static_cast<uint32_t>(p.a.num_pages)) {
        atomicOr(&static_cast<PlanHeader*>(p.a.plan)->status, kStatusPageId);
        start.page = p.a.num_pages;
    }
    return start;
}

// A KV block as a warp copies it: lane first_lane + i holds the start of the warp's box i, and that of box i + 32.
struct BlockSource {
    BoxStart start[2];
    int32_t first_lane;
    int32_t num_keys;  // kOneBox: from its first to the last of the sequence
    int32_t head_kv;
};

// kOneBox: a block is one box. Every instruction here counts: these warps take issue slots from the consumers, and between the
// release of a stage and the copies into it the stream of keys waits for them.
template <class C, bool kOneBox>
__device__ __forceinline__ void copy_keys(const LaunchParams& p, SharedMemory<C>& sm, int warp) {
    const int lane = lane_id();
    const bool leads = warp == 0;
    // Read again wherever they are used: registers are scarce.
    auto boxes = [&] { return kOneBox ? 1 : p.boxes; };
    auto boxes_log2 = [&] { return kOneBox ? 0 : p.boxes_log2; };
    const int first_box = warp << boxes_log2();

    RingPosition<C::kStages> kv;
    RingPosition<kItemSlots> slot;
    // Of the task at hand:
    bool decode = false;  // keys are read once: what is read again, as tables and plan, is to stay in the L2
    // One box of two parts is less work than two. But prefill's product with keys wants the parts of all of them one after the
    // other, and that with values takes kValueKeys at a time.
    bool whole_keys = false, whole_values = false;

    // Copies this warp's share of a K or V block into the next stage.
    auto copy = [&](const BlockSource& from, const CUtensorMap* map, const CUtensorMap* whole_map, bool whole) {
        uint64_t* full = &sm.kv_full[kv.stage];
        const uint32_t stage = smem_address(sm.kv[kv.stage]);
        const uint64_t policy = decode ? kEvictFirst : kEvictNormal;
        auto await_stage = [&] { mbarrier_wait(&sm.kv_empty[kv.stage], kv.empty_parity()); };
        auto load_whole = [&](uint32_t to, const BoxStart& start) {
            tma_load_5d(to, whole_map, full, policy, 0, start.row, 0, from.head_kv, start.page);
        };
        auto load_parts = [&](uint32_t to, const BoxStart& start) {
#pragma unroll
            for (int part = 0; part < C::kParts; ++part)
                tma_load_4d(to + part * C::kKvPartBytes, map, full, policy, part * kPartDims, start.row, from.head_kv,
                            start.page);
        };
        if constexpr (kOneBox) {
            BoxStart start = from.start[0];
            start.page = warp_uniform(start.page, from.first_lane);
            start.row = warp_uniform(start.row, from.first_lane);
            await_stage();
            if (from.num_keys >= C::kBlockN) {
                if (elect_one()) {
                    mbarrier_arrive_expect_bytes(full, C::kStageBytes);
                    load_whole(stage, start);
                }
            } else {  // nobody reads past its keys
                const int cuts = ceil_div(from.num_keys, kCutRows);
                if (elect_one()) mbarrier_arrive_expect_bytes(full, cuts * kCutRows * 128 * C::kParts);
                start.row += lane * kCutRows;
                if (lane < cuts) load_parts(stage + lane * kCutRows * 128, start);
            }
        } else {
            // Each lane issues the boxes whose starts it holds.
            const int mine = lane - from.first_lane;
            const uint32_t to = stage + (first_box + mine) * p.box_rows * 128 * (whole ? C::kParts : 1);
            auto load_box = [&](int k) {
                const uint32_t box_to = to + k * 32 * p.box_rows * 128;
                if (whole)
                    load_whole(box_to, from.start[k]);
                else
                    load_parts(box_to, from.start[k]);
            };
            const bool has_box = mine >= 0 && mine < boxes();
            await_stage();
            if (leads && elect_one()) mbarrier_arrive_expect_bytes(full, C::kStageBytes);  // of all warps
            if (has_box) load_box(0);
            if (boxes() > 32) load_box(1);
        }
        __syncwarp();
        kv.advance();
    };
    // V lags one block behind K, which is the order in which the consumers need them: K0 K1 V0 K2 V1 ...
    BlockSource late_v;
    late_v.head_kv = -1;  // none
    auto copy_late_v = [&] {
        if (late_v.head_kv >= 0) copy(late_v, &p.v, &p.v_whole, whole_values);
        late_v.head_kv = -1;
    };
    constexpr int kLastBlocks = 3;  // of a task, while which the next one is taken
    auto tell_scheduler = [&] {
        if (leads && elect_one()) mbarrier_arrive(&sm.item_ends[slot.stage]);
    };
    auto copy_item = [&](const Work& w) {
        // The lanes read the block table for as many blocks as they can hold, one such group ahead of the copies: it may
        // have to come from memory, which copies of its own make slow.
        const int first_block = w.block_end - w.num_blocks, group = max_of(32 >> boxes_log2(), 1);
        const int telling_block = first_block + min_of(kLastBlocks, w.num_blocks) - 1;
        BoxStart now[2], next[2];
        auto find_boxes = [&](int block) {
            block -= lane >> boxes_log2();
#pragma unroll
            for (int k = 0; k < (kOneBox ? 1 : 2); ++k) {
                const int box = (lane & (boxes() - 1)) + k * 32;
                next[k] = block < first_block || box >= boxes()
                              ? BoxStart{p.a.num_pages, -1}
                              : find_box(p, w, block * C::kBlockN + (first_box + box) * p.box_rows);
            }
        };
        find_boxes(w.block_end - 1);
        int left = 0;  // blocks of `now`
        for (int block = w.block_end - 1; block >= first_block; --block, --left) {
            if (left == 0) {
#pragma unroll
                for (int k = 0; k < (kOneBox ? 1 : 2); ++k)
                    now[k] = check_page(p, next[k]);
                find_boxes(block - group);
                left = group;
            }
            if (block == telling_block) tell_scheduler();
            const BlockSource source{{now[0], now[1]},
                                     (group - left) << boxes_log2(),
                                     kOneBox ? w.key_end - block * C::kBlockN : 0,
                                     w.head_kv};
            copy(source, &p.k, &p.k_whole, whole_keys);
            copy_late_v();
            late_v = source;
        }
    };
    for (;;) {
        mbarrier_wait(&sm.item_full[slot.stage], slot.full_parity());
        const Work& w = sm.work[slot.stage];
        if (w.head_kv < 0) break;
        if (!w.chained) copy_late_v();
        decode = w.decode;
        whole_keys = p.has_whole && decode;
        whole_values = p.has_whole && (decode || p.box_rows == kValueKeys);
        if (w.num_rows > 0 && w.num_blocks > 0)
            copy_item(w);
        else
            tell_scheduler();
        if (!w.chained) copy_late_v();
        __syncwarp();
        if (lane == 0) {
            if (p.a.trace && leads) record(p.a, w.item_index, w.head_kv, kTraceLoad, w.begin_ns);
            mbarrier_arrive(&sm.item_empty[slot.stage]);
        }
        slot.advance();
    }
    copy_late_v();
}

}  // namespace varattn::sm90
