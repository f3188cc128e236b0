// The producer warpgroup: up to four warps that pop work items and keep the rings of Q, K and V full.
// Warp 0 is the scheduler as well. Each warp copies its share of the boxes of every block: small boxes are bound by
// issue, and one elected lane in each of four warps issues twice as many as one warp's lanes. With fewer boxes there are
// fewer warps, since a waiting warp takes issue slots and power from the products.
#pragma once

#include "core/layout.h"
#include "device/barrier.cuh"
#include "device/pipeline.cuh"
#include "device/tma.cuh"
#include "device/trace.cuh"
#include "sm90/work.cuh"

namespace varattn::sm90 {

using namespace device;

// Takes tasks from the end of the queue that the plan assigns to this CTA, publishes them and loads their Q. The first one is
// known from the plan. Each next one takes its steps while the last blocks of the one before are copied: popped, its item
// fetched, published, with a block between two steps to hide the trip to memory. Any earlier, and a CTA that is free sooner
// could not have it. Short prefills are over before those trips, so the one after such a task is popped with it.
template <class C>
struct Scheduler {
    struct Task {
        int32_t item, head_kv;
    };
    static constexpr int kItemWords = sizeof(WorkItem) / 4;
    static_assert(offsetof(Work, item_index) == 4 * kItemWords && offsetof(Work, head_kv) == 4 * kItemWords + 4);
    static constexpr int kFirstStep = 4, kShortPrefill = 2;  // blocks

    const LaunchParams& p;
    SharedMemory<C>& sm;
    const int lane;
    bool has_popped, has_item, has_published, has_q;  // of the next task; Q of the one published last
    unsigned long long popped;                        // the answer is in flight
    int32_t word;                                     // of its Work, the one at `lane`, in flight
    RingPosition<kItemSlots> slot;
    RingPosition<C::kQSlots> q_slot;

    __device__ __forceinline__ void begin() {
        const auto& header = *static_cast<const PlanHeader*>(p.a.plan);
        sm.queue.num_tasks = header.num_items * p.a.config.num_heads_kv;
        sm.queue.num_front_items = header.num_front_items;
        sm.queue.num_front_ctas = header.num_front_ctas;
        __syncwarp();
        has_popped = has_published = false;
        has_q = true;
        fetch(min_of(blockIdx.x, sm.queue.num_front_ctas), from_front() ? 0 : blockIdx.x - sm.queue.num_front_ctas);
    }

    __device__ __forceinline__ bool from_front() const { return blockIdx.x < sm.queue.num_front_ctas; }

    __device__ __forceinline__ QueueState& queue() const { return *static_cast<QueueState*>(p.a.workspace); }

