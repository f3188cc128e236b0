// The producer warpgroup: four warps that pop work items and keep the rings of Q, K and V full.
// Warp 0 is the scheduler as well. Warps 0 and 1 copy K, warps 2 and 3 copy V: small boxes are bound by issue, and one
// elected lane in each of four warps issues twice as many as one warp's lanes.
#pragma once

#include "core/layout.h"
#include "device/barrier.cuh"
#include "device/pipeline.cuh"
#include "device/tma.cuh"
#include "sm90/work.cuh"

namespace varattn::sm90 {

using namespace device;

// Pops tasks from the end of the queue that the plan assigns to this CTA, and publishes them. Work is fetched two items
// ahead: the index of the item after next and the words of the next are in flight while the current one is copied.
template <class C>
struct Scheduler {
    const LaunchParams& p;
    SharedMemory<C>& sm;
    const int lane;
    const PlanHeader* header;
    const WorkItem* items;
    QueueState* queue;
    uint32_t num_tasks;
    bool from_front;
    unsigned long long popped;  // in flight
    uint32_t task;              // of `words`
    int32_t words;              // word `lane` of the next item
    RingPosition<kItemSlots> slot;

    __device__ Scheduler(const LaunchParams& p, SharedMemory<C>& sm, int lane)
        : p(p), sm(sm), lane(lane), header(static_cast<const PlanHeader*>(p.a.plan)),
          items(reinterpret_cast<const WorkItem*>(static_cast<const char*>(p.a.plan) + plan_layout(p.a.config).items)),
          queue(static_cast<QueueState*>(p.a.workspace)), num_tasks(header->num_items * p.a.config.num_heads_kv),
          from_front(static_cast<int>(blockIdx.x) < header->num_front_ctas) {
        pop();
        fetch();
        pop();
    }

    __device__ __forceinline__ void pop() {
        if (lane == 0) popped = atomicAdd(&queue->popped, from_front ? 1ull : 1ull << 32);
    }
    __device__ __forceinline__ void fetch() {
        const unsigned long long at = __shfl_sync(~0u, popped, 0);
        const uint32_t front = static_cast<uint32_t>(at), back = static_cast<uint32_t>(at >> 32);
        task = front + back >= num_tasks ? num_tasks : from_front ? front : num_tasks - 1 - back;
        if (task < num_tasks && lane < 16)
            words = reinterpret_cast<const int32_t*>(items + task / p.a.config.num_heads_kv)[lane];
    }
    // Publishes the next item, or the end. Returns whether there was one.
    __device__ __forceinline__ bool publish() {
        const bool any = task < num_tasks;
        mbarrier_wait(&sm.item_empty[slot.stage], slot.empty_parity());
        ItemSlot& to = sm.items[slot.stage];
        if (lane < 16) reinterpret_cast<int32_t*>(&to.item)[lane] = words;
        if (lane == 0) to.head_kv = any ? static_cast<int32_t>(task % p.a.config.num_heads_kv) : -1;
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&sm.item_full[slot.stage]);
        slot.advance();
        if (any) {
            fetch();
            pop();
        }
        return any;
    }
    // The last CTA to leave restores the queue.
    __device__ __forceinline__ void leave() {
        if (lane == 0) {
            __threadfence();
            if (atomicAdd(&queue->num_done, 1u) == gridDim.x - 1) {
                queue->popped = 0;
                queue->num_done = 0;
            }
        }
    }
};

// Where a KV box starts: page (or num_pages: the copy engine fills with zeros) and row in the page.
struct BoxStart {
    int32_t page, row;
};

// Start of the box of `key` and following.
__device__ __forceinline__ BoxStart find_box(const LaunchParams& p, const Work& w, int32_t key) {
    if (!p.a.block_table) return {0, w.k_begin + key};
    if (key >= w.key_end || key + p.box_rows <= w.key_begin) return {p.a.num_pages, 0};
    const int32_t index = p.page_shift >= 0 ? key >> p.page_shift : key / p.a.page_size;
    int32_t page = p.a.block_table[w.item->seq * p.a.block_table_stride + index];
    if (static_cast<uint32_t>(page) >= static_cast<uint32_t>(p.a.num_pages)) {
        atomicOr(&static_cast<PlanHeader*>(p.a.plan)->status, kStatusPageId);
        page = p.a.num_pages;
    }
    return {page, key - index * p.a.page_size};
}

// Copies this warp's share of one K or V block into a stage. `start`: lane i's box start of boxes [chunk, chunk + 32).
template <class C>
__device__ __forceinline__ void copy_boxes(const LaunchParams& p, const Work& w, const CUtensorMap* map,
                                           const CUtensorMap* whole, uint32_t stage, uint64_t* full, bool use_whole,
                                           const BoxStart& start, int chunk, int begin, int end) {
#pragma unroll 8
    for (int i = begin; i < end; ++i) {
        const int page = __shfl_sync(~0u, start.page, i - chunk), row = __shfl_sync(~0u, start.row, i - chunk);
        if (elect_one()) {
            if (use_whole) {
                tma_load_5d(stage + i * p.box_rows * C::kParts * 128, whole, full, 0, row, 0, w.head_kv, page);
            } else {
#pragma unroll
                for (int part = 0; part < C::kParts; ++part)
                    tma_load_4d(stage + part * C::kKvPartBytes + i * p.box_rows * 128, map, full, part * kPartDims, row,
                                w.head_kv, page);
            }
        }
        __syncwarp();
    }
}

