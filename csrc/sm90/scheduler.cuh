// The scheduler: one warp that takes tasks from the queue, publishes them to everyone else and loads their Q.
#pragma once

#include "device/barrier.cuh"
#include "device/pipeline.cuh"
#include "device/tma.cuh"
#include "device/trace.cuh"
#include "sm90/queue.cuh"

namespace varattn::sm90 {

using namespace device;

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
    const uint32_t num_tasks, num_front_items, num_front_ctas, section_heads, seat;
    int32_t word;  // of the next Work, the one at `lane`
    // If the kernel folds segments, of the item at hand:
    int32_t next_segment = 0;   // the block that the next one begins at
    bool has_segments = false;  // there is a next one
    uint64_t begin_ns = 0;      // of a trace: when the first one was published
    RingPosition<kItemSlots> slot;
    RingPosition<C::kQSlots> q_slot;

    __device__ Scheduler(const LaunchParams& p, SharedMemory<C>& sm, const PlanHeader& header, uint32_t seat)
        : p(p),
          sm(sm),
          lane(lane_id()),
          num_tasks(header.num_items * p.a.config.num_heads_kv),
          num_front_items(header.num_front_items),
          num_front_ctas(header.num_front_ctas),
          section_heads(header.section_heads),
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
            if (!has_segments && (w.decode || w.num_blocks > kShortPrefill))
                mbarrier_wait(&sm.item_ends[slot.stage], slot.full_parity());
            slot.advance();
            if (!has_segments) fetch_next();
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
        const Task task = locate_task(p, num_front_items, section_heads, from_front() ? front : num_tasks - 1 - back);
        const auto* item = reinterpret_cast<const int32_t*>(find_item(p, task));
        word = lane < kItemWords ? item[lane] : lane == kItemWords ? task.item : task.head_kv;
    }
    // Publishes the task that was fetched, or its next segment, or the end.
    __device__ __forceinline__ void publish() {
        mbarrier_wait(&sm.item_empty[slot.stage], slot.empty_parity());
        Work& to = sm.work[slot.stage];
        if (lane < kItemWords + 2) reinterpret_cast<int32_t*>(&to)[lane] = word;
        __syncwarp();
        if (lane == 0) {
            to.chained = false;
            to.decode_row_tiles = 0;
            if (to.head_kv >= 0) {
                if constexpr (C::kFoldsSegments)
                    next_segment = take_segment<C>(p, to, has_segments ? next_segment : to.item.block_begin);
                const uint32_t status = clip_work<C>(p, to);
                if (status) atomicOr(&static_cast<PlanHeader*>(p.a.plan)->status, status);
            }
            if (p.a.trace) to.begin_ns = begin_ns = has_segments ? begin_ns : now_ns();
        }
        __syncwarp();
        if constexpr (C::kFoldsSegments) has_segments = to.head_kv >= 0 && !to.closes;
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
