// The producers: one warp or two that keep the ring of K and V full. Each copies its share of the boxes of every block. A
// block of one box takes one warp.
#pragma once

#include "device/barrier.cuh"
#include "device/pipeline.cuh"
#include "device/trace.cuh"
#include "sm90/boxes.cuh"
#include "sm90/work.cuh"

namespace varattn::sm90 {

using namespace device;

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

inline constexpr int kLastBlocks = 3;  // of a task, while which the next one is taken

template <class C>
__device__ __forceinline__ void tell_scheduler(SharedMemory<C>& sm, const RingPosition<kItemSlots>& slot, int warp) {
    if (warp == 0 && elect_one()) mbarrier_arrive(&sm.item_ends[slot.stage]);
}
// All of the task in `slot` is on its way.
template <class C>
__device__ __forceinline__ void leave_task(const LaunchParams& p, SharedMemory<C>& sm, RingPosition<kItemSlots>& slot,
                                           int warp) {
    const Work& w = sm.work[slot.stage];
    __syncwarp();
    if (lane_id() == 0) {
        if (p.a.trace && warp == 0 && closes_item<C>(w)) record(p.a, w.item_index, w.head_kv, kTraceLoad, w.begin_ns);
        mbarrier_arrive(&sm.item_empty[slot.stage]);
    }
    slot.advance();
}

// Copies K and V of pages of kSmallPage tokens, as a warp. The stream of keys waits for these copies, of which a block takes
// many: one lane issues all that this warp has of a stage, with little else between them, and pages of the next task are
// looked up before this one ends, if it is known by then.
template <class C>
__device__ __forceinline__ void copy_small_pages(const LaunchParams& p, SharedMemory<C>& sm, int warp) {
    constexpr int kBoxes = C::kBlockN / kSmallPage / kMaxCopyWarps,
                  kBlocks = 32 / kBoxes;  // whose pages the lanes hold
    static_assert(kBoxes * kMaxCopyWarps * kSmallPage == C::kBlockN, "every warp has as many");
    constexpr uint32_t kBoxBytes = kSmallPage * 128;
    const int lane = lane_id(), first_box = warp * kBoxes;
    RingPosition<C::kStages> kv;
    RingPosition<kItemSlots> slot;
    bool decode = false;
    int32_t now;                                 // page of this lane's box, of the blocks at hand
    BoxStart ahead;                              // of the next ones
    int32_t late_pages[kBoxes], late_head = -1;  // of the block whose values are still to be copied
    auto find_pages = [&](const Work& w, int turn) {
        const int block = w.block_end - 1 - turn - lane / kBoxes;
        const int index = block * (C::kBlockN / kSmallPage) + first_box + lane % kBoxes, key = index * kSmallPage;
        ahead = {p.a.num_pages, -1};
        if (block >= w.block_end - w.num_blocks && key < w.key_end && key + kSmallPage > w.key_begin)
            ahead = {p.a.block_table[w.item.seq * p.a.block_table_stride + index], 0};
    };
    auto fill = [&](const KvMaps& maps, const int32_t (&pages)[kBoxes], int32_t head_kv) {
        uint64_t* full = &sm.kv_full[kv.stage];
        const uint32_t stage = smem_address(sm.kv[kv.stage]);
        const uint64_t policy = decode ? kEvictFirst : kEvictNormal;
        mbarrier_wait(&sm.kv_empty[kv.stage], kv.empty_parity());
        if (elect_one()) {
            if (warp == 0) mbarrier_arrive_expect_bytes(full, C::kStageBytes);  // of all warps
            if (p.has_whole)
#pragma unroll
                for (int i = 0; i < kBoxes; ++i)
                    tma_load_5d(stage + (first_box + i) * kBoxBytes * C::kParts, &maps.whole, full, policy, 0, 0, 0,
                                head_kv, pages[i] * maps.page_units);
            else
#pragma unroll
                for (int i = 0; i < kBoxes; ++i)
#pragma unroll
                    for (int part = 0; part < C::kParts; ++part)
                        tma_load_4d(stage + (first_box + i) * kBoxBytes + part * C::kKvPartBytes, &maps.small, full,
                                    policy, part * kPartDims, 0, head_kv, pages[i]);
        }
        __syncwarp();
        kv.advance();
    };
    for (bool found = false;;) {
        mbarrier_wait(&sm.item_full[slot.stage], slot.full_parity());
        const Work& w = sm.work[slot.stage];
        const int32_t head_kv = w.head_kv;
        const bool exists = head_kv >= 0, joins = exists && w.chained;
        const int n = exists && w.num_rows > 0 ? w.num_blocks : 0;
        if (exists && n == 0) tell_scheduler(sm, slot, warp);
        if (n > 0 && !found) find_pages(w, 0);
        found = false;
        // Values lag one block behind keys, which is the order in which the consumers need them: K0 K1 V0 K2 V1 ... A chain of
        // tasks goes on like that; else the last values have a turn of their own, after the task's blocks or before them.
        for (int turn = late_head >= 0 && !joins ? -1 : 0; turn < n + !joins; ++turn) {
            int32_t pages[kBoxes] = {};
            const bool has_keys = turn >= 0 && turn < n;
            if (has_keys) {
                if (turn == 0) decode = w.decode;
                if (turn % kBlocks == 0) {
                    now = check_page(p, ahead).page;
                    if (turn + kBlocks < n) find_pages(w, turn + kBlocks);
                }
#pragma unroll
                for (int i = 0; i < kBoxes; ++i)
                    pages[i] = warp_uniform(now, turn % kBlocks * kBoxes + i);
                fill(p.k, pages, head_kv);
                if (turn == max_of(n - kLastBlocks, 0)) tell_scheduler(sm, slot, warp);
                if (turn == n - 1) {
                    const RingPosition<kItemSlots> next_slot = slot.next();
                    const Work& next = sm.work[next_slot.stage];
                    found = __all_sync(~0u, mbarrier_test(&sm.item_full[next_slot.stage], next_slot.full_parity())) &&
                            next.head_kv >= 0 && next.num_rows > 0 && next.num_blocks > 0;
                    if (found) find_pages(next, 0);
                }
            }
            if (late_head >= 0) fill(p.v, late_pages, late_head);
#pragma unroll
            for (int i = 0; i < kBoxes; ++i)
                late_pages[i] = pages[i];
            late_head = has_keys ? head_kv : -1;
        }
        if (!exists) return;
        leave_task<C>(p, sm, slot, warp);
    }
}

// Copies K and V in boxes of any size, as a warp. kOneBox: a block is one.
// Between the release of a stage and the copies into it the stream of keys waits: what can be done before it, is.
template <class C, bool kOneBox>
__device__ __forceinline__ void copy_keys(const LaunchParams& p, SharedMemory<C>& sm, int warp) {
    const int lane = lane_id();
    const bool leads = warp == 0;
    // Read again wherever they are used: registers are scarce.
    auto box_rows = [&] { return kOneBox ? C::kBlockN : p.box_rows; };
    auto boxes = [&] { return kOneBox ? 1 : p.boxes; };
    auto boxes_log2 = [&] { return kOneBox ? 0 : p.boxes_log2; };
    constexpr int kBoxesOfLane = kOneBox ? 1 : 2;
    const int first_box = warp << boxes_log2();

    // This warp's share of a KV block.
    struct Block {
        BoxStart start[kBoxesOfLane];  // kOneBox: of the box. Else of this lane's, and of that 32 further on
        int32_t my_box;                // which this lane's is; it has none if outside of 0 to boxes
        int32_t num_keys;              // kOneBox: from its first to the last of the sequence
        int32_t head_kv;               // -1: no block
    };
    RingPosition<C::kStages> kv;
    RingPosition<kItemSlots> slot;
    // Of the blocks that are copied:
    bool decode = false;  // keys are read once: what is read again, as tables and plan, is to stay in the L2

    // Copies keys, or values, into the next stage.
    auto copy = [&](const Block& from, const KvMaps& maps) {
        uint64_t* full = &sm.kv_full[kv.stage];
        const uint32_t stage = smem_address(sm.kv[kv.stage]);
        const uint64_t policy = decode ? kEvictFirst : kEvictNormal;
        auto await_stage = [&] { mbarrier_wait(&sm.kv_empty[kv.stage], kv.empty_parity()); };
        auto load_whole = [&](uint32_t to, const CUtensorMap& map, const BoxStart& start) {
            const WholeBox box = whole_box(p, maps, start);
            tma_load_5d(to, &map, full, policy, 0, box.row, 0, from.head_kv, box.unit);
        };
        auto load_parts = [&](uint32_t to, const BoxStart& start) {
#pragma unroll
            for (int part = 0; part < C::kParts; ++part)
                tma_load_4d(to + part * C::kKvPartBytes, &maps.small, full, policy, part * kPartDims, start.row,
                            from.head_kv, start.page);
        };
        if constexpr (kOneBox) {
            BoxStart start = from.start[0];
            await_stage();
            if (from.num_keys >= C::kBlockN) {
                if (elect_one()) {
                    mbarrier_arrive_expect_bytes(full, C::kStageBytes);
                    load_whole(stage, maps.whole, start);
                }
            } else {  // nobody reads past its keys
                constexpr uint32_t kUnitBytes = kUnitKeys * 128 * C::kParts;
                const int units = ceil_div(from.num_keys, kUnitKeys);
                if (elect_one()) mbarrier_arrive_expect_bytes(full, units * kUnitBytes);
                start.row += lane * kUnitKeys;
                if (lane < units) load_whole(stage + lane * kUnitBytes, maps.small, start);
            }
        } else {  // lanes issue the boxes that they hold, one after the other
            const uint32_t box_bytes = box_rows() * 128 * (p.has_whole ? C::kParts : 1);
            const uint32_t to = stage + (first_box + from.my_box) * box_bytes;
            const bool has_box = from.my_box >= 0 && from.my_box < boxes();
            auto load_box = [&](int k) {
                if (p.has_whole)
                    load_whole(to + k * 32 * box_bytes, maps.whole, from.start[k]);
                else
                    load_parts(to + k * 32 * box_bytes, from.start[k]);
            };
            await_stage();
            if (leads && elect_one()) mbarrier_arrive_expect_bytes(full, C::kStageBytes);  // of all warps
            if (has_box) load_box(0);
            if (boxes() > 32) load_box(1);
        }
        __syncwarp();
        kv.advance();
    };
    Block late;  // whose values are still to be copied
    late.head_kv = -1;
    for (;;) {
        mbarrier_wait(&sm.item_full[slot.stage], slot.full_parity());
        const Work& w = sm.work[slot.stage];
        const bool exists = w.head_kv >= 0, joins = exists && w.chained;
        const int num_blocks = exists && w.num_rows > 0 ? w.num_blocks : 0;
        if (exists && num_blocks == 0) tell_scheduler(sm, slot, warp);

        // The lanes read the block table for as many blocks as they can hold, one such group ahead of the copies: it may
        // have to come from memory, which copies of its own make slow.
        BoxStart now[kBoxesOfLane], next[kBoxesOfLane];
        auto find_boxes = [&](int block) {
            block -= lane >> boxes_log2();
#pragma unroll
            for (int k = 0; k < kBoxesOfLane; ++k) {
                const int box = (lane & (boxes() - 1)) + k * 32;
                next[k] = block < w.block_end - num_blocks || box >= boxes()
                              ? BoxStart{p.a.num_pages, -1}
                              : find_box(p, w, block * C::kBlockN + (first_box + box) * box_rows());
            }
        };
        if (num_blocks > 0) find_boxes(w.block_end - 1);
        int first_lane = 32;  // that holds a box of the block: none is left
        // Values lag one block behind keys, see copy_small_pages.
        for (int turn = late.head_kv >= 0 && !joins ? -1 : 0; turn < num_blocks + !joins; ++turn) {
            Block block;
            block.head_kv = -1;
            if (turn >= 0 && turn < num_blocks) {
                if (turn == 0) decode = w.decode;
                const int index = w.block_end - 1 - turn;
                if (first_lane >= 32) {
#pragma unroll
                    for (int k = 0; k < kBoxesOfLane; ++k)
                        now[k] = check_page(p, next[k]);
                    find_boxes(index - max_of(32 >> boxes_log2(), 1));
                    first_lane = 0;
                }
                if (turn == max_of(num_blocks - kLastBlocks, 0)) tell_scheduler(sm, slot, warp);
                block.head_kv = w.head_kv;
                block.num_keys = w.key_end - index * C::kBlockN;
                block.my_box = lane - first_lane;
                if constexpr (kOneBox) {
                    block.start[0].page = warp_uniform(now[0].page, first_lane);
                    block.start[0].row = warp_uniform(now[0].row, first_lane);
                } else {
                    block.start[0] = now[0], block.start[1] = now[1];
                }
                first_lane += boxes();
                copy(block, p.k);
            }
            if (late.head_kv >= 0) copy(late, p.v);
            late = block;
        }
        if (!exists) return;
        leave_task<C>(p, sm, slot, warp);
    }
}

}  // namespace varattn::sm90
