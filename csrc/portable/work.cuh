// The plan's side of the kernel: refusing a foreign plan, popping tasks, and what a task covers in this launch's buffers.
#pragma once

#include "core/schedule.h"
#include "portable/config.h"

namespace varattn::portable {

__device__ __forceinline__ PlanHeader& plan_header(const AttentionParams& p) {
    return *static_cast<PlanHeader*>(p.plan);
}

__device__ __forceinline__ void report(const AttentionParams& p, uint32_t status) {
    atomicOr(&plan_header(p).status, status);
}

// All threads. A plan that was made for something else may point anywhere: it is reported and not run.
__device__ __forceinline__ bool is_own_plan(const AttentionParams& p) {
    const PlanHeader& plan = plan_header(p);
    uint32_t fault = 0;
    if (plan.magic != kPlanMagic) {
        fault = kStatusNotAPlan;
    } else if (threadIdx.x < kPlanConfigWords) {
        auto word = [](const PlanConfig& c) { return reinterpret_cast<const int32_t*>(&c)[threadIdx.x]; };
        if (word(plan.config) != word(p.config)) fault = kStatusForeignPlan | 1u << (kStatusFirstField + threadIdx.x);
    }
    if (fault && blockIdx.x == 0) report(p, fault);
    return !__syncthreads_or(fault != 0);
}

__device__ __forceinline__ QueueState& queue_state(const AttentionParams& p) {
    return *static_cast<QueueState*>(p.workspace);
}

// All threads. The next task of this CTA's end of the queue: the ends meet, so that an end that has run dry leads on to
// the other end's tasks.
__device__ __forceinline__ bool pop_task(const AttentionParams& p, Task& task) {
    __syncthreads();  // the previous task and its shared memory are no longer in use
    if (threadIdx.x < 32) {
        const PlanHeader& plan = plan_header(p);
        const int32_t num_heads = p.config.num_heads_kv;
        int64_t index = -1;
        if (threadIdx.x == 0) {
            bool front = blockIdx.x < plan.num_front_ctas;
            unsigned long long popped = atomicAdd(&queue_state(p).popped, front ? 1ull : 1ull << 32);
            int64_t from_front = popped & 0xffffffff, from_back = popped >> 32;
            int64_t num_tasks = int64_t{plan.num_items} * num_heads;
            if (from_front + from_back < num_tasks) index = front ? from_front : num_tasks - 1 - from_back;
        }
        index = __shfl_sync(~0u, index, 0);
        constexpr int kItemWords = sizeof(WorkItem) / 4;
        if (index >= 0 && threadIdx.x < kItemWords) {
            const char* items = static_cast<const char*>(p.plan) + plan_layout(p.config).items;
            const int32_t* item = reinterpret_cast<const int32_t*>(items) + index / num_heads * kItemWords;
            reinterpret_cast<int32_t*>(&task.item)[threadIdx.x] = item[threadIdx.x];
        }
        if (threadIdx.x == 0) {
            task.item_index = static_cast<int32_t>(index / num_heads);
            task.head_kv = index < 0 ? -1 : static_cast<int32_t>(index % num_heads);
        }
    }
    __syncthreads();
    return task.head_kv >= 0;
}

// All threads. The last CTA to leave restores the queue.
__device__ __forceinline__ void leave_queue(const AttentionParams& p) {
    if (threadIdx.x != 0) return;
    QueueState& queue = queue_state(p);
    if (atomicAdd(&queue.num_done, 1u) != gridDim.x - 1) return;
    queue.popped = 0;
    queue.num_done = 0;
}

// What a task covers, clipped to the buffers of this launch.
struct Work {
    int32_t num_rows;   // packed rows of tokens that exist; the plan's may be more
    int32_t key_limit;  // keys of the sequence that exist
    Range keys;         // those that a row of the tile sees: outside, memory may hold anything
    Range whole_keys;   // those that all rows of the tile see
    Range blocks;

    template <class C>
    __device__ static Work of(const AttentionParams& p, const WorkItem& item) {
        const int32_t group = group_size(p.config), planned_rows = item.row_end - item.row_begin;
        Work w;
        const int64_t rows = int64_t{p.total_q - item.q_begin} * group - item.row_begin;
        w.num_rows = static_cast<int32_t>(clamp<int64_t>(rows, 0, planned_rows));
        const int64_t capacity =
            p.block_table ? int64_t{p.max_pages_per_seq} * p.page_size : int64_t{p.total_k} - item.k_begin;
        w.key_limit = static_cast<int32_t>(clamp<int64_t>(capacity, 0, item.kv_len));

        const Range first = visible_keys(p.config, item.q_len, item.kv_len, item.row_begin / group);
        const Range last = visible_keys(p.config, item.q_len, item.kv_len, (item.row_end - 1) / group);
        w.keys = {first.begin, min_of(last.end, w.key_limit)};
        w.whole_keys = {last.begin, min_of(first.end, w.key_limit)};
        w.blocks = {item.block_begin, min_of(item.block_end, ceil_div(w.keys.end, C::kBlockN))};
        if (threadIdx.x == 0) {
            uint32_t status = (w.num_rows < planned_rows ? kStatusRowsPastEnd : 0) |
                              (w.key_limit < item.kv_len ? kStatusKeysPastEnd : 0);
            if (status) report(p, status);
        }
        return w;
    }
};

// Row of q and query head of a packed row of the tile.
struct RowAddress {
    int32_t q_row, head;
};
__device__ __forceinline__ RowAddress row_address(const AttentionParams& p, const Task& task, int32_t row) {
    const int32_t group = group_size(p.config), packed_row = task.item.row_begin + row, token = packed_row / group;
    return {task.item.q_begin + token, task.head_kv * group + packed_row - token * group};
}

}  // namespace varattn::portable