    __device__ __forceinline__ void pop() {
        if (lane == 0) popped = atomicAdd(&queue().popped, from_front() ? 1ull : 1ull << 32);
        has_popped = true;
    }
    // Of the task that was popped after the first ones, which took no atomic.
    __device__ __forceinline__ void fetch_popped() {
        has_popped = false;
        const unsigned long long at = __shfl_sync(~0u, popped, 0);
        fetch(sm.queue.num_front_ctas + static_cast<uint32_t>(at),
              gridDim.x - sm.queue.num_front_ctas + static_cast<uint32_t>(at >> 32));
    }
    // Starts to load the item of the task that was popped after `front` others from the front and `back` from the back.
    __device__ __forceinline__ void fetch(uint32_t front, uint32_t back) {
        has_item = true;
        word = -1;
        if (front + back >= sm.queue.num_tasks) return;
        const Task task = locate(from_front() ? front : sm.queue.num_tasks - 1 - back);
        const auto* items = static_cast<const char*>(p.a.plan) + plan_layout(p.a.config).items;
        const auto* item = reinterpret_cast<const int32_t*>(items) + int64_t{task.item} * kItemWords;
        word = lane < kItemWords ? item[lane] : lane == kItemWords ? task.item : task.head_kv;
    }
    // To be called after each block of a task is copied.
    __device__ __forceinline__ void prepare(int blocks_left) {
        if (has_published)
            load_q(false);
        else if (blocks_left <= kFirstStep)
            step();
    }
    // Publishes the next task, or the end, unless it is published already.
    __device__ __forceinline__ void finish() {
        while (!has_published)
            step();
        has_published = false;
    }
    __device__ __forceinline__ void step() {
        if (has_item)
            publish();
        else if (has_popped)
            fetch_popped();
        else
            pop();
    }
    // The task at a position of the queue. The heads of a decode item are neighbours in the queue, since their keys are
    // neighbours in memory. Prefill items come in sections of as few heads as fill the GPU twice, so that the tiles that
    // run at a time share their keys through the L2.
    __device__ __forceinline__ Task locate(uint32_t task) {
        const uint32_t num_heads = p.a.config.num_heads_kv, num_front_items = sm.queue.num_front_items;
        uint32_t first_head = 0, heads = num_heads;
        if (task < num_front_items * num_heads) {
            const uint32_t wanted = min_of<uint32_t>(ceil_div(2 * gridDim.x, num_front_items), num_heads);
            const uint32_t section = task / (num_front_items * wanted);
            first_head = section * wanted;
            heads = min_of(wanted, num_heads - first_head);
            task -= num_front_items * first_head;
        }
        return {static_cast<int32_t>(task / heads), static_cast<int32_t>(first_head + task % heads)};
    }
    __device__ __forceinline__ void publish() {
        mbarrier_wait(&sm.item_empty[slot.stage], slot.empty_parity());
        Work& to = sm.work[slot.stage];
        if (lane < kItemWords + 2) reinterpret_cast<int32_t*>(&to)[lane] = word;
        __syncwarp();
        if (lane == 0) {
            to.chained = false;
            if (to.head_kv >= 0) {
                const uint32_t status = clip_work<C>(p, to);
                if (status) atomicOr(&static_cast<PlanHeader*>(p.a.plan)->status, status);
            }
            if (p.a.trace) to.begin_ns = now_ns();
        }
        __syncwarp();
        if (lane < C::kConsumerWarpgroups && to.head_kv >= 0) find_whole_blocks<C>(p, to, lane);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&sm.item_full[slot.stage]);
        has_item = false;
        has_published = true;
        has_q = to.head_kv < 0 || to.num_rows == 0 || to.num_blocks == 0;
        if (to.head_kv >= 0 && !to.decode && to.num_blocks <= kShortPrefill) pop();
        slot.advance();
        load_q(false);
    }
    // Loads Q of the task published last, once the task before the one before has left its slot.
    __device__ __forceinline__ void load_q(bool wait) {
        if (has_q) return;
        if (wait)
            mbarrier_wait(&sm.q_empty[q_slot.stage], q_slot.empty_parity());
        else if (!__all_sync(~0u, mbarrier_test(&sm.q_empty[q_slot.stage], q_slot.empty_parity())))
            return;
        const Work& w = sm.work[(slot.stage + kItemSlots - 1) % kItemSlots];
        if (elect_one()) {
            uint64_t* full = &sm.q_full[q_slot.stage];
            mbarrier_arrive_expect_bytes(full, p.q_box_rows[w.decode] * 128 * C::kParts);
#pragma unroll
            for (int part = 0; part < C::kParts; ++part)
                tma_load_3d(smem_address(sm.q[q_slot.stage]) + part * C::kQPartBytes,
                            w.decode ? &p.q_decode : &p.q_prefill, full, part * kPartDims, w.head_kv * p.group,
                            w.q_row);
        }
        __syncwarp();
        has_q = true;
        q_slot.advance();
    }
    // The last CTA to leave restores the queue.
    __device__ __forceinline__ void leave() {
        if (lane == 0) {
            __threadfence();
            if (atomicAdd(&queue().num_done, 1u) == gridDim.x - 1) {
                queue().popped = 0;
                queue().num_done = 0;
            }
        }
    }
};

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

// A KV block as a warp copies it: lane first_lane + i holds the start of the warp's box i.
struct BlockSource {
    BoxStart start;
    int32_t first_lane;
    int32_t head_kv;
    bool whole;   // copy all 64-dim parts of a box at once
    bool decode;  // read once: what is read again, as tables and plan, is to stay in the L2
};

