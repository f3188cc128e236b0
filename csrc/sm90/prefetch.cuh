// What a launch does before its turn: it brings what it will need first into the L2.
#pragma once

#include "device/memory.cuh"
#include "sm90/boxes.cuh"
#include "sm90/queue.cuh"

namespace varattn::sm90 {

using namespace device;

// By a warp, while the kernel before still runs: brings what the CTA will need first into the L2, namely plan, item, block
// table and first keys. It is a guess, from what the plan's buffer holds at the time and the planner may be about to replace;
// so nothing of it is used or left in the L1, and every index is checked. Returns early where there is nothing to guess from.
template <class C>
__device__ __noinline__ void prefetch_first_task(const LaunchParams& p, int lane) {
    constexpr int kBlocks = 2;
    const auto* header = static_cast<const PlanHeader*>(p.a.plan);
    const uint32_t num_items = __ldcg(&header->num_items), num_front_items = __ldcg(&header->num_front_items);
    const uint32_t num_front_ctas = __ldcg(&header->num_front_ctas), section_heads = __ldcg(&header->section_heads);
    const uint32_t number = sm_number(), seat = number == kNoSm ? blockIdx.x : number;
    const uint32_t num_tasks = num_items * p.a.config.num_heads_kv;
    if (num_items > p.max_items || num_front_items > num_items || num_front_ctas > gridDim.x || seat >= num_tasks ||
        section_heads - 1 >= static_cast<uint32_t>(p.a.config.num_heads_kv))
        return;
    const Task task = locate_task(p, num_front_items, section_heads,
                                  seat < num_front_ctas ? seat : num_tasks - 1 - (seat - num_front_ctas));
    const WorkItem* item = find_item(p, task);
    const int32_t seq = __ldcg(&item->seq), k_begin = __ldcg(&item->k_begin);
    const int32_t block_begin = __ldcg(&item->block_begin), kv_len = __ldcg(&item->kv_len);
    int32_t block_end = __ldcg(&item->block_end);
    if constexpr (C::kFoldsSegments) {
        constexpr int32_t kSegment = kSegmentKeys / C::kBlockN;
        block_end = min_of(block_end, (block_begin / kSegment + 1) * kSegment);
    }

    const int rows = p.one_box ? kUnitKeys : p.box_rows, boxes = C::kBlockN / rows;
    for (int i = lane; i < kBlocks * 2 * boxes; i += 32) {  // boxes of K, then of V
        const int32_t block = block_end - 1 - i / (2 * boxes), key = block * C::kBlockN + i % boxes * rows;
        if (block < block_begin || key < 0 || key >= kv_len) continue;
        BoxStart start{0, k_begin + key};
        if (p.a.block_table) {
            const int32_t index = key / p.a.page_size;
            if (index >= p.a.max_pages_per_seq ||
                static_cast<uint32_t>(seq) >= static_cast<uint32_t>(p.a.config.max_seqs))
                continue;
            start = {__ldcg(p.a.block_table + seq * p.a.block_table_stride + index), key - index * p.a.page_size};
        }
        const KvMaps& maps = i / boxes % 2 ? p.v : p.k;
        if (p.has_whole) {
            const WholeBox box = whole_box(p, maps, start);
            tma_prefetch_5d(p.one_box ? &maps.small : &maps.whole, 0, box.row, 0, task.head_kv, box.unit);
        } else {
#pragma unroll 1
            for (int part = 0; part < C::kParts; ++part)
                tma_prefetch_4d(&maps.small, part * kPartDims, start.row, task.head_kv, start.page);
        }
    }

    // Once it is the launch's turn: item and block table into the L1, while the scheduler takes its seat at the queue.
    await_previous_kernel();
    prefetch_l1(reinterpret_cast<const int32_t*>(item) + min_of<int>(lane, sizeof(WorkItem) / 4 - 1));
    // Of the table, what the first 64 pages need, which are the last ones.
    const int32_t index = min_of(kv_len, block_end * C::kBlockN) / max_of(p.a.page_size, 1) - 62 + 2 * lane;
    if (p.a.block_table && static_cast<uint32_t>(seq) < static_cast<uint32_t>(p.a.config.max_seqs) && index >= 0 &&
        index < p.a.max_pages_per_seq)
        prefetch_l1(p.a.block_table + seq * p.a.block_table_stride + index);
}

}  // namespace varattn::sm90
