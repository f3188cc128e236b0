// The Hopper attention kernel: one persistent CTA per SM, one producer warpgroup, two or three consumer warpgroups, one
// launch for prefill and decode items alike.
#pragma once

#include "device/padding.cuh"
#include "sm90/decode.cuh"
#include "sm90/prefetch.cuh"
#include "sm90/prefill.cuh"
#include "sm90/producer.cuh"
#include "sm90/scheduler.cuh"

namespace varattn::sm90 {

// Whether the plan is for this launch. If not, reports the fields that differ.
__device__ __forceinline__ bool accept_plan(const LaunchParams& p, int lane) {
    auto* header = static_cast<PlanHeader*>(p.a.plan);
    bool differs = false;
    if (lane < kPlanConfigWords)
        differs = reinterpret_cast<const int32_t*>(&header->config)[lane] !=
                  reinterpret_cast<const int32_t*>(&p.a.config)[lane];
    const bool is_plan = header->magic == kPlanMagic;
    const uint32_t fields = __ballot_sync(~0u, differs);
    if (is_plan && fields == 0) return true;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        atomicOr(&header->status, is_plan ? kStatusForeignPlan | fields << kStatusFirstField : kStatusNotAPlan);
    return false;
}

template <class C>
__device__ void consume(const LaunchParams& p, SharedMemory<C>& sm, int wg, int thread) {
    RingPosition<C::kStages> kv;
    RingPosition<C::kQSlots> q_slot;
    RingPosition<kItemSlots> slot;
    if (wg == C::kConsumerWarpgroups - 1) named_barrier_arrive(kBarrierTurn, 256);  // the first turn is warpgroup 0's
    for (;;) {
        mbarrier_wait(&sm.item_full[slot.stage], slot.full_parity());
        const Work& w = sm.work[slot.stage];
        if (w.head_kv < 0) break;
        const int here = opaque(thread);
        if (w.num_rows > 0) {
            if (w.num_blocks == 0)
                write_empty<C>(p, w, here);
            else if (C::kHasDecode && w.decode_row_tiles == 1)
                attend_decode<C, true>(p, sm, kv, q_slot, slot, wg, here);
            else if (C::kHasDecode && w.decode_row_tiles == 2)
                attend_decode<C, false>(p, sm, kv, q_slot, slot, wg, here);
            else
                attend_prefill<C>(p, sm, kv, q_slot, slot, wg, here);
            // A chain ends at another task than it began with, but none of them is split.
            const Work& last = sm.work[slot.stage];
            if (last.item.num_splits > 1 && closes_item<C>(last)) merge_if_last<C>(p, sm, last, here);
        }
        end_task(p, sm, slot.stage, thread);
        slot.advance();
    }
}

// `raw`: the CTA's shared memory.
template <class C>
__device__ __forceinline__ void attend(const LaunchParams& p, char* raw) {
    auto& sm = *reinterpret_cast<SharedMemory<C>*>(raw + (1024 - smem_address(raw) % 1024) % 1024);
    const int warp = static_cast<int>(warp_uniform(threadIdx.x / 32)), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        sm.no_more_tasks = false;
        for (const CUtensorMap* map : {&p.q_prefill, &p.q_decode, &p.k.small, &p.v.small})
            tma_prefetch_descriptor(map);
        if (p.has_whole)
            for (const CUtensorMap* map : {&p.k.whole, &p.v.whole})
                tma_prefetch_descriptor(map);
        for (int i = 0; i < C::kQSlots; ++i) {
            mbarrier_init(&sm.q_full[i], 1);
            mbarrier_init(&sm.q_empty[i], C::kConsumerWarps);
        }
        for (int i = 0; i < C::kStages; ++i) {
            mbarrier_init(&sm.kv_full[i], 1);
            mbarrier_init(&sm.kv_empty[i], C::kConsumerWarps);
        }
        for (int i = 0; i < kItemSlots; ++i) {
            mbarrier_init(&sm.item_full[i], 1);
            mbarrier_init(&sm.item_ends[i], 1);
            mbarrier_init(&sm.item_empty[i], C::kConsumerWarps + p.num_copy_warps);
        }
        mbarrier_init_fence();
        fence_async_proxy();
    }
    __syncthreads();
    allow_next_kernel();
    const bool schedules = warp == C::kConsumerWarps + kSchedulerWarp, pads = warp == C::kConsumerWarps + kPaddingWarp;
    if (pads) prefetch_first_task<C>(p, lane);
    // Up to here while the kernel before, perhaps the planner, still runs.
    await_previous_kernel();
    const uint32_t seat = schedules ? take_seat(p, lane) : 0;
    if (!accept_plan(p, lane)) {
        if (schedules && lane == 0 && seat < kMaxSeats) static_cast<QueueState*>(p.a.workspace)->seats[seat] = 0;
        return;
    }
    if (warp >= C::kConsumerWarps) {
        lower_register_limit<C::kProducerRegisters>();
        if (schedules)
            Scheduler<C>(p, sm, *static_cast<const PlanHeader*>(p.a.plan), seat).run();
        else if (pads)
            write_padding<typename C::T, C::kPaddingLoads>(
                p.a, lane, 1, [&] { return !*static_cast<volatile bool*>(&sm.no_more_tasks); });
        else if (warp - C::kConsumerWarps < p.num_copy_warps) {
            if (has_own_loops(C::kDim) && p.one_box)
                copy_keys<C, true>(p, sm, 0);
            else if (has_own_loops(C::kDim) && p.a.block_table && p.a.page_size == kSmallPage)
                copy_small_pages<C>(p, sm, warp - C::kConsumerWarps);
            else
                copy_keys<C, false>(p, sm, warp - C::kConsumerWarps);
        }
    } else {
        raise_register_limit<C::kConsumerRegisters>();
        consume<C>(p, sm, warp / 4, threadIdx.x);
    }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) attention_kernel(const __grid_constant__ LaunchParams p) {
    extern __shared__ char raw[];
    attend<C>(p, raw);
}

}  // namespace varattn::sm90
