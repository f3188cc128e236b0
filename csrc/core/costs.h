// What a kernel's work costs on a device, by which planners share it out. benchmarks/calibrate.py measures rows; which of
// them are here, and why, is in docs/performance.md.
#pragma once

#include <string_view>

#include "core/kernel_table.h"
#include "core/schedule.h"

namespace varattn {

struct DeviceCosts {
    KernelId kernel;
    std::string_view device;  // its name, as CUDA gives it; "": any that has no row of its own
    CostModel costs;          // of a prefill: a task, a block; of a decode: the same; CTAs that saturate the memory
};

inline constexpr DeviceCosts kDeviceCosts[] = {
    {kKernelCpu, "", {500, 1000, 500, 1000, 16}},
    {kKernelSm90D64, "", {4000, 1350, 2000, 440, 57}},
    {kKernelSm90D128, "", {2600, 1480, 3000, 870, 57}},
    {kKernelSm90D256, "", {4500, 1500, 2000, 870, 57}},
    {kKernelPortableD64, "", {1000, 600, 1000, 600, 114}},
    {kKernelPortableD128, "", {1500, 1000, 1500, 1000, 114}},
    {kKernelPortableD256, "", {2000, 1000, 2000, 1000, 57}},
    {kKernelSm90D256, "NVIDIA H200", {2406, 1497, 2406, 1497, 104}},
    {kKernelPortableD64, "NVIDIA H200", {3462, 1681, 3462, 1681, 264}},
    {kKernelPortableD128, "NVIDIA H200", {4608, 2459, 4608, 2459, 264}},
    {kKernelPortableD256, "NVIDIA H200", {5726, 1953, 5726, 1953, 130}},
};

constexpr const DeviceCosts* find_costs(KernelId kernel, std::string_view device) {
    for (const DeviceCosts& row : kDeviceCosts)
        if (row.kernel == kernel && row.device == device) return &row;
    return nullptr;
}

constexpr CostModel cost_model(KernelId kernel, std::string_view device = "") {
    const DeviceCosts* own = find_costs(kernel, device);
    return own ? own->costs : find_costs(kernel, "")->costs;
}

constexpr bool costs_are_sound() {  // a default for each kernel, each row once, prices that fit
    for (const KernelConfig& kernel : kKernelTable)
        if (!find_costs(kernel.id, "")) return false;
    for (const DeviceCosts& row : kDeviceCosts) {
        if (find_costs(row.kernel, row.device) != &row) return false;
        const CostModel& m = row.costs;
        if (m.block <= 0 || m.block_decode <= 0 || m.item <= 0 || m.item_decode <= 0 || m.streaming_ctas <= 0)
            return false;
        for (const bool decode : {false, true})
            if (int64_t{kMaxPricedBlocks} * (decode ? m.block_decode : m.block) + (decode ? m.item_decode : m.item) >
                kMaxCost)
                return false;
    }
    return true;
}
static_assert(costs_are_sound());

}  // namespace varattn
