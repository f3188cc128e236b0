// The scheduler: one warp that takes tasks from the queue, publishes them to everyone else and loads their Q.
#pragma once

#include "core/layout.h"
#include "device/barrier.cuh"
#include "device/pipeline.cuh"
#include "device/tma.cuh"
#include "device/trace.cuh"
#include "sm90/work.cuh"

namespace varattn::sm90 {

using namespace device;

// The number of the CTA's SM, or kNoSm if this launch takes not all of them.
inline constexpr uint32_t kNoSm = ~0u;
__device__ __forceinline__ uint32_t sm_number() {
    uint32_t number, num_sms;
    asm("mov.u32 %0, %%smid;" : "=r"(number));
    asm("mov.u32 %0, %%nsmid;" : "=r"(num_sms));
    return gridDim.x == num_sms && num_sms <= kMaxSeats ? number : kNoSm;
}

// By a warp: the CTA's number among those of the launch, from which follows where in the queue it starts. That of its SM: the
// SMs of a GPC share its bandwidth, and neighbours in number are of different GPCs, so either end's CTAs are spread over all of
// them. If a CTA that ran on the SM before has taken the number, the next one that is free. A launch on a part of the SMs goes
// by index. (Inlined, it would change the order of instructions in the loops over keys.)
__device__ __noinline__ inline uint32_t take_seat(const LaunchParams& p, int lane) {
    uint32_t number = sm_number(), is_taken = 0;
    if (number == kNoSm) return blockIdx.x;
    for (uint32_t tries = 0; tries < gridDim.x; ++tries) {
        if (lane == 0) is_taken = atomicExch(&static_cast<QueueState*>(p.a.workspace)->seats[number], 1u);
        if (!__shfl_sync(~0u, is_taken, 0)) return number;
        number = number + 1 == gridDim.x ? 0 : number + 1;
    }
    return blockIdx.x;  // the workspace was not zeroed
}

struct Task {
    int32_t item, head_kv;
};

// The task at a position of the queue. The heads of a decode item are neighbours in the queue, since their keys are neighbours
// in memory. Prefill items come in sections of some heads each, so that the tiles that run at a time share their keys through
// the L2: as many sections as have tasks for twice the GPU, by and large.
__device__ __forceinline__ Task locate_task(const LaunchParams& p, uint32_t num_front_items, uint32_t task) {
    const uint32_t num_heads = p.a.config.num_heads_kv;
    uint32_t first_head = 0, heads = num_heads;
    if (task < num_front_items * num_heads) {
        const uint32_t num_sections = max_of(num_front_items * num_heads / (2 * gridDim.x), 1u);
        const uint32_t wanted = ceil_div(num_heads, num_sections);
        const uint32_t section = task / (num_front_items * wanted);
        first_head = section * wanted;
        heads = min_of(wanted, num_heads - first_head);
        task -= num_front_items * first_head;
    }
    return {static_cast<int32_t>(task / heads), static_cast<int32_t>(first_head + task % heads)};
}

__device__ __forceinline__ const WorkItem* find_item(const LaunchParams& p, const Task& task) {
    return reinterpret_cast<const WorkItem*>(static_cast<const char*>(p.a.plan) + plan_layout(p.a.config).items) +
           task.item;
}

// By a warp, while the kernel before still runs: brings what the CTA will need first into the L2, namely plan, item, block
// table and first keys. It is a guess, from what the plan's buffer holds at the time and the planner may be about to replace;
// so nothing of it is used or left in the L1, and every index is checked. Returns early where there is nothing to guess from.
template <class C>
__device__ __noinline__ void prefetch_first_task(const LaunchParams& p, int lane) {
    constexpr int kBlocks = 2;
    const auto* header = static_cast<const PlanHeader*>(p.a.plan);
    const uint32_t num_items = __ldcg(&header->num_items), num_front_items = __ldcg(&header->num_front_items);
    const uint32_t num_front_ctas = __ldcg(&header->num_front_ctas), number = sm_number();
    const uint32_t seat = number == kNoSm ? blockIdx.x : number, num_tasks = num_items * p.a.config.num_heads_kv;
    if (num_items > p.max_items || num_front_items > num_items || num_front_ctas > gridDim.x || seat >= num_tasks) return;
    const Task task = locate_task(p, num_front_items, seat < num_front_ctas ? seat : num_tasks - 1 - (seat - num_front_ctas));
    const WorkItem* item = find_item(p, task);
    const int32_t seq = __ldcg(&item->seq), k_begin = __ldcg(&item->k_begin);
    const int32_t block_begin = __ldcg(&item->block_begin), block_end = __ldcg(&item->block_end);

    const int boxes = C::kBlockN / p.box_rows;
    for (int i = lane; i < kBlocks * 2 * boxes; i += 32) {  // boxes of K, then of V
        const int32_t block = block_end - 1 - i / (2 * boxes), key = block * C::kBlockN + i % boxes * p.box_rows;
        if (block < block_begin || key < 0) continue;
        int32_t page = 0, row = k_begin + key;
        if (p.a.block_table) {
            const int32_t index = key / p.a.page_size;
            if (index >= p.a.max_pages_per_seq || static_cast<uint32_t>(seq) >= static_cast<uint32_t>(p.a.config.max_seqs))
                continue;
            page = __ldcg(p.a.block_table + seq * p.a.block_table_stride + index);
            row = key - index * p.a.page_size;
        }
        const bool is_v = i / boxes % 2;
        if (p.has_whole)
            tma_prefetch_5d(is_v ? &p.v_whole : &p.k_whole, 0, row, 0, task.head_kv, page);
        else
#pragma unroll 1
            for (int part = 0; part < C::kParts; ++part)
                tma_prefetch_4d(is_v ? &p.v : &p.k, part * kPartDims, row, task.head_kv, page);
    }
}

// Tasks come from the end of the queue that the plan assigns to this CTA. The first one is known from the plan. Each next one
// is popped when the last blocks of the one before are being copied: early enough to hide the trips to memory, late enough to
// leave it to a CTA that is free sooner. Short prefills are over before those trips, so the one after is popped at once.
template <class C>
struct Scheduler {
    static constexpr int kItemWords = sizeof(WorkItem) / 4;
    static_assert(offsetof(Work, item_index) == 4 * kItemWords && offsetof(Work, head_kv) == 4 * kItemWords + 4);
    static constexpr int kShortPrefill = 2;  // blocks

