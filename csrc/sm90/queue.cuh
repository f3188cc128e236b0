// Where in the queue a CTA starts, and which task is where.
#pragma once

#include "core/layout.h"
#include "device/sm.cuh"
#include "sm90/work.cuh"

namespace varattn::sm90 {

// The number of the CTA's SM, or kNoSm if this launch takes not all of them.
inline constexpr uint32_t kNoSm = ~0u;
__device__ __forceinline__ uint32_t sm_number() {
    const uint32_t number = device::sm_id(), num_sms = device::num_sm_ids();
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
// the L2.
__device__ __forceinline__ Task locate_task(const LaunchParams& p, uint32_t num_front_items, uint32_t section_heads,
                                            uint32_t task) {
    const uint32_t num_heads = p.a.config.num_heads_kv;
    uint32_t first_head = 0, heads = num_heads;
    if (task < num_front_items * num_heads) {
        first_head = task / (num_front_items * section_heads) * section_heads;
        heads = min_of(section_heads, num_heads - first_head);
        task -= num_front_items * first_head;
    }
    return {static_cast<int32_t>(task / heads), static_cast<int32_t>(first_head + task % heads)};
}

__device__ __forceinline__ const WorkItem* find_item(const LaunchParams& p, const Task& task) {
    return reinterpret_cast<const WorkItem*>(static_cast<const char*>(p.a.plan) + plan_layout(p.a.config).items) +
           task.item;
}

}  // namespace varattn::sm90
