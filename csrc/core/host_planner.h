// The planner as a host function, and a check of any plan against its lengths.
#pragma once

#include <string>
#include <vector>

#include "core/schedule.h"
#include "varattn/plan.h"

namespace varattn {

// Lengths as the planner takes them: clamped to what the buffers can hold. Returns status bits.
uint32_t read_lengths(const PlanConfig& config, const SequenceLengths& lengths, std::vector<SequenceShape>& seqs);

// Writes plan_size(config) bytes at `plan`. Lengths are in host memory and may be hostile: see PlanStatus.
void plan_on_host(const PlanConfig& config, const CostModel& costs, const SequenceLengths& lengths, void* plan);

// Proves a plan: every visible (row, key) lies in exactly one item of its row, splits are balanced, non-empty and within
// the bound, partial rows are disjoint and within the workspace, the order is the rules'. Returns "" or what is wrong.
std::string find_plan_fault(const PlanConfig& config, const CostModel& costs, const SequenceLengths& lengths,
                            const void* plan);

}  // namespace varattn