    const LaunchParams& p;
    SharedMemory<C>& sm;
    const int lane;
    const uint32_t num_tasks, num_front_items, num_front_ctas, seat;
    int32_t word;  // of the next Work, the one at `lane`
    RingPosition<kItemSlots> slot;
    RingPosition<C::kQSlots> q_slot;

    __device__ Scheduler(const LaunchParams& p, SharedMemory<C>& sm, const PlanHeader& header, uint32_t seat)
        : p(p),
          sm(sm),
          lane(lane_id()),
          num_tasks(header.num_items * p.a.config.num_heads_kv),
          num_front_items(header.num_front_items),
          num_front_ctas(header.num_front_ctas),
          seat(seat) {}

    __device__ __forceinline__ bool from_front() const { return seat < num_front_ctas; }

    __device__ __forceinline__ QueueState& queue() const { return *static_cast<QueueState*>(p.a.workspace); }

    __device__ __forceinline__ void run() {
        fetch(min_of(seat, num_front_ctas), from_front() ? 0 : seat - num_front_ctas);
        for (;;) {
            publish();
            const Work& w = sm.work[slot.stage];
            if (w.head_kv < 0) break;
            if (w.num_rows > 0 && w.num_blocks > 0) load_q(w);
            if (w.decode || w.num_blocks > kShortPrefill) mbarrier_wait(&sm.item_ends[slot.stage], slot.full_parity());
            slot.advance();
            fetch_next();
        }
        leave();
    }

private:
    // The task after those that were popped so far and the first ones, which take no atomic.
    __device__ __forceinline__ void fetch_next() {
        unsigned long long popped = 0;
        if (lane == 0) popped = atomicAdd(&queue().popped, from_front() ? 1ull : 1ull << 32);
        popped = __shfl_sync(~0u, popped, 0);
        fetch(num_front_ctas + static_cast<uint32_t>(popped),
              gridDim.x - num_front_ctas + static_cast<uint32_t>(popped >> 32));
    }
    // Starts to load the item of the task that was popped after `front` others from the front and `back` from the back.
    __device__ __forceinline__ void fetch(uint32_t front, uint32_t back) {
        word = -1;
        if (front + back >= num_tasks) return;
        const Task task = locate_task(p, num_front_items, from_front() ? front : num_tasks - 1 - back);
        const auto* item = reinterpret_cast<const int32_t*>(find_item(p, task));
        word = lane < kItemWords ? item[lane] : lane == kItemWords ? task.item : task.head_kv;
    }
    // Publishes the task that was fetched, or the end.
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
    }
    // Once the task before the one before has left its slot.
    __device__ __forceinline__ void load_q(const Work& w) {
        mbarrier_wait(&sm.q_empty[q_slot.stage], q_slot.empty_parity());
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
        q_slot.advance();
    }
    // The last CTA to leave restores the queue.
    __device__ __forceinline__ void leave() {
        uint32_t left = 0;
        if (lane == 0) {
            sm.no_more_tasks = true;
            __threadfence();
            left = atomicAdd(&queue().num_done, 1u);
        }
        if (__shfl_sync(~0u, left, 0) != gridDim.x - 1) return;
#pragma unroll 1
        for (int i = lane; i < kMaxSeats; i += 32)
            queue().seats[i] = 0;
        if (lane == 0) {
            queue().popped = 0;
            queue().num_done = 0;
        }
    }
};

}  // namespace varattn::sm90
