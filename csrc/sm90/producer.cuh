// The producers: one warp or two that keep the ring of K and V full. Each copies its share of the boxes of every block, a
// box or two a lane. A block of one box takes one warp: a second would wait, and take issue slots and power from the products.
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
    int32_t num_keys;  // from its first to the last of the sequence
    int32_t head_kv;
};

template <class C>
__device__ void copy_keys(const LaunchParams& p, SharedMemory<C>& sm, int warp) {
    const int lane = lane_id();
    const bool leads = warp == 0;
    if (warp >= p.num_copy_warps) return;
    const int first_box = warp << p.boxes_log2;

    RingPosition<C::kStages> kv;
    RingPosition<kItemSlots> slot;
    bool decode = false;  // read once: what is read again, as tables and plan, is to stay in the L2

    // Copies this warp's share of a K or V block into the next stage. These warps take issue slots from the consumers: every
    // instruction here counts.
    auto copy = [&](const BlockSource& from, const CUtensorMap* map, const CUtensorMap* whole_map, bool values) {
        uint64_t* full = &sm.kv_full[kv.stage];
        const uint32_t stage = smem_address(sm.kv[kv.stage]);
        const uint64_t policy = decode ? kEvictFirst : kEvictNormal;
        auto load_whole = [&](uint32_t to, const BoxStart& start) {
            tma_load_5d(to, whole_map, full, policy, 0, start.row, 0, from.head_kv, start.page);
        };
        auto load_parts = [&](uint32_t to, const BoxStart& start) {
#pragma unroll
            for (int part = 0; part < C::kParts; ++part)
                tma_load_4d(to + part * C::kKvPartBytes, map, full, policy, part * kPartDims, start.row, from.head_kv,
                            start.page);
        };
        mbarrier_wait(&sm.kv_empty[kv.stage], kv.empty_parity());
        if (p.one_box) {
            BoxStart start = from.start[0];
            start.page = warp_uniform(start.page, from.first_lane);
            start.row = warp_uniform(start.row, from.first_lane);
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
            if (leads && elect_one()) mbarrier_arrive_expect_bytes(full, C::kStageBytes);  // of all warps
            // One box of two parts is less work than two. But prefill's product with keys wants the parts of all of them one
            // after the other, and that with values takes kValueKeys at a time.
            const bool whole = p.has_whole && (decode || (values && p.box_rows == kValueKeys));
            // Each lane issues the boxes whose starts it holds.
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const int i = lane - from.first_lane + k * 32;
                if (i < 0 || i >= p.boxes) continue;
                const uint32_t offset = (first_box + i) * p.box_rows * 128;
                if (whole)
                    load_whole(stage + offset * C::kParts, from.start[k]);
                else
                    load_parts(stage + offset, from.start[k]);
            }
        }
        __syncwarp();
        kv.advance();
    };
    // V lags one block behind K, which is the order in which the consumers need them: K0 K1 V0 K2 V1 ...
    BlockSource late_v;
    late_v.head_kv = -1;  // none
    auto copy_late_v = [&] {
        if (late_v.head_kv >= 0) copy(late_v, &p.v, &p.v_whole, true);
        late_v.head_kv = -1;
    };
    constexpr int kLastBlocks = 3;  // of a task, while which the next one is taken
    auto tell_scheduler = [&] {
        if (leads && elect_one()) mbarrier_arrive(&sm.item_ends[slot.stage]);
    };
    auto copy_item = [&](const Work& w) {
        // The lanes read the block table for as many blocks as they can hold, one such group ahead of the copies: it may
        // have to come from memory, which copies of its own make slow.
        const int first_block = w.block_end - w.num_blocks, group = max_of(32 >> p.boxes_log2, 1);
        BoxStart now[2], next[2];
        auto find_boxes = [&](int block) {
            block -= lane >> p.boxes_log2;
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const int box = (lane & (p.boxes - 1)) + k * 32;
                next[k] = block < first_block || box >= p.boxes
                              ? BoxStart{p.a.num_pages, -1}
                              : find_box(p, w, block * C::kBlockN + (first_box + box) * p.box_rows);
            }
        };
        find_boxes(w.block_end - 1);
        int left = 0;  // blocks of `now`
        for (int block = w.block_end - 1; block >= first_block; --block, --left) {
            if (left == 0) {
                now[0] = check_page(p, next[0]);
                now[1] = check_page(p, next[1]);
                find_boxes(block - group);
                left = group;
            }
            if (block - first_block + 1 == min_of(kLastBlocks, w.num_blocks)) tell_scheduler();
            const BlockSource source{{now[0], now[1]},
                                     (group - left) << p.boxes_log2,
                                     w.key_end - block * C::kBlockN,
                                     w.head_kv};
            copy(source, &p.k, &p.k_whole, false);
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
