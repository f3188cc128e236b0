// The device planner's choice of the CTAs that start at the front: core/schedule.h has the rule, under Rounds.
#pragma once

#include "cuda/planner_memory.cuh"

namespace varattn::planner {

// By a warp, of which each lane tries a number, where shares.time is not 0.
class FrontChooser {
public:
    __device__ FrontChooser(const PlanConfig& c, const Shares& shares)
        : heads_(c.num_heads_kv),
          shares_(shares),
          ctas_(front_choice(c, shares, threadIdx.x % 32)),
          rounds_(max_of(ctas_, 1), shares.time) {}

    // All tiles, by where the items of each key begin.
    __device__ void add_sorted(const int32_t (&begin)[kNumOrderKeys]) {
#pragma unroll 1
        for (int32_t first = 0; first < kNumOrderKeys / 2; first += 32) {
            const int32_t its = first + threadIdx.x % 32, items = begin[its + 1] - begin[its];
#pragma unroll 1
            for (uint32_t some = __ballot_sync(~0u, items > 0); some != 0; some &= some - 1) {
                const int32_t lane = __ffs(some) - 1;
                if (!add(first + lane, __shfl_sync(~0u, items, lane))) return;
            }
        }
    }

    // All tiles, of which this lane has one at most: its key, and its items.
    __device__ void add_few(uint32_t key, int32_t items) {
        for (uint32_t next = 0;; key = key == next ? kNumOrderKeys : key) {
            next = ~__reduce_max_sync(~0u, ~key);
            if (!add(next, __reduce_add_sync(~0u, key == next ? items : 0))) return;
        }
    }

    __device__ int32_t choose() const {
        const uint32_t end = ctas_ > 0 ? rounds_.end : ~0u, first_end = ~__reduce_max_sync(~0u, ~end);
        return __shfl_sync(~0u, ctas_, __ffs(__ballot_sync(~0u, end == first_end)) - 1);
    }

private:
    // Items of the next key. False if it and those after it take no part.
    __device__ bool add(uint32_t key, int32_t items) {
        if (key >= kNumOrderKeys / 2 || !runs_in_rounds(shares_, cost_of_key(key))) return false;
        rounds_.add(items * heads_, cost_of_key(key));
        return true;
    }
    const uint32_t heads_;
    const Shares& shares_;
    const int32_t ctas_;  // 0: this lane has no number to try
    Rounds rounds_;
};

}  // namespace varattn::planner