template <class C>
__device__ __forceinline__ void load_q(const LaunchParams& p, SharedMemory<C>& sm, const Work& w,
                                       RingPosition<C::kQSlots>& slot) {
    mbarrier_wait(&sm.q_empty[slot.stage], slot.empty_parity());
    if (elect_one()) {
        const int rows = p.q_box_rows[w.decode];
        uint64_t* full = &sm.q_full[slot.stage];
        mbarrier_arrive_expect_bytes(full, rows * 128 * C::kParts);
#pragma unroll
        for (int part = 0; part < C::kParts; ++part)
            tma_load_3d(smem_address(sm.q[slot.stage]) + part * C::kQPartBytes, w.decode ? &p.q_decode : &p.q_prefill,
                        full, part * kPartDims, w.head_kv * group_size(p.a.config), w.q_row);
    }
    __syncwarp();
    slot.advance();
}

template <class C>
__device__ void produce(const LaunchParams& p, SharedMemory<C>& sm, int warp, int lane) {
    const bool is_scheduler = warp == 0, is_v = warp >= 2, announces = warp % 2 == 0;
    const CUtensorMap* map = is_v ? &p.v : &p.k;
    const CUtensorMap* whole = is_v ? &p.v_whole : &p.k_whole;
    const int num_boxes = C::kBlockN / p.box_rows;
    // Boxes of this warp: half of them, unless there is only one.
    const int first_box = num_boxes == 1 ? 0 : warp % 2 * num_boxes / 2;
    const int last_box = num_boxes == 1 ? 1 - warp % 2 : first_box + num_boxes / 2;

    RingPosition<C::kStages> kv;
    RingPosition<C::kQSlots> q_slot;
    RingPosition<kItemSlots> slot;
    auto copy_item = [&](const Work& w) {
        if (is_scheduler) load_q<C>(p, sm, w, q_slot);
        // Prefill wants 64-dim parts of all keys one after the other; decode takes them box by box.
        const bool use_whole = p.has_whole && (w.decode || num_boxes == 1);
        auto box_start = [&](int block, int chunk) {
            const int box = chunk + lane;
            return box < num_boxes ? find_box(p, w, block * C::kBlockN + box * p.box_rows) : BoxStart{};
        };
        // The ring holds K0 K1 V0 K2 V1 ... V(n-1): the order in which the consumers need them. Every warp waits for every
        // stage and arrives at it, its own or not: parity cannot tell phase n of a barrier from phase n - 2, so no warp may
        // skip one or fall behind.
        int block = w.block_end - 1;  // of this warp's next stage
        BoxStart next = box_start(block, 0);
        for (int i = 0; i < 2 * w.num_blocks; ++i, kv.advance()) {
            const bool holds_v = i == 2 * w.num_blocks - 1 || (i > 0 && i % 2 == 0);
            mbarrier_wait(&sm.kv_empty[kv.stage], kv.empty_parity());
            uint64_t* full = &sm.kv_full[kv.stage];
            if (lane == 0) mbarrier_arrive_expect_bytes(full, announces && holds_v == is_v ? C::kStageBytes : 0);
            if (holds_v != is_v) continue;
            const BoxStart start = next;
            if (block > w.block_end - w.num_blocks) next = box_start(block - 1, 0);
            const uint32_t stage = smem_address(sm.kv[kv.stage]);
            for (int chunk = 0; chunk < num_boxes; chunk += 32)
                copy_boxes<C>(p, w, map, whole, stage, full, use_whole, chunk == 0 ? start : box_start(block, chunk),
                              chunk, max_of(first_box, chunk), min_of(last_box, chunk + 32));
            --block;
        }
    };
    // `publish` does something in the scheduler warp only.
    auto run = [&](auto&& publish) {
        for (;;) {
            publish();
            mbarrier_wait(&sm.item_full[slot.stage], slot.full_parity());
            const bool done = sm.items[slot.stage].head_kv < 0;
            const Work w = read_work<C>(p, sm.items[slot.stage]);
            if (done) break;
            if (is_scheduler && w.status && lane == 0)
                atomicOr(&static_cast<PlanHeader*>(p.a.plan)->status, w.status);
            if (w.num_rows > 0 && w.num_blocks > 0) copy_item(w);
            __syncwarp();
            if (lane == 0) mbarrier_arrive(&sm.item_empty[slot.stage]);
            slot.advance();
        }
    };
    if (is_scheduler) {
        Scheduler<C> scheduler(p, sm, lane);
        run([&] { scheduler.publish(); });
        scheduler.leave();
    } else {
        run([] {});
    }
}

}  // namespace varattn::sm90