template <class C>
__device__ void produce(const LaunchParams& p, SharedMemory<C>& sm, int warp) {
    int lane;  // which the assembler can read again instead of keeping it: registers are few here
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    const bool is_scheduler = warp == 0;
    const int num_boxes = C::kBlockN / p.box_rows, num_warps = num_producer_warps<C>(p);
    if (warp >= num_warps) return;
    const int boxes = num_boxes / num_warps, first_box = warp * boxes;  // of this warp: at most 32

    RingPosition<C::kStages> kv;
    RingPosition<kItemSlots> slot;

    // Copies this warp's share of a K or V block into the next stage. Warp 0 announces the bytes of all.
    auto copy = [&](const BlockSource& from, const CUtensorMap* map, const CUtensorMap* whole_map) {
        uint64_t* full = &sm.kv_full[kv.stage];
        mbarrier_wait(&sm.kv_empty[kv.stage], kv.empty_parity());
        if (is_scheduler && elect_one()) mbarrier_arrive_expect_bytes(full, C::kStageBytes);
        const uint32_t stage = smem_address(sm.kv[kv.stage]);
        // Each lane issues the box whose start it holds.
        const int i = lane - from.first_lane;
        if (i >= 0 && i < boxes) {
            const int offset = (first_box + i) * p.box_rows * 128;
            if (from.whole) {
                tma_load_5d(stage + offset * C::kParts, whole_map, full, from.decode ? kEvictFirst : kEvictNormal, 0,
                            from.start.row, 0, from.head_kv, from.start.page);
            } else {
#pragma unroll
                for (int part = 0; part < C::kParts; ++part)
                    tma_load_4d(stage + part * C::kKvPartBytes + offset, map, full, part * kPartDims, from.start.row,
                                from.head_kv, from.start.page);
            }
        }
        __syncwarp();
        kv.advance();
    };
    // V lags one block behind K, which is the order in which the consumers need them: K0 K1 V0 K2 V1 ...
    BlockSource late_v;
    late_v.head_kv = -1;  // none
    auto copy_late_v = [&] {
        if (late_v.head_kv >= 0) copy(late_v, &p.v, &p.v_whole);
        late_v.head_kv = -1;
    };
    Scheduler<C> scheduler{p, sm, lane};  // warp 0 alone uses it
    if (is_scheduler) scheduler.begin();
    auto copy_item = [&](const Work& w) {
        // The lanes read the block table for as many blocks as they can hold, one such group ahead of the copies: it may
        // have to come from memory, which copies of its own make slow.
        const int first_block = w.block_end - w.num_blocks, group = 32 / boxes;
        auto find_boxes = [&](int block) {
            block -= lane / boxes;
            return block < first_block ? BoxStart{p.a.num_pages, -1}
                                       : find_box(p, w, block * C::kBlockN + (first_box + lane % boxes) * p.box_rows);
        };
        BoxStart next = find_boxes(w.block_end - 1), now = next;
        // Prefill wants 64-dim parts of all keys one after the other; decode takes them box by box.
        const bool whole = p.has_whole && (w.decode || num_boxes == 1);
        int left = 0;  // blocks of `now`
        for (int block = w.block_end - 1; block >= first_block; --block, --left) {
            if (left == 0) {
                now = check_page(p, next);
                next = find_boxes(block - group);
                left = group;
            }
            const BlockSource source{now, (group - left) * boxes, w.head_kv, whole, w.decode};
            copy(source, &p.k, &p.k_whole);
            if (is_scheduler && block == w.block_end - 1) scheduler.load_q(true);
            copy_late_v();
            if (is_scheduler) scheduler.prepare(block - first_block + 1);
            late_v = source;
        }
    };
    for (;;) {
        if (is_scheduler) scheduler.finish();
        mbarrier_wait(&sm.item_full[slot.stage], slot.full_parity());
        const Work& w = sm.work[slot.stage];
        if (w.head_kv < 0) break;
        if (!w.chained) copy_late_v();
        if (w.num_rows > 0 && w.num_blocks > 0) copy_item(w);
        if (!w.chained) copy_late_v();
        __syncwarp();
        if (lane == 0) {
            if (p.a.trace && is_scheduler) record(p.a, w.item_index, w.head_kv, kTraceLoad, w.begin_ns);
            mbarrier_arrive(&sm.item_empty[slot.stage]);
        }
        slot.advance();
    }
    copy_late_v();
    if (is_scheduler) scheduler.leave();
}

}  // namespace varattn::sm90
